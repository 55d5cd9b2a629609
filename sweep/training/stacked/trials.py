"""Trials of a population in padded stacks of tensors, differentiated by autograd.

Axes: N trials of one depth, B samples of a minibatch, F input features, H units, C classes.
Narrower trials are padded with zeros: a padded unit is 0 after every activation and gets no
gradient, so it stays 0. No training step copies values back from the device; `_evaluate` does,
once a stack.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sweep.data.tensors import EVALUATION_BATCH, TensorData
from sweep.hyperparameters import ACTIVATIONS
from sweep.training.members import Job, Linears, Member, Scores, cost_of, lanes_of
from sweep.training.optimizers import OptimizerRule, clip_scales, learning_rates

Buffer = list[Tensor]
"""Weight (N, H_out, H_in) and bias (N, H_out, 1) of each layer in turn."""


@final
class StackedTrials:
    """All stacked trials of a population; same methods as `compiled.trials.CompiledTrials`.

    Args:
        data: Training and validation samples; their device is the trials'.
        batch_size: B; the last minibatch of an epoch may be smaller.
        n_epochs: Epochs of a whole trial, the length of schedules.
        dtype: Of weights and activations.
        n_lanes: Threads to divide the trials among, each with its own stacks.
    """

    def __init__(
        self, data: TensorData, batch_size: int, n_epochs: int, dtype: torch.dtype,
        n_lanes: int = 1,
    ) -> None:  # fmt: skip
        self._data, self._batch_size = data, batch_size
        self._n_epochs, self._dtype = n_epochs, dtype
        self._n_lanes = n_lanes
        self._lanes: list[list[_Stack]] = []
        self._stack_of: dict[int, _Stack] = {}

    @property
    def members(self) -> list[Member]:
        """All members."""
        return [member for lane in self._lanes for stack in lane for member in stack.members]

    def change(self, leaving: set[int], joining: Sequence[Member]) -> None:
        """Remove trials (by number) and add others; the rest keep their exact state."""
        staying = [member for member in self.members if member.number not in leaving]
        new = {member.number for member in joining}
        before = {frozenset(s.positions): s for lane in self._lanes for s in lane}
        sources = {n: stack for n, stack in self._stack_of.items() if n not in new}
        self._lanes = []
        for lane in lanes_of([*staying, *joining], partial(cost_of, self._data), self._n_lanes):
            by_depth: dict[int, list[Member]] = {}
            for member in lane:
                by_depth.setdefault(len(member.hidden), []).append(member)
            stacks = []
            for members in by_depth.values():
                numbers = frozenset(member.number for member in members)
                kept = before.get(numbers) if numbers.isdisjoint(new) else None
                stacks.append(kept or _Stack(members, self._data, self._dtype, sources))
            self._lanes.append(stacks)
        self._stack_of = {n: s for lane in self._lanes for s in lane for n in s.positions}

    def start_epoch(self, order: Tensor) -> list[Job]:
        """Jobs of an epoch over the samples in `order` (n_train,), one per lane."""
        return [
            Job(
                sum(cost_of(self._data, member) for stack in stacks for member in stack.members),
                partial(self._epoch, stacks, order),
            )
            for stacks in self._lanes
        ]

    @torch.no_grad()
    def _epoch(self, stacks: Sequence[_Stack], order: Tensor) -> dict[int, Scores]:
        batches = torch.split(order, self._batch_size)
        for stack in stacks:
            stack.start_epoch(self._n_epochs, len(batches))
        for step, index in enumerate(batches):
            x = self._standardised(self._data.train.x.index_select(0, index))
            y = self._data.train.y.index_select(0, index)
            for stack in stacks:
                stack.step(step, x, y)
        for member in (member for stack in stacks for member in stack.members):
            member.epoch += 1
        return self._evaluate(stacks)

    def _evaluate(self, stacks: Sequence[_Stack]) -> dict[int, Scores]:
        judged, scores = self._data.judged, dict[int, Scores]()
        n_train, n_val = len(self._data.train), len(judged)
        for stack in stacks:
            # torchmetrics divides counts in float32 at any precision.
            loss = torch.zeros_like(stack.loss_sum)
            n_correct = torch.zeros_like(loss, dtype=torch.float32)
            parts = []
            for start in range(0, n_val, EVALUATION_BATCH):
                x, y = (t[start : start + EVALUATION_BATCH] for t in (judged.x, judged.y))
                logits = stack.forward(self._standardised(x))
                parts.append((logits.argmax(1) == y, _losses(logits, y)))
                n_correct += parts[-1][0].sum(1)
                loss += parts[-1][1].sum(1)
            columns = [stack.loss_sum / n_train, loss / n_val, n_correct / n_val]
            rows = torch.stack(columns, 1).tolist()
            said = [torch.cat(both, 1).cpu() for both in zip(*parts, strict=True)]
            for number, row, *by_sample in zip(stack.positions, rows, *said, strict=True):
                scores[number] = Scores(*row, *by_sample)
        return scores

    def keep_best(self, number: int) -> None:
        """Keep the trial's current weights as its best."""
        _copy(self.weights(number), self.best_weights(number))

    def weights(self, number: int) -> Linears:
        """Views of a trial's weights; the next epoch overwrites them."""
        return self._stack_of[number].linears(0, number)

    def best_weights(self, number: int) -> Linears:
        """Views of the weights at the last `keep_best` (zeros before)."""
        return self._stack_of[number].linears(1, number)

    def states(self, number: int) -> list[Linears]:
        """Views of a trial's optimizer state."""
        stack = self._stack_of[number]
        n_states = stack.members[stack.positions[number]].rule.n_states
        return [stack.linears(2 + k, number) for k in range(n_states)]

    def _standardised(self, x: Tensor) -> Tensor:
        """Standardised samples (F, B)."""
        info = self._data.info
        return ((x.flatten(1).to(self._dtype) - info.mean) / info.std).t()


