"""Trials of a population trained by the compiled kernel, each in memory of its own.

Nothing is stacked or padded: to the last bit, a trial's curve is independent of other trials.
Axes: F input features, H units, C classes.
"""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from sweep.data.tensors import Split, TensorData
from sweep.hyperparameters import ACTIVATIONS
from sweep.training.compiled.kernel import KINDS, MOST_LAYERS, CBatches, Kernel, Trial, stride
from sweep.training.members import Job, Linears, Member, Scores, cost_of, lanes_of
from sweep.training.optimizers import learning_rates

GROUP_BYTES = 4_000_000
"""Most bytes of weights and optimizer states in a group. Trials of a group take turns within a
minibatch: they share its inputs, and their weights stay in the last-level cache
(benchmarks/NOTES.md)."""
WORK_A_CALL = 2e10
"""Floating-point operations per kernel call, 0.1 s: then Python regains control."""
LEAST_SAMPLES = 16
"""Smallest minibatch in estimates of work: below it the optimizer dominates, and its work does not
depend on the minibatch."""
WORK_A_STEP = 2e9
"""Most operations in one trial's minibatch, 10 ms: beyond it torch with its threads is as fast."""
DRAWS_A_CALL = 4_000_000
"""Most random numbers drawn ahead for one trial's dropout."""


def is_for_kernel(member: Member, data: TensorData, batch_size: int) -> bool:
    """Whether the kernel supports the trial and is the faster engine for it."""
    widths = data.widths(member.hidden)
    work = 6.0 * batch_size * sum(n_in * n_out for n_in, n_out in itertools.pairwise(widths))
    fields = member.rule.kernel_fields(0) or {}
    has_formulas = None not in (
        fields.get("rule"), ACTIVATIONS[member.activation].kernel_number
    )  # fmt: skip
    is_known = has_formulas and len(widths) <= MOST_LAYERS + 1 and min(widths) > 0
    return is_known and member.dropout < 1.0 and work <= WORK_A_STEP


