"""`sweep run`."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from sweep.cli.options import GroupedCommand, config_options, expanded, print_config
from sweep.config.settings import flag_name, resolve
from sweep.errors import OUT_OF_TIME, ConfigError, StudyInterrupted
from sweep.redact import redacted

EXIT_CODES = {"interrupted": StudyInterrupted.exit_code, "timeout": OUT_OF_TIME}
UNFINISHED = ("interrupted", "timeout", "failed")
"""Ends of a search with trials left to train."""
NEXT_IF_DONE = (
    "study {name} already has {n} finished trials: nothing to do for --trials {total}. {hint}"
)


@click.command(cls=GroupedCommand, short_help="Search: run or continue a study.")
@config_options()
@click.option("--config", "config_file", type=click.Path(dir_okay=False, path_type=Path),
              callback=expanded,
              help="YAML file with these settings, under the flags' names.")  # fmt: skip
@click.option("--print-config", "only_print", is_flag=True,
              help="Show every setting and where it came from, then leave.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Show what would be tried, then leave.")
@click.option("--fork", metavar="NEW",
              help="Start study NEW; trials of --study that fit inform its sampler.")  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="Print the summary only.")
@click.option("-v", "--verbose", is_flag=True, help="Print a line per epoch too.")
def run(
    config_file: Path | None, only_print: bool, dry_run: bool, fork: str | None, quiet: bool,
    verbose: bool, **flags: Any,
) -> int:  # fmt: skip
    """Run a search, or continue it: --trials is the study's total.

    \b
    Examples:
      sweep run --trials 50
      sweep run --trials 50 --data mnist
      sweep run --trials 20 --space mlp_regularized --pruner asha
      sweep run --study digits-mlp --trials 100      # go on with an older study
      sweep run --study digits-mlp --space mine.yaml --fork digits-mine
    """
    if not (only_print or dry_run or quiet):
        with contextlib.suppress(ConfigError):  # said below, with the faults of the space
            announce(fork or resolve(flags, file=config_file).config.study_name)
    from sweep import api

    extras = None
    if fork is None:
        resolved, space = api.prepare(flags, config_file)
    else:
        resolved, space, extras, told = api.fork(flags, config_file, fork)
        click.echo("\n".join(told), err=True)
    if only_print:
        print_config(resolved)
        return 0
    if dry_run:
        return _dry_run(resolved.config, space)
    verbosity = -1 if quiet else int(verbose)
    return finish(resolved.config, search(resolved.config, space, extras, verbosity))


def search(config: Any, space: Any, extras: Any = None, verbosity: int = 0) -> Any:
    """Search with a display on standard output; its outcome."""
    from sweep import api
    from sweep.reporting.display import make_display

    display = make_display(sys.stdout, verbosity)
    return api.search_with(config, space, [display], extras, display.acknowledge)


def announce(name: str) -> None:
    """A line before the slow imports (seconds)."""
    from sweep.reporting import display

    display.announce(sys.stdout, f"{name}: loading Optuna, MLflow and PyTorch ...")


def finish(config: Any, outcome: Any) -> int:
    """Print the summary of a search; returns the exit code."""
    from sweep.reporting.display import for_stream, width_and_color
    from sweep.reporting.summary import end_summary

    n_done = outcome.study.n_done
    if outcome.n_new == 0 and n_done >= config.trials:
        hint = f"Ask for more, e.g. with --trials {n_done + 50}."
        if outcome.n_to_retry:
            hint += f" Try failed trials again with `sweep retry {config.study_name}`."
        click.echo(
            NEXT_IF_DONE.format(name=config.study_name, n=n_done, total=config.trials, hint=hint)
        )
    best_name = str(outcome.best.result.get("name", "")) if outcome.best else ""
    places = {
        "MLflow": redacted(config.tracking_uri),
        "Optuna": redacted(config.storage),
        "checkpoints": str(config.study_dir),
    }
    lines = end_summary(
        outcome.study, outcome.end, best_name=best_name, places=places,
        commands=_commands(config, outcome), unsaved=outcome.unsaved,
        width=width_and_color(sys.stdout)[0],
    )  # fmt: skip
    click.echo(for_stream("\n".join(lines), sys.stdout))
    return EXIT_CODES.get(outcome.end.reason, 0)


def _commands(config: Any, outcome: Any) -> list[tuple[str, str]]:
    from sweep.config.settings import RunConfig
    from sweep.hyperparameters import DEFAULT_MODULE
    from sweep.reporting.summary import next_commands

    return next_commands(
        config.study_name,
        config.data if config.module == DEFAULT_MODULE else None,
        data_dir=config.data_dir,
        storage=_unknown(config, "storage"),
        tracking_uri=_unknown(config, "tracking_uri"),
        is_default_store=config.tracking_uri == RunConfig().tracking_uri,
        has_best=outcome.best is not None,
        has_failed=outcome.end.n_by_state.get("FAIL", 0) > 0,
        n_to_retry=outcome.n_to_retry,
        going_on=_going_on(config) if outcome.end.reason in UNFINISHED else None,
    )


def _going_on(config: Any) -> str:
    """The shortest `sweep run` to continue the search, without passwords.

    It has flags only for settings that neither the environment nor the stored study gives.
    """
    from sweep.search.study import VOLATILE, stored_config

    flags = {"storage": _unknown(config, "storage")}
    if resolve({}).config.study_name != config.study_name:
        flags["study"] = config.study_name
    known = resolve(flags, stored=stored_config(config)).config
    if config.resolved_direction == known.resolved_direction:
        config = dataclasses.replace(config, direction=known.direction)  # the study keeps it
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in VOLATILE and value != getattr(known, field.name):
            flags[field.name] = value
    words = ["sweep", "run"]
    for name, value in sorted(flags.items(), key=lambda item: item[0] != "study"):
        flag = flag_name(name)
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif value is not None:
            words += [flag, redacted(str(value).removesuffix(".0"))]
    return shlex.join(words)


def _unknown(config: Any, field: str) -> str | None:
    """A setting, or None if other commands in this shell have it without a flag."""
    value = getattr(config, field)
    return None if getattr(resolve({}).config, field) == value else str(value)


def _dry_run(config: Any, space: Any) -> int:
    from sweep.data import catalog as datasets
    from sweep.search.study import first_configurations
    from sweep.space import run_name, sample

    click.echo(
        f"study {config.study_name}: {config.trials} trials of at most {config.epochs} epochs on "
        f"{config.data}, space {space.name}, sampler {config.sampler}, pruner {config.pruner}"
    )
    if not datasets.is_custom(config.data):
        status = datasets.status(config.data, config.data_dir)
        click.echo(f"data: {'ready' if status.is_ready else 'to be fetched'} ({status.location})")
    first = [configuration for configuration, _ in first_configurations(config, space)]
    click.echo("first trials, then examples of what the space holds:")
    for number, configuration in enumerate([*first, *sample(space, 5, config.seed)]):
        click.echo(f"  {run_name(number, configuration)}")
    return 0
