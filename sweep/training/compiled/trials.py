"""Trials of a population that the compiled kernel trains, each on its own core and memory.

Nothing is stacked or padded: a trial's curve does not depend on who is trained beside it, to
the last bit. Axes: N trials, F input features, H units, C classes.
"""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from sweep.hyperparameters import ACTIVATIONS
from sweep.training.compiled.kernel import KINDS, MOST_LAYERS, CBatches, Kernel, Trial, stride
from sweep.training.members import (
    Linears,
    Member,
    Samples,
    Scores,
    TrainingPlan,
    dropout_stream,
)
from sweep.training.optimizers import learning_rates

GROUP_BYTES = 4_000_000
"""Weights and optimizer states of trials that take turns within a minibatch: they find each
other's inputs ready, and their own weights in the last cache (benchmarks/NOTES.md)."""
WORK_A_CALL = 2e10
"""Floating-point operations between two looks at what else goes on: 0.1 s."""
LEAST_SAMPLES = 16
"""Of a minibatch, as far as its work is concerned: with fewer, most of it is the optimizer's, and
that sees all weights at each step."""
WORK_A_STEP = 2e9
"""Of one trial's minibatch, 10 ms: from there on torch with its threads is as fast."""
DRAWS_A_CALL = 4_000_000
"""Random numbers that dropout may have ready, for one trial."""


def is_for_kernel(recipe: TrainingPlan, n_features: int, n_classes: int, batch_size: int) -> bool:
    """Whether the kernel knows all that the trial needs, and is the faster way."""
    widths = (n_features, *recipe.shape.hidden, n_classes)
    work = 6.0 * batch_size * sum(n_in * n_out for n_in, n_out in itertools.pairwise(widths))
    has_formulas = (recipe.rule.kernel_fields(0) or {}).get("rule") is not None and ACTIVATIONS[
        recipe.shape.activation
    ].kernel_number is not None
    is_known = len(widths) <= MOST_LAYERS + 1 and has_formulas
    return is_known and min(widths) > 0 and recipe.dropout.p < 1.0 and work <= WORK_A_STEP


