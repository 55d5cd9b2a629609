"""What a population is made of: data, and trials with what they bring along.

Axes: F input features, H units, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sweep.training.optimizers import OptimizerRule
from sweep.trial import derive_seed

Linears = list[tuple[Tensor, Tensor]]
"""(weight (H_out, H_in), bias (H_out)) of each layer."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A network's hidden layers."""

    hidden: tuple[int, ...]
    activation: str


@dataclass(frozen=True, slots=True)
class Dropout:
    """Dropout of one trial: probability and the trial's seed."""

    p: float
    seed: int


def dropout_stream(
    dropout: Dropout, index: int, epoch: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """The generator of hidden layer `index` in a trial's epoch `epoch` (from 0), as SeededDropout
    has it."""
    stream = torch.Generator(device)
    layer_seed = derive_seed(dropout.seed, "layer", index)
    stream.manual_seed(derive_seed(layer_seed, "dropout", epoch))
    return stream


@dataclass(frozen=True, slots=True)
class Samples:
    """The data that a population sees, resident on its device."""

    x: Tensor
    """(n_train, ...) as stored."""
    y: Tensor
    """(n_train,) int64."""
    x_val: Tensor
    y_val: Tensor
    mean: float
    std: float
    n_classes: int

    @property
    def n_features(self) -> int:
        """F."""
        return self.x[0].numel()


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """How one trial is trained."""

    number: int
    shape: Shape
    rule: OptimizerRule
    lr: float
    schedule: str = "constant"
    clip_norm: float | None = None
    dropout: Dropout = field(default_factory=lambda: Dropout(0.0, 0))


@dataclass(slots=True, eq=False)
class Member:
    """A trial in a population."""

    recipe: TrainingPlan
    initial: Linears
    """Weights to start with."""
    epoch: int = 0
    """Epochs it has trained."""
    states: list[Linears] = field(default_factory=list)
    """Optimizer state to start with, one entry per tensor of state; empty: zeros."""
    best: Linears = field(default_factory=list)
    """Weights of the best epoch to start with; empty: none yet."""


@dataclass(frozen=True, slots=True)
class Scores:
    """One trial's metrics of one epoch."""

    train_loss: float
    val_loss: float
    val_acc: float
