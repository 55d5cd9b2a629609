"""A recipe's module: as a task for a trainer, and as a trained module from a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor

from sweep.config.settings import RunConfig
from sweep.data.catalog import MODULES_OWN, is_custom
from sweep.data.datamodule import SweepData
from sweep.errors import ConfigError
from sweep.hyperparameters import DEFAULT_MODULE
from sweep.reuse.recipe import Recipe, class_path
from sweep.search.tasks import make_task
from sweep.training.mlp import MLPClassifier
from sweep.training.plain.fitting import first_batch
from sweep.training.project.project import Project
from sweep.trial import DatasetInfo, Task, TrialSpec

N_ROWS = 1000
"""Random rows of a built-in network's input."""


def task_of(recipe: Recipe, config: RunConfig, work_dir: Path) -> Task:
    """The training of a recipe, on the machine of `config`."""
    return dataclasses.replace(
        make_task(config), module=recipe.module, kind=recipe.kind, data=recipe.data,
        seed=recipe.seed, epochs=recipe.epochs, batch_size=recipe.batch_size,
        precision=recipe.precision, metric="",
        work_dir=str(work_dir), names=tuple(recipe.model), config=recipe.config,
        callbacks=recipe.callbacks,
    )  # fmt: skip


def load(recipe: Recipe, config: RunConfig, checkpoint: Path) -> lightning.LightningModule:
    """The module on the CPU, in evaluation mode.

    A user's module is built from the recipe, as for its trial, and the weights are loaded into
    it: whatever `save_hyperparameters` took does not matter. Raises any error of the user's code.
    """
    if recipe.kind == "objective":
        raise ConfigError(f"{recipe.module} is an objective function: it leaves no module")
    if recipe.module == DEFAULT_MODULE:
        loaded: lightning.LightningModule = MLPClassifier.load_from_checkpoint(
            checkpoint, map_location="cpu", weights_only=True
        )
        return loaded.eval()
    module = untrained(recipe, config)
    kept = torch.load(checkpoint, map_location="cpu", weights_only=True)
    module.load_state_dict(kept["state_dict"])
    return module.eval()


def untrained(recipe: Recipe, config: RunConfig) -> lightning.LightningModule:
    """The module as it is built for a trial. Raises any error of the user's code."""
    if recipe.module == DEFAULT_MODULE:
        return MLPClassifier(**recipe.model, **recipe.data_arguments)
    project = Project(task_of(recipe, config, config.study_dir))
    with torch.random.fork_rng(devices=[]):
        return project.module(recipe.model)


def input_rows(recipe: Recipe, config: RunConfig, dataset: DatasetInfo | None) -> Tensor | None:
    """Rows (n, ...) of the module's input; None if its minibatches do not begin with a tensor.

    For MLPClassifier random ones with the data's mean and deviation, for a user's module the
    first minibatch of its training. Raises any error of the user's code.
    """
    if recipe.module == DEFAULT_MODULE and dataset is not None:
        drawn = torch.randn((N_ROWS, *dataset.feature_shape), generator=torch.Generator())
        return dataset.mean + dataset.std * drawn
    task = task_of(recipe, config, config.study_dir)
    batch = first_batch(Project(task).built(TrialSpec(0, recipe.model, 0)))
    x = batch[0] if isinstance(batch, list | tuple) and batch else batch
    return x if isinstance(x, Tensor) and x.ndim else None


def data_of_recipe(recipe: Recipe, config: RunConfig) -> Any:
    """See `Best.data`. Raises any error of the user's code."""
    if recipe.kind == "module" and not is_custom(recipe.data):
        if recipe.data == MODULES_OWN:
            return None
        return SweepData(
            recipe.data, batch_size=recipe.batch_size, seed=recipe.seed, data_dir=config.data_dir
        )
    return Project(task_of(recipe, config, Path())).made_data(recipe.model)


def sections(recipe: Recipe) -> dict[str, Any]:
    """Model, data, trainer, optimizer and lr_scheduler of a user's module, in LightningCLI's form.

    Raises ConfigError for code that cannot be imported.
    """
    trees = Project(task_of(recipe, RunConfig(), Path())).trees(recipe.model)
    found: dict[str, Any] = {"model": _named(recipe.module, trees["model"])}
    if is_custom(recipe.data):
        found["data"] = _named(recipe.data, trees["data"])
    callbacks = [*trees["trainer"].pop("callbacks", []), *map(class_path, recipe.callbacks)]
    if callbacks:
        trees["trainer"]["callbacks"] = [_named(c) if isinstance(c, str) else c for c in callbacks]
    return found | {name: tree for name, tree in trees.items() if tree and name not in found}


def _named(path: str, arguments: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"class_path": class_path(path)} | ({"init_args": arguments} if arguments else {})
