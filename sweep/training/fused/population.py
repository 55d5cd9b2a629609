"""A population: trials that see the same minibatches.

On a CPU the compiled kernel trains them where there is one and it knows all that they need
(`compiled`); others are stacked (`stacked`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import torch

from sweep.data.tensors import TensorData
from sweep.training.compiled.kernel import Kernel
from sweep.training.compiled.trials import CompiledTrials, is_for_kernel
from sweep.training.members import Linears, Member, Scores
from sweep.training.stacked.trials import StackedTrials

COST_OF_A_TRIAL = 10_000
"""Of a trial's step, in weights, which cost about the same in all layers (benchmarks/NOTES.md)."""


class Population:
    """Trials that see the same minibatches of `batch_size`.

    Args:
        data: Training and validation samples; their device is the population's.
        batch_size: B; the last minibatch of an epoch may be smaller.
        n_epochs: Epochs of a whole trial, what schedules run over.
        epoch: Population epoch to start with.
        dtype: Of weights and activations.
        kernel: Trains what it knows; None: everything is stacked.
    """

    def __init__(
        self,
        data: TensorData,
        batch_size: int,
        n_epochs: int,
        epoch: int = 0,
        dtype: torch.dtype = torch.float32,
        kernel: Kernel | None = None,
    ) -> None:
        self.batch_size, self.epoch, self._data = batch_size, epoch, data
        self.kernel, self._dtype = kernel, dtype
        self._n_epochs = n_epochs
        self._parts: list[CompiledTrials | StackedTrials] = []
        self._part_of: dict[int, CompiledTrials | StackedTrials] = {}

    @property
    def members(self) -> list[Member]:
        """All trials."""
        return [member for part in self._parts for member in part.members]

    def change(self, leaving: Iterable[int] = (), joining: Sequence[Member] = ()) -> None:
        """Let trials leave (by number) and join; the others keep their exact state."""
        gone = set(leaving)
        if not self._parts:
            self._parts = self._new_parts()
        compiled = [m for m in joining if self._is_for_kernel(m)]
        stacked = [m for m in joining if not self._is_for_kernel(m)]
        for part in self._parts:
            part.change(gone, compiled if isinstance(part, CompiledTrials) else stacked)
        self._part_of = {m.number: part for part in self._parts for m in part.members}

    def train_epoch(self) -> None:
        """One epoch of every trial; their losses stay on the device until `evaluate`."""
        order = self._data.order(self.epoch).to(self._data.train.x.device)
        for part in self._parts:
            part.train_epoch(order)
        self.epoch += 1

    def evaluate(self) -> dict[int, Scores]:
        """Metrics of the epoch just trained by trial number."""
        return {n: scores for part in self._parts for n, scores in part.evaluate().items()}

    def keep_best(self, numbers: Iterable[int]) -> None:
        """Remember the weights that these trials have now."""
        for number in numbers:
            self._part_of[number].keep_best(number)

    def cost(self, member: Member) -> int:
        """What a step of the trial costs, in weights."""
        widths = self._data.widths(member.hidden)
        return COST_OF_A_TRIAL + sum(n_in * n_out for n_in, n_out in itertools.pairwise(widths))

    def has(self, number: int) -> bool:
        """Whether the trial has a place here (one that joins has it after `change`)."""
        return number in self._part_of

    def weights(self, number: int) -> Linears:
        """Views of a trial's weights, which the next epoch overwrites."""
        return self._part_of[number].weights(number)

    def best_weights(self, number: int) -> Linears:
        """Views of what `keep_best` kept last (zeros before)."""
        return self._part_of[number].best_weights(number)

    def states(self, number: int) -> list[Linears]:
        """Views of a trial's optimizer state."""
        return self._part_of[number].states(number)

    def save(self, member: Member) -> None:
        """Give a trial that is to leave its weights and optimizer state to take along."""
        number = member.number
        member.weights = _copies(self.weights(number))
        member.best = _copies(self.best_weights(number))
        member.states = [_copies(linears) for linears in self.states(number)]

    def _new_parts(self) -> list[CompiledTrials | StackedTrials]:
        given = self._data, self.batch_size, self._n_epochs, self._dtype
        compiled = [] if self.kernel is None else [CompiledTrials(self.kernel, *given)]
        return [*compiled, StackedTrials(*given)]

    def _is_for_kernel(self, member: Member) -> bool:
        return self.kernel is not None and is_for_kernel(member, self._data, self.batch_size)


def _copies(linears: Linears) -> Linears:
    return [(weight.clone(), bias.clone()) for weight, bias in linears]
