"""`sweep list`, `sweep trials`, `sweep show`: what there is, from the Optuna storage."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from typing import Any, Literal

import click

from sweep.cli.options import format_option, study_argument, where, where_options

Format = Literal["table", "json", "csv"]


@click.command("list", short_help="Studies, one a line.")
@format_option
@where_options
def list_command(fmt: Format, **flags: Any) -> None:
    """List the studies of this folder's Optuna storage.

    \b
    Example:
      sweep list --format json
    """
    from sweep.ledger import list_studies
    from sweep.reporting.rows import STUDY_COLUMNS, study_row

    rows = [study_row(s) for s in list_studies(where(flags).storage)]
    if not rows and fmt == "table":
        click.echo("no studies here yet: try `sweep run`")
        return
    _print_rows(rows, STUDY_COLUMNS, fmt)


@click.command(short_help="A study's trials, one a line.")
@study_argument
@click.option("--sort", default="value", metavar="COLUMN",
              help="Column to sort by; best first for value. [default: value]")  # fmt: skip
@click.option("--reverse", is_flag=True, help="The other way round.")
@click.option("--limit", type=click.IntRange(1), help="Print the first N only.", metavar="N")
@format_option
@where_options
def trials(
    study: str | None, sort: str, reverse: bool, limit: int | None, fmt: Format, **flags: Any
) -> None:
    """List the trials of STUDY (of the only one, where it is left out).

    \b
    Examples:
      sweep trials digits-mlp --sort number
      sweep trials digits-mlp --sort lr --format csv > trials.csv
    """
    from sweep.ledger import open_study
    from sweep.reporting.rows import trial_columns, trial_row
    from sweep.reporting.tables import sort_rows
    from sweep.reuse.best import only_study

    config = where(flags)
    with closing(open_study(config.storage, study or only_study(config))) as ledger:
        rows = [trial_row(t) for t in ledger.trials()]
        is_descending = (sort == "value" and ledger.direction == "maximize") != reverse
    _print_rows(
        sort_rows(rows, sort, is_descending=is_descending)[:limit], trial_columns(rows), fmt
    )


@click.command(short_help="All about a study, or one of its trials.")
@click.argument("what", metavar="STUDY|TRIAL")
@click.argument("trial", required=False, type=click.IntRange(0))
@format_option
@where_options
def show(what: str, trial: int | None, fmt: Format, **flags: Any) -> None:
    """Show a study, or one trial of it: STUDY, STUDY TRIAL, or TRIAL of the only study.

    \b
    Examples:
      sweep show digits-mlp
      sweep show digits-mlp 17
      sweep show 17
    """
    from sweep.errors import NotFoundError
    from sweep.ledger import open_study
    from sweep.reporting.rows import study_fields, trial_fields
    from sweep.reporting.tables import render_fields
    from sweep.reuse.best import only_study

    config = where(flags)
    study, number = (only_study(config), int(what)) if what.isdigit() else (what, trial)
    with closing(open_study(config.storage, study)) as ledger:
        trials, summary = ledger.trials(), ledger.summary()
    if number is None:
        fields, traceback = study_fields(summary, trials), ""
    else:
        found = [t for t in trials if t.number == number]
        if not found:
            held = f"trials 0 to {len(trials) - 1}" if trials else "no trials yet"
            raise NotFoundError(f"study {study!r} has {held}, but not {number}")
        fields = trial_fields(found[0], study)
    traceback = "" if fmt == "json" else _take_traceback(fields)
    click.echo(render_fields(fields, fmt, is_colored=_is_colored()), nl=False)
    if traceback and fmt == "table":
        click.echo(f"\n{traceback.rstrip()}")


def _take_traceback(fields: dict[str, Any]) -> str:
    """The traceback of a failed trial, out of its fields: it has lines of its own."""
    failure = dict(fields.get("failure") or {})
    traceback = str(failure.pop("traceback", ""))
    if failure:
        fields["failure"] = failure
    return traceback


def _print_rows(rows: Sequence[Any], columns: Sequence[str], fmt: Format) -> None:
    from sweep.reporting.display import width_and_color
    from sweep.reporting.tables import render_rows

    width, is_colored = width_and_color(sys.stdout)
    click.echo(render_rows(rows, columns, fmt, width=width, is_colored=is_colored), nl=False)


def _is_colored() -> bool:
    from sweep.reporting.display import width_and_color

    return width_and_color(sys.stdout)[1]