@final
class CompiledTrials:
    """All trials of a population that the kernel trains; methods as `StackedTrials` has them.

    Args:
        kernel: For values of `dtype`.
        samples: Training and validation data, on the CPU.
        batch_size: B; the last minibatch of an epoch may be smaller.
        n_epochs: Epochs of a whole trial, what schedules run over.
        dtype: Of weights and activations.

    `work_a_call` and `draws_a_call` bound what one call of the kernel does; no result depends on
    them. Raises IndexError for a class that is not among the `n_classes`.
    """

    def __init__(
        self, kernel: Kernel, samples: Samples, batch_size: int, n_epochs: int, dtype: torch.dtype
    ) -> None:
        self._kernel, self._batch_size, self._n_epochs = kernel, batch_size, n_epochs
        self._samples, self._dtype = samples, dtype
        self._x, self._x_val = _readable(samples.x, dtype), _readable(samples.x_val, dtype)
        self._y, self._y_val = (_checked(y, samples.n_classes) for y in (samples.y, samples.y_val))
        self._n_steps = -(-len(samples.x) // batch_size)
        self.work_a_call, self.draws_a_call = WORK_A_CALL, DRAWS_A_CALL
        self._own: dict[int, _Own] = {}
        self._groups: list[list[_Own]] = []

    @property
    def members(self) -> list[Member]:
        """All of them."""
        return [own.member for own in self._own.values()]

    def change(self, leaving: set[int], joining: Sequence[Member]) -> None:
        """Let trials leave (by number) and join; the others are not touched."""
        for number in leaving & self._own.keys():
            del self._own[number]
        widths = self._samples.n_features, self._samples.n_classes
        for member in joining:
            self._own[member.recipe.number] = _Own(member, *widths, self._dtype)
        self._groups = _groups(list(self._own.values()))

    def train_epoch(self, order: Tensor) -> None:
        """One epoch over the samples in `order` (n_train,)."""
        order = order.long().contiguous()
        data = self._batches(self._x, self._y, order)
        for group in self._groups:
            n_at_once = self._n_steps_a_call(group)
            trials = (Trial * len(group))(*[own.fields(self._n_steps) for own in group])
            rates = [own.rates(self._n_epochs, self._n_steps) for own in group]
            streams = [own.streams() for own in group]
            for first in range(0, self._n_steps, n_at_once):
                n_steps = min(n_at_once, self._n_steps - first)
                n_samples = min(n_steps * self._batch_size, len(order) - first * self._batch_size)
                masks = [self._draw(own, n_samples) for own in streams]
                for trial, mine, drawn in zip(trials, rates, masks, strict=True):
                    trial.rates = mine[first:].ctypes.data
                    trial.kept = ctypes.addressof(drawn.pointers) if drawn else None
                self._kernel.train(trials, data, first, n_steps)
                for trial in trials:
                    trial.n_steps += n_steps
            for own, trial in zip(group, trials, strict=True):
                own.train_loss = trial.loss / len(order)
                own.member.epoch += 1

    def evaluate(self) -> dict[int, Scores]:
        """Metrics of the epoch just trained by trial number."""
        scores, n = {}, len(self._x_val)
        data = self._batches(self._x_val, self._y_val, None)
        for group in self._groups:
            trials = (Trial * len(group))(*[own.fields(self._n_steps) for own in group])
            n_at_once = self._batch_size * self._n_steps_a_call(group)
            for first in range(0, n, n_at_once):
                self._kernel.evaluate(trials, data, first, min(n_at_once, n - first))
            for own, trial in zip(group, trials, strict=True):
                # torchmetrics divides counts in float32 at any precision.
                accuracy = float(np.float32(trial.n_correct) / np.float32(n))
                scores[own.number] = Scores(own.train_loss, trial.loss / n, accuracy)
        return scores

    def keep_best(self, number: int) -> None:
        """Remember the weights that the trial has now."""
        own = self._own[number]
        own.best.copy_(own.params)

    def weights(self, number: int) -> Linears:
        """Views of a trial's weights, which the next epoch overwrites."""
        own = self._own[number]
        return own.linears(own.params)

    def best_weights(self, number: int) -> Linears:
        """Views of what `keep_best` kept last (zeros before)."""
        own = self._own[number]
        return own.linears(own.best)

    def states(self, number: int) -> list[Linears]:
        """Views of a trial's optimizer state."""
        own = self._own[number]
        return [own.linears(values) for values in own.states]

    def _batches(self, x: Tensor, y: Tensor, order: Tensor | None) -> CBatches:
        samples = self._samples
        kind = KINDS[str(x.dtype).removeprefix("torch.")]
        return CBatches(
            x.data_ptr(), y.data_ptr(), order.data_ptr() if order is not None else None, kind,
            len(x), samples.n_features, samples.n_classes, self._batch_size, samples.mean,
            samples.std,
        )  # fmt: skip

    def _n_steps_a_call(self, group: Sequence[_Own]) -> int:
        n_samples = max(self._batch_size, LEAST_SAMPLES)
        work = 6.0 * n_samples * sum(own.n_weights for own in group)
        n_draws = self._batch_size * max(own.n_draws for own in group)
        return max(1, min(int(self.work_a_call / work), self.draws_a_call // max(1, n_draws)))

    def _draw(self, streams: Sequence[_Stream], n_samples: int) -> _Masks | None:
        """What dropout keeps in the minibatches of the next `n_samples` samples."""
        if not streams:
            return None
        n_whole, n_last = divmod(n_samples, self._batch_size)
        drawn = []
        for stream in streams:
            # Call by call as SeededDropout draws them: (H, B) for each minibatch.
            parts = [(n_whole, stream.n_units, self._batch_size), (1, stream.n_units, n_last)]
            drawn.append(torch.cat([stream.draw(*shape).flatten() for shape in parts]))
        return _Masks(drawn)


class _Masks:
    """Dropout's masks of one trial, and an array of pointers to each layer's."""

    def __init__(self, kept: list[Tensor]) -> None:
        self._kept = kept
        self.pointers = (ctypes.c_void_p * len(kept))(*[values.data_ptr() for values in kept])


class _Stream:
    """The random numbers of one hidden layer's dropout."""

    def __init__(self, generator: torch.Generator, p: float, n_units: int) -> None:
        self._generator, self._p, self.n_units = generator, p, n_units

    def draw(self, *shape: int) -> Tensor:
        """Which of the next ones are kept (bool); drawn as torch's default type, like
        SeededDropout's: Lightning sets it with the precision."""
        return torch.rand(shape, generator=self._generator) >= self._p


class _Own:
    """One trial's parameters and optimizer states, laid out as kernel.c says."""

    def __init__(
        self, member: Member, n_features: int, n_classes: int, dtype: torch.dtype
    ) -> None:
        self.member, self.number = member, member.recipe.number
        self._widths = (n_features, *member.recipe.shape.hidden, n_classes)
        self._widths_array = np.array(self._widths, np.int64)
        self.train_loss = 0.0
        pairs = list(itertools.pairwise(self._widths))
        self.n_weights = sum(n_in * n_out for n_in, n_out in pairs)
        hidden = member.recipe.shape.hidden
        self.n_draws = sum(hidden) if member.recipe.dropout.p > 0.0 else 0
        n_values = sum(n_out * stride(n_in) + stride(n_out) for n_in, n_out in pairs)
        n_states = member.recipe.rule.n_states
        self.params, self.best, *self.states = (
            torch.zeros(n_values, dtype=dtype) for _ in range(2 + n_states)
        )
        given = (member.initial, member.best, *(member.states or [[]] * n_states))
        for values, brought in zip((self.params, self.best, *self.states), given, strict=True):
            for mine, theirs in zip(self.linears(values), brought, strict=bool(brought)):
                mine[0].copy_(theirs[0])
                mine[1].copy_(theirs[1])
        member.initial, member.best, member.states = [], [], []

    @property
    def n_bytes(self) -> int:
        """What a step reads and writes again in the next."""
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
        """Learning rate of each step of its next epoch."""
        recipe = self.member.recipe
        return np.array(
            learning_rates(recipe.schedule, recipe.lr, self.member.epoch, n_epochs, n_steps),
            np.float64,  # a choice of lr may be an integer
        )

    def streams(self) -> list[_Stream]:
        """Dropout's random numbers of its next epoch, a stream for each hidden layer."""
        dropout, hidden = self.member.recipe.dropout, self.member.recipe.shape.hidden
        if dropout.p == 0.0:
            return []
        return [
            _Stream(dropout_stream(dropout, index, self.member.epoch), dropout.p, n_units)
            for index, n_units in enumerate(hidden)
        ]

    def fields(self, n_steps: int) -> Trial:
        """What the kernel is told, after whole epochs of `n_steps` steps."""
        recipe, n_taken = self.member.recipe, self.member.epoch * n_steps
        states = (ctypes.c_void_p * 3)(*[values.data_ptr() for values in self.states])
        return Trial(
            widths=self._widths_array.ctypes.data,
            params=self.params.data_ptr(),
            states=states,
            n_layers=len(self._widths) - 1,
            activation=ACTIVATIONS[recipe.shape.activation].kernel_number,
            n_steps=n_taken,
            clip_norm=math.inf if recipe.clip_norm is None else recipe.clip_norm,
            dropout=recipe.dropout.p,
            **(recipe.rule.kernel_fields(n_taken) or {}),
        )


def _groups(trials: Sequence[_Own]) -> list[list[_Own]]:
    """Trials that take turns: of about the same number of bytes, in the order they came."""
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
    """(n, F) of a type that the kernel reads."""
    flat = x.flatten(1)
    is_known = str(x.dtype).removeprefix("torch.") in KINDS
    return (flat if is_known else flat.to(dtype)).contiguous()


def _checked(y: Tensor, n_classes: int) -> Tensor:
    """Labels that the kernel may use as indices; IndexError for others, as torch would raise."""
    for found in (int(y.min()), int(y.max())) if len(y) else ():
        if not 0 <= found < n_classes:
            raise IndexError(f"classes must be 0 to {n_classes - 1}, but y holds {found}")
    return y.long().contiguous()
