"""`sweep best`."""

from __future__ import annotations

from typing import Any

import click

from sweep.cli.options import study_argument, where, where_options

FORMATS = ("yaml", "json", "lightning-cli", "lightning", "python")


@click.command(short_help="The best configuration, to reuse.")
@study_argument
@click.option("--trial", type=click.IntRange(0), help="This trial instead.", metavar="N")
@click.option("--format", "fmt", type=click.Choice(FORMATS), default="yaml",
              help="yaml is for `sweep train --config`. [default: yaml]")  # fmt: skip
@click.option("--log-model", is_flag=True,
              help="Log its model to MLflow if it has none; its URI goes to stderr.")  # fmt: skip
@where_options
def best(study: str | None, trial: int | None, fmt: str, log_model: bool, **flags: Any) -> None:
    """Print the best configuration of STUDY (of the only one, where it is left out).

    \b
    Examples:
      sweep best digits-mlp > best.yaml
      sweep best digits-mlp --format python
      sweep best digits-mlp --trial 12 --log-model
    """
    import dataclasses

    from sweep.errors import SweepError
    from sweep.reuse import find_trial
    from sweep.reuse.recipe import FORMATS as WRITERS

    found = find_trial(study, trial, where(flags))
    if log_model:
        click.echo(found.log_model(), err=True)
    try:
        recipe = dataclasses.replace(found.recipe, run_id=found.run_id)
    except SweepError:  # the configuration is here, also if MLflow is away
        recipe = found.recipe
    click.echo(WRITERS[fmt](recipe), nl=False)
