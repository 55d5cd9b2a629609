"""From hyperparameters to a LightningModule, for the shipped MLP and for the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning
import torch

from sweep import options
from sweep.config import DEFAULT_MODULE
from sweep.imports import import_object
from sweep.training.data import FinalData, SearchData
from sweep.training.mlp import MLPClassifier


def build_module(
    module: str, hyperparameters: Mapping[str, Any], data: SearchData | FinalData, seed: int
) -> lightning.LightningModule:
    """A new module with weights that depend on (hyperparameters, seed) only.

    MLPClassifier is also told the data's shape, classes, mean and standard deviation; a user's
    class gets the hyperparameters as keyword arguments, less those that are the trainer's.
    Raises whatever the class raises for arguments it does not take.
    """
    arguments = {k: v for k, v in hyperparameters.items() if k not in options.TRAINING_ARGUMENTS}
    if module == DEFAULT_MODULE:
        return MLPClassifier(
            in_features=int(torch.Size(data.info.feature_shape).numel()),
            n_classes=data.info.n_classes,
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
