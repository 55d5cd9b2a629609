"""`sweep stop`, `sweep prune`, `sweep enqueue`, `sweep extend`: steer a search from elsewhere."""

from __future__ import annotations

from typing import Any

import click

from sweep.cli.options import study_argument, where_options


@click.command(short_help="Stop a search that runs elsewhere, as Ctrl-C does.")
@study_argument
@where_options
def stop(study: str | None, **flags: Any) -> None:
    """Stop the search of STUDY from another terminal or machine, as one Ctrl-C does.

    Its trials are saved at their next report, and the same `sweep run` goes on.

    \b
    Example:
      sweep stop digits-mlp
    """
    from sweep import api

    click.echo(api.stop(study, **flags))


@click.command(short_help="End a running trial of a search.")
@click.argument("what", metavar="[STUDY] TRIAL", nargs=-1, required=True)
@where_options
def prune(what: tuple[str, ...], **flags: Any) -> None:
    """End an unfinished trial of STUDY as PRUNED, and keep what it has reached.

    A running one ends at its next report, an interrupted one as soon as a search takes it up.

    \b
    Examples:
      sweep prune digits-mlp 17
      sweep prune 17
    """
    from sweep import api

    *study, trial = what
    if len(study) > 1 or not trial.isdigit():
        raise click.UsageError(f"say a study and the number of a trial, not {' '.join(what)!r}")
    click.echo(api.prune(study[0] if study else None, int(trial), **flags))


@click.command(short_help="Train a configuration of yours next.")
@click.argument("what", metavar="[STUDY] NAME=VALUE ...", nargs=-1, required=True)
@where_options
def enqueue(what: tuple[str, ...], **flags: Any) -> None:
    """Queue a configuration in STUDY; it is trained before the sampler is asked again.

    Values that are not named are drawn at random. The trial counts as one of --trials.

    \b
    Examples:
      sweep enqueue digits-mlp lr=1e-3 optimizer=Adam
      sweep enqueue digits-mlp 'hidden=[256,128]' lr=0.01
    """
    from sweep import api

    study = None if "=" in what[0] else what[0]
    values = what if study is None else what[1:]
    if not values:
        raise click.UsageError("name a value, such as lr=1e-3")
    click.echo(api.enqueue(study, values, **flags))


@click.command(short_help="Give a search more trials.")
@study_argument
@click.option("--trials", type=click.IntRange(1), required=True, metavar="N",
              help="Finished trials that the study is to have in all.")  # fmt: skip
@where_options
def extend(study: str | None, trials: int, **flags: Any) -> None:
    """Raise the number of trials of STUDY, for a search that runs and for later ones.

    \b
    Example:
      sweep extend digits-mlp --trials 100
    """
    from sweep import api

    click.echo(api.extend(study, trials, **flags))
