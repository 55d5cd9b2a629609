"""Members of a population (one per trial), the jobs of an epoch, and their scores.

Axes: H units of a layer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sweep.data.tensors import TensorData
from sweep.training.optimizers import OptimizerRule
from sweep.trial import derive_seed

Linears = list[tuple[Tensor, Tensor]]
"""(weight (H_out, H_in), bias (H_out)) of each layer."""
COST_OF_A_TRIAL = 10_000
"""Fixed cost of a trial's step, in weights: a weight costs about the same in every layer
(benchmarks/NOTES.md)."""


@dataclass(slots=True, eq=False)
class Member:
    """A trial in a population: its training settings, and the tensors it joins with."""

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
    hits: Tensor
    """(n_val,) bool: the validation samples that it got right."""
    losses: Tensor
    """(n_val,): the cross entropy of each."""

    def by_sample(self, metric: str) -> Tensor | None:
        """(n_val,): the values whose mean is that metric; None: it is the mean of no such."""
        return {"val_acc": self.hits, "val_loss": self.losses}.get(metric)


@dataclass(frozen=True, slots=True)
class Job:
    """One epoch of some trials, for one thread."""

    cost: int
    """Estimated time, in the unit of `cost_of`."""
    run: Callable[[], dict[int, Scores]]
    """Trains and validates; scores by trial number."""


def cost_of(data: TensorData, member: Member) -> int:
    """The cost of a trial's step on `data`, in weights."""
    pairs = itertools.pairwise(data.widths(member.hidden))
    return COST_OF_A_TRIAL + sum(n_in * n_out for n_in, n_out in pairs)


def lanes_of(
    members: Iterable[Member], cost: Callable[[Member], int], n: int
) -> list[list[Member]]:
    """Divides trials into at most `n` lanes of about the same cost.

    Longest processing time first, each trial to the shortest lane: at most 4/3 of the optimal
    makespan (Graham, 1969, "Bounds on Multiprocessing Timing Anomalies").
    """
    lanes: list[list[Member]] = [[] for _ in range(n)]
    lengths = [0] * n
    for member in sorted(members, key=lambda m: (-cost(m), m.number)):
        shortest = lengths.index(min(lengths))
        lanes[shortest].append(member)
        lengths[shortest] += cost(member)
    return [lane for lane in lanes if lane]
