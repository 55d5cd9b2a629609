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
from sweep.config.resolving import resolve
from sweep.config.settings import PLACES, flag_name
from sweep.errors import OUT_OF_TIME, ConfigError, StudyInterrupted
from sweep.redact import redacted

EXIT_CODES = {"interrupted": StudyInterrupted.exit_code, "timeout": OUT_OF_TIME}
UNFINISHED = ("interrupted", "timeout", "failed")
"""Ends of a search with trials left to train."""


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
@click.option("--confirm", "is_confirmed", is_flag=True,
              help="Afterwards `sweep confirm`: the best five on five fresh seeds.")  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="Print the summary only.")
@click.option("-v", "--verbose", is_flag=True, help="Print a line per epoch too.")
def run(
    config_file: Path | None, only_print: bool, dry_run: bool, fork: str | None,
    is_confirmed: bool, quiet: bool, verbose: bool, **flags: Any,
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
    code = finish(resolved.config, search(resolved.config, space, extras, verbosity))
    if is_confirmed and code == 0:
        from sweep.cli.confirm import confirm_study

        places = {name: getattr(resolved.config, name) for name in PLACES}
        confirm_study(resolved.config.study_name, **places)
    return code


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
    from sweep.reporting.display import width_and_color
    from sweep.reporting.summary import end_summary

    going_on = None
    if outcome.end.reason in UNFINISHED:
        going_on = _going_on(dataclasses.replace(config, trials=outcome.study.n_trials))
    lines = end_summary(config, outcome, going_on, width_and_color(sys.stdout)[0])
    click.echo("\n".join(lines), file=sys.stdout)
    return EXIT_CODES.get(outcome.end.reason, 0)


def _going_on(config: Any) -> str:
    """The shortest `sweep run` to continue the search, without passwords.

    It has flags only for settings that neither the environment nor the stored study gives.
    """
    from sweep.search.study import VOLATILE, stored_config

    flags: dict[str, Any] = {}
    known = resolve({}).config
    for name in ("storage", "study_name"):
        if getattr(config, name) != getattr(known, name):
            flags[name.removesuffix("_name")] = getattr(config, name)
    known = resolve(flags, stored=stored_config(config)).config
    if config.resolved_direction == known.resolved_direction:
        config = dataclasses.replace(config, direction=known.direction)  # the study keeps it
    flags |= {
        field.name: value
        for field in dataclasses.fields(config)
        if (value := getattr(config, field.name)) != getattr(known, field.name)
        and field.name not in VOLATILE
    }
    words = ["sweep", "run"]
    for name, value in sorted(flags.items(), key=lambda item: item[0] != "study"):
        flag = flag_name(name)
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif value is not None:
            words += [flag, redacted(str(value).removesuffix(".0"))]
    return shlex.join(words)


def _dry_run(config: Any, space: Any) -> int:
    from sweep.data import catalog as datasets
    from sweep.search.study import first_configurations
    from sweep.space import run_name, sample

    click.echo(
        f"study {config.study_name}: {config.trials} trials of at most {config.epochs} epochs on "
        f"{config.data}, space {space.name}, sampler {config.sampler}, pruner {config.pruner}"
    )
    if config.data in datasets.dataset_names():
        status = datasets.status(config.data, config.data_dir)
        click.echo(f"data: {'ready' if status.is_ready else 'to be fetched'} ({status.location})")
    first = [configuration for configuration, _ in first_configurations(config, space)]
    click.echo("first trials, then examples of what the space holds:")
    for number, configuration in enumerate([*first, *sample(space, 5, config.seed)]):
        click.echo(f"  {run_name(number, configuration)}")
    return 0
