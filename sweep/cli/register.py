"""`sweep register`."""

from __future__ import annotations

import shlex
from typing import Any

import click

from sweep.cli.options import where, where_options


@click.command(short_help="A trial's model in MLflow's registry; the better one is champion.")
@click.argument("study")
@click.argument("name")
@click.argument("trial", required=False, type=click.IntRange(0))
@where_options
def register(study: str, name: str, trial: int | None, **flags: Any) -> None:
    """Register the model of STUDY's best trial, or of TRIAL, as a version of NAME.

    The alias `champion` moves to it if its score beats the present champion's; otherwise it is
    the `challenger`. Scores of another metric, kind or data are not compared. The version's
    description is a model card.

    \b
    Examples:
      sweep register digits-mlp digits
      sweep register digits-mlp digits 12
      mlflow models serve -m models:/digits@champion --env-manager local
    """
    from sweep.reuse import find_trial

    found = find_trial(study, trial, where(flags))
    done = found.register(name)
    click.echo(f"{done.uri}: trial {found.trial} of {found.study} is the {done.alias}: {done.why}")
    model = shlex.quote(f"models:/{name}@{done.alias}")
    click.echo(f"Serve it:  mlflow models serve -m {model} --env-manager local")