@final
class CompiledTrials:
    """All trials of a population trained by the kernel; same methods as `StackedTrials`.

    Args:
        kernel: For values of `dtype`.
        data: Training and validation samples, on the CPU.
        batch_size: B; the last minibatch of an epoch may be smaller.
        n_epochs: Epochs of a whole trial, the length of schedules.
        dtype: Of weights and activations.
        n_lanes: Threads to divide the trials among.

    `work_a_call` and `draws_a_call` bound the work of one kernel call; results do not depend on
    them. Raises IndexError for a class outside 0 to n_classes - 1.
    """

    def __init__(
        self, kernel: Kernel, data: TensorData, batch_size: int, n_epochs: int,
        dtype: torch.dtype, n_lanes: int = 1,
    ) -> None:  # fmt: skip
        self._kernel, self._batch_size, self._n_epochs = kernel, batch_size, n_epochs
        self._data, self._dtype, self._n_lanes = data, dtype, n_lanes
        self._train, self._judged = (
            Split(_readable(split.x, dtype), _checked(split.y, data.info.n_classes))
            for split in (data.train, data.judged)
        )
        self._n_steps = -(-len(data.train) // batch_size)
        self.work_a_call, self.draws_a_call = WORK_A_CALL, DRAWS_A_CALL
        self._own: dict[int, _Own] = {}
        self._groups: list[list[_Own]] = []

    @property
    def members(self) -> list[Member]:
        """All members."""
        return [own.member for own in self._own.values()]

    def change(self, leaving: set[int], joining: Sequence[Member]) -> None:
        """Remove trials (by number) and add others; the rest are not touched."""
        for number in leaving & self._own.keys():
            del self._own[number]
        for member in joining:
            self._own[member.number] = _Own(member, self._data.widths(member.hidden), self._dtype)
        lanes = lanes_of(self.members, partial(cost_of, self._data), self._n_lanes)
        self._groups = [
            group for lane in lanes for group in _groups([self._own[m.number] for m in lane])
        ]

    def start_epoch(self, order: Tensor) -> list[Job]:
        """Jobs of an epoch over the samples in `order` (n_train,), one per group."""
        order = order.long().contiguous()
        return [
            Job(
                sum(cost_of(self._data, own.member) for own in group),
                partial(self._epoch, group, order),
            )
            for group in self._groups
        ]

    def _epoch(self, group: Sequence[_Own], order: Tensor) -> dict[int, Scores]:
        losses, scores, n_val = self._train_group(group, order), {}, len(self._judged)
        trials = (Trial * len(group))(*[own.fields(self._n_steps) for own in group])
        batches, n_at_once = self._batches(self._judged, None), self._n_steps_a_call(group)
        n_at_once *= self._batch_size
        hits = torch.zeros(len(group), n_val, dtype=torch.bool)
        by_sample = torch.zeros(len(group), n_val, dtype=self._dtype)
        for trial, own_hits, own_losses in zip(trials, hits, by_sample, strict=True):
            trial.hits, trial.losses = own_hits.data_ptr(), own_losses.data_ptr()
        for first in range(0, n_val, n_at_once):
            self._kernel.evaluate(trials, batches, first, min(n_at_once, n_val - first))
        for own, loss, trial, *said in zip(group, losses, trials, hits, by_sample, strict=True):
            # torchmetrics divides counts in float32 at any precision.
            accuracy = float(np.float32(trial.n_correct) / np.float32(n_val))
            scores[own.member.number] = Scores(loss, trial.loss / n_val, accuracy, *said)
        return scores

    def _train_group(self, group: Sequence[_Own], order: Tensor) -> list[float]:
        """Train one epoch; returns the training losses."""
        batches, n_at_once = self._batches(self._train, order), self._n_steps_a_call(group)
        trials = (Trial * len(group))(*[own.fields(self._n_steps) for own in group])
        rates = [own.rates(self._n_epochs, self._n_steps) for own in group]
        streams = [own.streams() for own in group]
        for first in range(0, self._n_steps, n_at_once):
            n_steps = min(n_at_once, self._n_steps - first)
            n_samples = min(n_steps * self._batch_size, len(order) - first * self._batch_size)
            masks = [
                own.masks(mine, n_samples, self._batch_size)
                for own, mine in zip(group, streams, strict=True)
            ]
            for trial, mine, kept in zip(trials, rates, masks, strict=True):
                pointers = (ctypes.c_void_p * len(kept))(*[mask.data_ptr() for mask in kept])
                trial.rates = mine[first:].ctypes.data
                trial.kept = ctypes.cast(pointers, ctypes.c_void_p) if kept else None
            self._kernel.train(trials, batches, first, n_steps)
            for trial in trials:
                trial.n_steps += n_steps
        for own in group:
            own.member.epoch += 1
        return [trial.loss / len(order) for trial in trials]

    def keep_best(self, number: int) -> None:
        """Keep the trial's current weights as its best."""
        own = self._own[number]
        own.best.copy_(own.params)

    def weights(self, number: int) -> Linears:
        """Views of a trial's weights; the next epoch overwrites them."""
        own = self._own[number]
        return own.linears(own.params)

    def best_weights(self, number: int) -> Linears:
        """Views of the weights at the last `keep_best` (zeros before)."""
        own = self._own[number]
        return own.linears(own.best)

    def states(self, number: int) -> list[Linears]:
        """Views of a trial's optimizer state."""
        own = self._own[number]
        return [own.linears(values) for values in own.states]

    def _batches(self, split: Split, order: Tensor | None) -> CBatches:
        info, (x, y) = self._data.info, (split.x, split.y)
        kind = KINDS[str(x.dtype).removeprefix("torch.")]
        return CBatches(
            x.data_ptr(), y.data_ptr(), order.data_ptr() if order is not None else None, kind,
            len(x), self._data.n_features, info.n_classes, self._batch_size, info.mean, info.std,
        )  # fmt: skip

    def _n_steps_a_call(self, group: Sequence[_Own]) -> int:
        n_samples = max(self._batch_size, LEAST_SAMPLES)
        work = 6.0 * n_samples * sum(own.n_weights for own in group)
        n_draws = self._batch_size * max(own.n_draws for own in group)
        return max(1, min(int(self.work_a_call / work), self.draws_a_call // max(1, n_draws)))


class _Own:
    """One trial's parameters and optimizer states, in the layout of kernel.c."""

    def __init__(self, member: Member, widths: tuple[int, ...], dtype: torch.dtype) -> None:
        self.member = member
        self._widths, self._widths_array = widths, np.array(widths, np.int64)
        pairs = list(itertools.pairwise(widths))
        self.n_weights = sum(n_in * n_out for n_in, n_out in pairs)
        self.n_draws = sum(member.hidden) if member.dropout > 0.0 else 0
        n_values = sum(n_out * stride(n_in) + stride(n_out) for n_in, n_out in pairs)
        n_states = member.rule.n_states
        self.params, self.best, *self.states = (
            torch.zeros(n_values, dtype=dtype) for _ in range(2 + n_states)
        )
        given = (member.weights, member.best, *(member.states or [[]] * n_states))
        for values, brought in zip((self.params, self.best, *self.states), given, strict=True):
            for mine, theirs in zip(self.linears(values), brought, strict=bool(brought)):
                mine[0].copy_(theirs[0])
                mine[1].copy_(theirs[1])
        member.weights, member.best, member.states = [], [], []

    @property
    def n_bytes(self) -> int:
        """Bytes of weights and optimizer states, used in every step."""
        return self.params.nbytes * (1 + len(self.states))

    def linears(self, values: Tensor) -> Linears:
        """(weight (H_out, H_in), bias (H_out)) of each layer, as views."""
        found: Linears = []
        begin = 0
        for n_in, n_out in itertools.pairwise(self._widths):
            row = stride(n_in)
            weight = values[begin : begin + n_out * row].view(n_out, row)[:, :n_in]
            begin += n_out * row
            found.append((weight, values[begin : begin + n_out]))
            begin += stride(n_out)
        return found

    def rates(self, n_epochs: int, n_steps: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Learning rate of each step of the next epoch."""
        member = self.member
        return np.array(
            learning_rates(member.schedule, member.lr, member.epoch, n_epochs, n_steps),
            np.float64,  # a choice of lr may be an integer
        )

    def streams(self) -> list[torch.Generator]:
        """Dropout generators of the hidden layers for the next epoch; none without dropout."""
        n_hidden = len(self.member.hidden) if self.n_draws else 0
        return [self.member.dropout_stream(index) for index in range(n_hidden)]

    def masks(
        self, streams: Sequence[torch.Generator], n_samples: int, batch_size: int
    ) -> list[Tensor]:
        """Kept units (bool) of each hidden layer in the next `n_samples` samples, flat.

        Drawn as by SeededDropout, (H, B) per minibatch, in torch's default dtype (Lightning sets
        it with the precision).
        """
        n_whole, n_last = divmod(n_samples, batch_size)
        p, drawn = self.member.dropout, []
        for stream, n_units in zip(streams, self.member.hidden, strict=False):
            shapes = (n_whole, n_units, batch_size), (1, n_units, n_last)
            parts = [torch.rand(shape, generator=stream) >= p for shape in shapes]
            drawn.append(torch.cat([part.flatten() for part in parts]))
        return drawn

    def fields(self, n_steps: int) -> Trial:
        """The trial as a kernel `Trial`; an epoch has `n_steps` steps."""
        member, n_taken = self.member, self.member.epoch * n_steps
        return Trial(
            widths=self._widths_array.ctypes.data,
            params=self.params.data_ptr(),
            states=(ctypes.c_void_p * 3)(*[values.data_ptr() for values in self.states]),
            n_layers=len(self._widths) - 1,
            activation=ACTIVATIONS[member.activation].kernel_number,
            n_steps=n_taken,
            clip_norm=math.inf if member.clip_norm is None else member.clip_norm,
            dropout=member.dropout,
            **(member.rule.kernel_fields(n_taken) or {}),
        )


def _groups(trials: Sequence[_Own]) -> list[list[_Own]]:
    """Divides trials, in order, into groups of at most GROUP_BYTES (or one larger trial)."""
    groups: list[list[_Own]] = []
    room = 0
    for own in trials:
        if not groups or own.n_bytes > room:
            groups.append([])
            room = GROUP_BYTES
        groups[-1].append(own)
        room -= own.n_bytes
    return groups


def _readable(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Samples (n, F) in an input type of the kernel."""
    flat = x.flatten(1)
    is_known = str(x.dtype).removeprefix("torch.") in KINDS
    return (flat if is_known else flat.to(dtype)).contiguous()


def _checked(y: Tensor, n_classes: int) -> Tensor:
    """Labels, valid as indices in the kernel. Raises IndexError for others, like torch."""
    for found in (int(y.min()), int(y.max())) if len(y) else ():
        if not 0 <= found < n_classes:
            raise IndexError(f"classes must be 0 to {n_classes - 1}, but y holds {found}")
    return y.long().contiguous()