class _Stack:
    """Trials of one depth. `positions`: trial number -> index along N.

    Trials are sorted by kind of optimizer, then by activation.
    """

    def __init__(
        self, members: Sequence[Member], data: TensorData, dtype: torch.dtype,
        sources: Mapping[int, _Stack],
    ) -> None:  # fmt: skip
        self.members = sorted(members, key=lambda m: (str(m.rule.kind), m.activation))
        self.positions = {m.number: k for k, m in enumerate(self.members)}
        self._widths = [(data.n_features, *m.hidden, data.info.n_classes) for m in self.members]
        self._device, self._dtype = data.train.x.device, dtype
        n_states = max(m.rule.n_states for m in self.members)
        self._buffers = [self._zeros() for _ in range(2 + n_states)]
        for member in self.members:
            self._fill(member, sources.get(member.number))
        for values in self._buffers[0]:
            values.requires_grad_()
        self._activations = _runs(
            self.members, lambda m: m.activation,
            lambda m: getattr(nn, ACTIVATIONS[m.activation].layer)(),
        )  # fmt: skip
        self._rules: list[tuple[OptimizerRule, slice]] = _runs(
            self.members, lambda m: m.rule.kind, lambda m: m.rule
        )
        norms = [m.clip_norm for m in self.members]
        self._max_norms = None
        if any(norm is not None for norm in norms):
            self._max_norms = self._column([np.inf if n is None else n for n in norms])
        self._masked = [k for k, m in enumerate(self.members) if m.dropout > 0.0]
        self.loss_sum = torch.zeros(len(self.members), dtype=dtype, device=self._device)

    def linears(self, which: int, number: int) -> Linears:
        """Views of a trial's part of a buffer: 0 is weights, 1 the best epoch's, then optimizer
        states."""
        k, buffer = self.positions[number], self._buffers[which]
        return [
            (weight.detach()[k, :n_out, :n_in], bias.detach()[k, :n_out, 0])
            for (n_in, n_out), weight, bias in zip(
                itertools.pairwise(self._widths[k]), buffer[::2], buffer[1::2], strict=True
            )
        ]

    def start_epoch(self, n_epochs: int, n_steps: int) -> None:
        """Compute all optimizer coefficients of the epoch: one copy to the device for each."""
        self._tables = []
        for rule, own in self._rules:
            found: dict[str, list[Any]] = {}
            for member in self.members[own]:
                epoch = member.epoch
                rates = np.array(
                    learning_rates(member.schedule, member.lr, epoch, n_epochs, n_steps)
                )
                at = member.rule.coefficients(epoch * n_steps, rates)
                for name, values in at.items():
                    found.setdefault(name, []).append(np.broadcast_to(values, n_steps))
            tables = {name: self._column(np.stack(v, 1)) for name, v in found.items()}
            self._tables.append((rule, own, tables))
        self._streams = {
            k: [
                self.members[k].dropout_stream(index, self._device)
                for index in range(len(self._widths[k]) - 2)
            ]
            for k in self._masked
        }  # fmt: skip
        self.loss_sum.zero_()

    def step(self, step: int, x: Tensor, y: Tensor) -> None:
        """Train one minibatch, x (F, B) and y (B,)."""
        params = self._buffers[0]
        with torch.enable_grad():
            losses = _losses(self.forward(x, is_training=True), y).sum(1)
            grads = list(torch.autograd.grad(losses.sum() / len(y), params))
        self.loss_sum += losses.detach()
        with torch.no_grad():
            if self._max_norms is not None:
                scales = clip_scales(grads, self._max_norms)
                grads = [grad * scales for grad in grads]
            for rule, own, tables in self._tables:
                rule.update(
                    [values[own] for values in params],
                    [grad[own] for grad in grads],
                    [[v[own] for v in buffer] for buffer in self._buffers[2 : 2 + rule.n_states]],
                    {name: table[step] for name, table in tables.items()},
                )

    def forward(self, x: Tensor, *, is_training: bool = False) -> Tensor:
        """Logits (N, C, B) of samples x (F, B)."""
        params = self._buffers[0]
        layers = list(zip(params[::2], params[1::2], strict=True))
        a = x
        for index, (weight, bias) in enumerate(layers):
            z = torch.matmul(weight, a) + bias if a.dim() == 2 else torch.baddbmm(bias, weight, a)
            if index == len(layers) - 1:
                return z
            a = torch.cat([activation(z[own]) for activation, own in self._activations])
            if is_training and self._masked:
                a = a * self._mask(index, a)
        return a

    def _mask(self, index: int, like: Tensor) -> Tensor:
        """Dropout masks of a hidden layer (N, H, B), drawn as by each trial's SeededDropout."""
        mask = torch.ones_like(like)
        for k in self._masked:
            p, n_units = self.members[k].dropout, self._widths[k][index + 1]
            draws = torch.rand(
                n_units, like.shape[2], generator=self._streams[k][index], device=like.device
            )
            mask[k, :n_units] = (draws >= p) / (1.0 - p)
        return mask

    def _zeros(self) -> Buffer:
        n, values = len(self.members), list[Tensor]()
        most = [max(widths) for widths in zip(*self._widths, strict=True)]
        for n_in, n_out in itertools.pairwise(most):
            for shape in ((n, n_out, n_in), (n, n_out, 1)):
                values.append(torch.zeros(shape, dtype=self._dtype, device=self._device))
        return values

    def _fill(self, member: Member, source: _Stack | None) -> None:
        """Copy a trial's tensors from `source`; None: from the member."""
        number, n = member.number, 2 + member.rule.n_states
        given = [member.weights, member.best, *member.states]
        if source is not None:
            given = [source.linears(which, number) for which in range(n)]
        for which, linears in enumerate(given):
            _copy(linears, self.linears(which, number))
        member.weights, member.best, member.states = [], [], []

    def _column(self, values: Any) -> Tensor:
        """(..., N) as (..., N, 1, 1)."""
        found = torch.as_tensor(np.asarray(values)).to(self._device, self._dtype)
        return found[..., None, None]


def _losses(logits: Tensor, y: Tensor) -> Tensor:
    """Cross entropies (N, B) of logits (N, C, B) and classes (B,)."""
    target = y.expand(len(logits), -1)
    return functional.cross_entropy(logits, target, reduction="none")


def _runs(
    members: Sequence[Member], key: Callable[[Member], Any], value: Callable[[Member], Any]
) -> list[tuple[Any, slice]]:
    """(value of the first member, slice) of each run of neighbours with the same key."""
    runs, start = [], 0
    for _, run in itertools.groupby(members, key):
        alike = list(run)
        runs.append((value(alike[0]), slice(start, start + len(alike))))
        start += len(alike)
    return runs


def _copy(given: Linears, own: Linears) -> None:
    for pair, mine in zip(given, own, strict=bool(given)):
        mine[0].copy_(pair[0])
        mine[1].copy_(pair[1])
