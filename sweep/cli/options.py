"""Shared options. Those of a search are made from RunConfig's fields."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from sweep.config import parsers
from sweep.config.resolving import Resolved, resolve
from sweep.config.settings import PLACES, RunConfig, flag_name, public_name
from sweep.reporting.tables import FORMATS, render_rows

F = TypeVar("F", bound=Callable[..., Any])
GROUPS = {field.name: field.metadata["group"] for field in dataclasses.fields(RunConfig)} | {
    "config_file": "search", "fork": "search", "for_time": "budget", "max_devices": "budget",
    "price_per_hour": "budget",
}  # fmt: skip
"""Option -> its heading in `sweep run --help`; all others are about the output."""


class GroupedCommand(click.Command):
    """A command whose help lists its options under the headings of GROUPS."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section a group."""
        rows: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if (row := parameter.get_help_record(ctx)) is not None:
                rows.setdefault(GROUPS.get(parameter.name or "", "output"), []).append(row)
        for group, found in rows.items():
            with formatter.section(group.capitalize()):
                formatter.write_dl(found)


def expanded(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    """Callback of a path option: `~` as in every other setting."""
    return value and Path(parsers.path(param.opts[0], str(value)))


def config_options(names: Sequence[str] | None = None) -> Callable[[F], F]:
    """Add a flag for each field of RunConfig (or for `names`); values are checked later."""

    def decorate(function: F) -> F:
        for field in reversed(dataclasses.fields(RunConfig)):
            if names is None or field.name in names:
                function = _option(field)(function)
        return function

    return decorate


def _option(field: dataclasses.Field[Any]) -> Callable[[F], F]:
    flag, meta = flag_name(field.name), field.metadata
    text = meta["help"]
    if isinstance(field.default, bool):
        state = "on" if field.default else "off"
        return click.option(
            f"{flag}/--no-{flag[2:]}", field.name, default=None, help=f"{text} [default: {state}]"
        )
    default = field.default
    if isinstance(default, tuple):
        return click.option(
            flag, field.name, metavar=meta["metavar"], multiple=True, default=None, help=text,
            callback=lambda ctx, param, value: value or None,
        )  # fmt: skip
    shown = f"{default:g}" if isinstance(default, float) else str(default)
    return click.option(
        flag, field.name, metavar=meta["metavar"],
        help=text if default is None else f"{text} [default: {shown}]",
        shell_complete=_completer(meta["choices"]),
    )  # fmt: skip


def _completer(choices: Sequence[str]) -> Callable[..., list[str]]:
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return complete


where_options = config_options(PLACES)
"""--storage, --tracking-uri and --work-dir."""

format_option = click.option(
    "--format", "fmt", type=click.Choice(FORMATS), default="table",
    help="How rows are printed. [default: table]",
)  # fmt: skip
"""--format table|json|csv."""


def print_rows(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], fmt: Any,
    least_first: Sequence[str] = (),
) -> None:  # fmt: skip
    """Print a table for this terminal, JSON or CSV (see `tables.render_rows`)."""
    from sweep.reporting.display import width_and_color

    width, is_colored = width_and_color(sys.stdout)
    text = render_rows(
        rows, columns, fmt, width=width, is_colored=is_colored, least_first=least_first
    )
    click.echo(text, nl=False, file=sys.stdout)  # click takes its own for ASCII


def where(flags: Mapping[str, Any]) -> RunConfig:
    """A RunConfig with the addresses of the stores, from flags and environment."""
    return resolve({k: v for k, v in flags.items() if k in PLACES}).config


def print_config(resolved: Resolved) -> None:
    """Print each setting with its value and origin."""
    from sweep.config.file import write_document
    from sweep.redact import redacted

    for field in dataclasses.fields(RunConfig):
        value = getattr(resolved.config, field.name)
        if field.name == "study":
            value = resolved.config.study_name
        shown = redacted(value) if isinstance(value, str) else value
        text = write_document(shown, flow=True).removesuffix("...\n").strip()
        line = f"{public_name(field.name)}: {text}"
        click.echo(f"{line:<48}  # {resolved.origins[field.name]}")


def _complete_study(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from sweep.errors import SweepError
    from sweep.ledger.study import list_studies

    try:
        studies = list_studies(where(ctx.params).storage)
        return [s.name for s in studies if s.name.startswith(incomplete)]
    except SweepError:
        return []


study_argument = click.argument("study", required=False, shell_complete=_complete_study)
"""The optional STUDY argument."""


def study_and_trial(words: Sequence[str]) -> tuple[str | None, int | None]:
    """[STUDY] [TRIAL] on a command line; the only study needs no name.

    Raises click.UsageError for anything else.
    """
    *study, last = [*words] or [""]
    if last.isdigit() and len(study) <= 1:
        return (study[0] if study else None), int(last)
    if not study:
        return last or None, None
    raise click.UsageError(f"say a study and the number of a trial, not {' '.join(words)!r}")
