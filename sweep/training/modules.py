"""The built-in MLP from hyperparameters, and what a module brings along itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden

from sweep.hyperparameters import TRAINING_ARGUMENTS
from sweep.training.mlp import MLPClassifier
from sweep.trial import DatasetInfo


def build_mlp(hyperparameters: Mapping[str, Any], data: DatasetInfo, seed: int) -> MLPClassifier:
    """A new network that fits the data; its weights depend on (hyperparameters, seed) only."""
    arguments = {k: v for k, v in hyperparameters.items() if k not in TRAINING_ARGUMENTS}
    return MLPClassifier(
        in_features=int(torch.Size(data.feature_shape).numel()),
        n_classes=data.n_classes,
        input_mean=data.mean,
        input_std=data.std,
        seed=seed,
        **arguments,
    )


def has_own_loaders(module: lightning.LightningModule) -> bool:
    """Whether the module defines `train_dataloader`, and so ignores the study's data."""
    return is_overridden("train_dataloader", module)
