"""`sweep best`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sweep.cli.options import expanded, study_argument, where, where_options

FORMATS = ("yaml", "json", "lightning-cli", "lightning", "python")


@click.command(short_help="The best configuration, to reuse.")
@study_argument
@click.option("--trial", type=click.IntRange(0), help="This trial instead.", metavar="N")
@click.option("--format", "fmt", type=click.Choice(FORMATS),
              help="yaml is for `sweep train --config`. [default: yaml]")  # fmt: skip
@click.option("--log-model", is_flag=True,
              help="Log its model to MLflow if it has none; its URI goes to stderr.")  # fmt: skip
@click.option("--ensemble", type=click.IntRange(1), is_flag=False, flag_value=10, metavar="[N]",
              help="Instead: the mean of up to N models (10) that is best on validation, exported "
              "as one. Nothing is trained.")  # fmt: skip
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
              callback=expanded,
              help="Folder for it. [default: ensemble, in the study's folder]")  # fmt: skip
@where_options
def best(
    study: str | None, trial: int | None, fmt: str | None, log_model: bool, ensemble: int | None,
    output: Path | None, **flags: Any,
) -> None:  # fmt: skip
    """Print the best configuration of STUDY (of the only one, where it is left out).

    \b
    Examples:
      sweep best digits-mlp > best.yaml
      sweep best digits-mlp --format python
      sweep best digits-mlp --trial 12 --log-model
      sweep best digits-mlp --ensemble --output ensemble
    """
    import dataclasses

    from sweep.errors import SweepError
    from sweep.reuse import find_trial
    from sweep.reuse.recipe import FORMATS as WRITERS

    if output is not None and ensemble is None:
        raise click.UsageError("--output is for --ensemble; a configuration is printed")
    if ensemble is not None:
        others = {"--trial": trial is not None, "--format": fmt is not None,
                  "--log-model": log_model}  # fmt: skip
        if unfit := [flag for flag, is_given in others.items() if is_given]:
            raise click.UsageError(f"{unfit[0]} is for a configuration: leave out --ensemble")
        _ensemble(study, ensemble, output, where(flags))
        return
    found = find_trial(study, trial, where(flags))
    if log_model:
        click.echo(found.log_model(), err=True)
    try:
        recipe = dataclasses.replace(found.recipe, run_id=found.run_id)
    except SweepError:  # the configuration is here, also if MLflow is away
        recipe = found.recipe
    click.echo(WRITERS[fmt or "yaml"](recipe), nl=False)


def _ensemble(study: str | None, most: int, output: Path | None, config: Any) -> None:
    from sweep.reuse.ensemble import make_ensemble
    from sweep.reuse.export import in_words

    made = make_ensemble(study, config, most, output)
    assert made.exported is not None
    members = ", ".join(f"{number}{f' x{n}' if n > 1 else ''}" for number, n in made.members)
    click.echo(f"{made.exported.file}: trials {members}, of {made.n_candidates} candidates")
    click.echo(
        f"{made.metric} {made.score:.6g} on {made.n_samples:,} validation samples (the best "
        f"single model: {made.best:.6g})"
    )
    click.echo(f"largest difference from its checkpoints: {in_words(made.exported.differences)}")
    for note in made.notes:
        click.echo(f"  {note}")
