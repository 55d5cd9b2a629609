"""Builds LightningModules from hyperparameters: the built-in MLP or a user's class."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden

from sweep import hyperparameters as options
from sweep.errors import must_be_one_of
from sweep.hyperparameters import DEFAULT_MODULE
from sweep.loading import import_object
from sweep.training.mlp import MLPClassifier
from sweep.trial import DatasetInfo


def build_module(
    module: str, hyperparameters: Mapping[str, Any], data: DatasetInfo, seed: int
) -> lightning.LightningModule:
    """A new module whose weights depend on (hyperparameters, seed) only.

    MLPClassifier also gets the data's shape, classes, mean and standard deviation. A user's class
    gets the hyperparameters as keyword arguments, without the trainer's `TRAINING_ARGUMENTS`.
    Raises TypeError if the result is no LightningModule, and any error of the class.
    """
    arguments = {k: v for k, v in hyperparameters.items() if k not in options.TRAINING_ARGUMENTS}
    if module == DEFAULT_MODULE:
        return MLPClassifier(
            in_features=int(torch.Size(data.feature_shape).numel()),
            n_classes=data.n_classes,
            input_mean=data.mean,
            input_std=data.std,
            seed=seed,
            **arguments,
        )
    user_class = import_object(module, "--module")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = user_class(**arguments)
    if not isinstance(built, lightning.LightningModule):
        raise TypeError(f"{module} must be a LightningModule, but is a {type(built).__name__}")
    return built


def has_own_loaders(module: lightning.LightningModule) -> bool:
    """Whether the module defines `train_dataloader`, and so ignores the study's data."""
    return is_overridden("train_dataloader", module)


def sample_shape(module: lightning.LightningModule, of_data: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a sample in the module's own validation (or training) loader, else `of_data`.

    Raises TypeError for batches without a leading tensor, and any error of the loader.
    """
    if not has_own_loaders(module):
        return of_data
    is_validated = is_overridden("val_dataloader", module)
    loader = module.val_dataloader() if is_validated else module.train_dataloader()
    batch = next(iter(loader[0] if isinstance(loader, list | tuple) else loader))
    x = batch[0] if isinstance(batch, list | tuple) else batch
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"a batch must be a tensor or start with one, but is {type(x).__name__}")
    return tuple(x.shape[1:])


def argument_faults(module: str, made_by: Any, names: Collection[str]) -> list[str]:
    """One sentence for each hyperparameter unknown to a user's module or missing for it.

    Args:
        module: Its name, `package.module:name`.
        made_by: The class, or a function returning a module.
        names: Hyperparameters of the search space.
    """
    if inspect.isclass(made_by) and not issubclass(made_by, lightning.LightningModule):
        return [f"{module} must be a LightningModule of the package lightning, but is none"]
    try:
        parameters = inspect.signature(made_by).parameters.values()
    except (TypeError, ValueError):  # not callable, or written in C
        return [] if callable(made_by) else [f"{module} must be a class or a function"]
    given = [name for name in names if name not in options.TRAINING_ARGUMENTS]
    takes = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    unknown = [name for name in given if name not in takes and not takes_any]
    what = f"a hyperparameter of {module}"
    faults = [
        must_be_one_of(what, name, takes)
        if takes
        else f"{module} takes no {name!r}, nor any other"
        for name in unknown
    ]
    for p in parameters:
        is_needed = p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        if is_needed and p.kind is p.POSITIONAL_ONLY:
            faults.append(f"{module} takes {p.name!r} by position only, but gets keywords")
        elif is_needed and p.name not in given:
            is_trainers = p.name in options.TRAINING_ARGUMENTS
            why = (
                "is the trainer's: give it a default"
                if is_trainers
                else ("the search space does not give: add it under parameters or fixed")
            )
            faults.append(f"{module} needs {p.name!r}, which {why}")
    return faults
