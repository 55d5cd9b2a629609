"""A trial as a population knows it, and the scores of an epoch.

Axes: H units of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sweep.training.optimizers import OptimizerRule
from sweep.trial import derive_seed

Linears = list[tuple[Tensor, Tensor]]
"""(weight (H_out, H_in), bias (H_out)) of each layer."""


@dataclass(slots=True, eq=False)
class Member:
    """A trial in a population: how it trains, and the tensors it joins with."""

    number: int
    hidden: tuple[int, ...]
    """Units of each hidden layer."""
    activation: str
    """One of `sweep.hyperparameters.ACTIVATIONS`."""
    rule: OptimizerRule
    lr: float
    weights: Linears
    """Weights to join with; the population empties the list."""
    schedule: str = "constant"
    """One of `sweep.hyperparameters.SCHEDULES`."""
    clip_norm: float | None = None
    """Largest 2-norm of the gradient; None: no clipping."""
    dropout: float = 0.0
    """Probability of dropping a hidden unit."""
    dropout_seed: int = 0
    epoch: int = 0
    """Epochs trained."""
    states: list[Linears] = field(default_factory=list)
    """Optimizer state to join with, one entry per tensor of state; empty: zeros."""
    best: Linears = field(default_factory=list)
    """Weights of the best epoch to join with; empty: none yet."""

    def dropout_stream(self, index: int, device: torch.device | str = "cpu") -> torch.Generator:
        """The generator of hidden layer `index` in the next epoch, the same as SeededDropout's."""
        layer_seed = derive_seed(self.dropout_seed, "layer", index)
        stream = torch.Generator(device)
        stream.manual_seed(derive_seed(layer_seed, "dropout", self.epoch))
        return stream


@dataclass(frozen=True, slots=True)
class Scores:
    """One trial's metrics of one epoch."""

    train_loss: float
    val_loss: float
    val_acc: float
