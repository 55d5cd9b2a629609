"""`sweep train`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from sweep.cli.options import config_options, expanded
from sweep.trial import EPOCHS_DONE

WHAT = ("study", "data", "epochs", "batch_size", "seed", "precision")
HOW = ("data_dir", "accelerator", "devices", "threads", "storage", "tracking_uri", "work_dir")


@click.command(short_help="Train one configuration on train + validation; test it.")
@click.option("--config", "config_file", type=click.Path(dir_okay=False, path_type=Path),
              callback=expanded, help="What `sweep best` printed.")  # fmt: skip
@click.option("--trial", type=click.IntRange(0), metavar="N",
              help="With --study: this trial instead of the best.")  # fmt: skip
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              callback=expanded,
              help="The checkpoint. [default: trained.ckpt in the study's folder]")  # fmt: skip
@config_options((*WHAT, *HOW))
@click.option("--keep-val/--join-val", default=None,
              help="Keep validation apart, or train on it too. [default: train on it, unless a "
              "callback or schedule of the module watches it]")  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="Print the test result only.")
def train(
    config_file: Path | None, trial: int | None, output: Path | None, keep_val: bool | None,
    quiet: bool, **flags: Any,
) -> None:  # fmt: skip
    """Train a configuration on train + validation, then open the test split once.

    \b
    Examples:
      sweep train --config best.yaml
      sweep train --config best.yaml --data mnist --epochs 15
      sweep train --study digits-mlp
    """
    from sweep.config.resolving import resolve
    from sweep.data import catalog as datasets
    from sweep.errors import ConfigError

    if (config_file is None) == (flags["study"] is None):
        raise ConfigError("give one of --config FILE and --study NAME")
    resolved = resolve(flags)
    recipe, config = _recipe(config_file, trial, resolved.config)
    given = [k for k in WHAT if k != "study" and resolved.origins[k] != "default"]
    recipe = dataclasses.replace(recipe, **{k: getattr(resolved.config, k) for k in given})
    datasets.prepare(recipe.data, config.data_dir)
    if output is None:
        output = Path(config.work_dir) / (recipe.study or f"{recipe.data}-train") / "trained.ckpt"
    output.parent.mkdir(parents=True, exist_ok=True)
    _train(recipe, config, output, keep_val, quiet=quiet)


def _recipe(config_file: Path | None, trial: int | None, config: Any) -> tuple[Any, Any]:
    from sweep.reuse import find_trial, read_recipe

    if config_file is not None:
        return read_recipe(config_file), config
    found = find_trial(config.study, trial, config)
    return dataclasses.replace(found.recipe, run_id=found.run_id), found.where


def _train(recipe: Any, config: Any, output: Path, keep_val: bool | None, *, quiet: bool) -> None:
    from sweep.reuse.final_training import train as train_downstream

    def say(epoch: float, metrics: Mapping[str, float]) -> None:
        numbers = " ".join(f"{k}={v:.4g}" for k, v in metrics.items() if k != EPOCHS_DONE)
        click.echo(f"epoch={epoch:g}/{recipe.epochs} {numbers}")

    def warn(message: str) -> None:
        click.echo(f"sweep: {message}", err=True)

    earlier = " (replaced an earlier one)" if output.exists() else ""
    hooks = None if quiet else say, warn
    trained = train_downstream(recipe, config, output, *hooks, keep_val=keep_val)
    for name, value in trained.metrics.items():
        click.echo(f"{name}={value:.4f}")
    click.echo(f"checkpoint: {trained.checkpoint}{earlier}")
    click.echo(f"MLflow run: {trained.run_id}")
