"""`sweep reproduce`."""

from __future__ import annotations

from typing import Any

import click

from sweep.cli.options import study_and_trial, where, where_options


@click.command(short_help="Train a trial again: is its curve the same?")
@click.argument("what", metavar="[STUDY] TRIAL", nargs=-1, required=True)
@where_options
def reproduce(what: tuple[str, ...], **flags: Any) -> int:
    """Train TRIAL of STUDY again as it was recorded, and compare the curves.

    Seed, order of the data and settings are those of its time. It trains in a temporary folder;
    the study and MLflow are only read. What is not as it was then, in code, data, versions or
    device, is one line each. The exit code is 0 for the same curve (to 1e-6), 1 for another.

    \b
    Examples:
      sweep reproduce digits-mlp 17
      sweep reproduce 17
    """
    from sweep.reuse.reproducing import reproduce_trial

    study, trial = study_and_trial(what)
    if trial is None:
        raise click.UsageError(f"say a study and the number of a trial, not {' '.join(what)!r}")
    done = reproduce_trial(study, trial, where(flags))
    for line in done.said:
        click.echo(f"sweep: {line}", err=True)
    click.echo(done.verdict)
    for line in done.changed:
        click.echo(f"  {line}")
    if not done.is_same and not done.changed:
        click.echo("  code, data, versions and device are as they were, as far as is recorded")
    return 0 if done.is_same else 1
