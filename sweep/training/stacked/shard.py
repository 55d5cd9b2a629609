"""Trials of a population that are one stack of tensors, trained an epoch at a time.

Axes: N trials, B samples of a minibatch, F input features, C classes. Nothing here reads a
value back from the device inside an epoch; `evaluate` does, once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from sweep.training.members import Linears, Member, Samples, Scores
from sweep.training.optimizers import Slices, clip, learning_rates
from sweep.training.stacked.layout import Layout, transfer
from sweep.training.stacked.stack import Buffers, Inputs, Stack

VALIDATION_BATCH = {"cpu": 512, "other": 4096}
"""Samples that are validated at a time: large products, bounded memory."""
VALUES_AT_ONCE = {"cpu": 160_000, "other": 1 << 62}
"""Gradients of layer 1 made before the optimizer takes them: what fits a core's cache."""
N_OWN_BUFFERS = 2
"""Flat buffers of parameters and of the best epoch's; the optimizer's states follow."""


class Shard:
    """Trials that are trained together, in one layout for as long as it exists.

    A new one is filled buffer by buffer (`fill`), then made ready to train (`prepare`).

    Args:
        samples: Training and validation data; its device is the shard's.
        inputs: What its minibatches are written into.
        members: The trials; `self.members` has them in the order of the layout.
        batch_size: B; the last minibatch of an epoch may be smaller.
        n_epochs: Epochs of a whole trial, what schedules run over.
        dtype: Of weights and activations.
        tuned_for: The device type that buckets and batches are chosen for.
    """

    def __init__(
        self, samples: Samples, inputs: Inputs, members: Sequence[Member], batch_size: int,
        n_epochs: int, dtype: torch.dtype, tuned_for: str,
    ) -> None:  # fmt: skip
        self._samples, self._inputs = samples, inputs
        self._batch_size, self._n_epochs = batch_size, n_epochs
        self._dtype, self._device, self._tuned_for = dtype, samples.x.device, tuned_for
        self._layout = Layout(
            [m.recipe.shape for m in members], samples.n_features, samples.n_classes, tuned_for
        )
        self.members = [members[index] for index in self._layout.order]
        self._position = {m.recipe.number: k for k, m in enumerate(self.members)}
        self._values: list[Tensor] = []  # parameters, best epoch's, then optimizer states
        self._x, self._x_val = samples.x.flatten(1), samples.x_val.flatten(1)
        self._eye = torch.eye(samples.n_classes, dtype=dtype, device=self._device)
        self._starts = range(0, len(samples.x), batch_size)

    @property
    def n_buffers(self) -> int:
        """Flat buffers that it keeps."""
        return N_OWN_BUFFERS + max(m.recipe.rule.n_states for m in self.members)

    def fill(self, sources: Mapping[int, Shard]) -> None:
        """Make the next buffer from those of the shards where trials were before, or from what a
        trial has brought along (it is not in `sources`)."""
        layout, which = self._layout, len(self._values)
        values = torch.zeros(layout.n_values, dtype=self._dtype, device=self._device)
        for k, member in enumerate(self.members):
            if which >= N_OWN_BUFFERS + member.recipe.rule.n_states:
                continue
            source = sources.get(member.recipe.number)
            if source is None:
                _write(layout, values, k, _initial(member, which))
            else:
                before = source._position[member.recipe.number]
                transfer(source._layout, source._values[which], before, layout, values, k)
        self._values.append(values)

    def retire(self) -> None:
        """Train no more: gradients and activations are let go, buffers one by one (`let_go`)."""
        del self._stack
        self._slices.clear()

    def let_go(self, which: int) -> None:
        """Give the memory of a buffer back: its trials are elsewhere."""
        if which < len(self._values):
            self._values[which] = self._values[which].new_empty(0)

    def prepare(self) -> None:
        """Make everything that a step needs."""
        layout = self._layout
        grads = torch.zeros_like(self._values[0])
        dropouts = [m.recipe.dropout for m in self.members]
        self._stack = Stack(layout, self._inputs, self._values[0], grads, dropouts)
        self._loss_sum = torch.zeros(len(self.members), dtype=self._dtype, device=self._device)
        self._steps = torch.tensor(
            [float(m.epoch * len(self._starts)) for m in self.members], device=self._device,
            dtype=torch.float32,
        )  # fmt: skip
        # A trial's first layer is differentiated and used up while it is in the cache; writing
        # all gradients to memory first would make the optimizer wait for it.
        most = VALUES_AT_ONCE.get(self._tuned_for, VALUES_AT_ONCE["other"]) // layout.n_columns
        self._blocks = _blocks(layout.row_starts, most)
        self._slices = []
        for k, member in enumerate(self.members):
            own = layout.chunks(grads, k)
            buffers = self._values[N_OWN_BUFFERS : N_OWN_BUFFERS + member.recipe.rule.n_states]
            states = tuple(layout.chunks(values, k) for values in buffers)
            params = layout.chunks(self._values[0], k)
            self._slices.append(Slices(params, own, states, [self._steps[k]] * len(own)))
            member.initial, member.states, member.best = [], [], []

    def train_epoch(self, order: Tensor, before_step: Callable[[], None]) -> None:
        """One epoch over the samples in `order` (n_train,); losses stay on the device until
        `evaluate`."""
        rates = [
            learning_rates(r.schedule, r.lr, m.epoch, self._n_epochs, len(self._starts))
            for m in self.members
            for r in (m.recipe,)
        ]
        self._loss_sum.zero_()
        self._stack.start_epoch([m.epoch for m in self.members])
        for step, start in enumerate(self._starts):
            before_step()
            index = order[start : start + self._batch_size]
            at = self._stack.buffers(len(index), is_training=True)
            self._load(at, self._x.index_select(0, index))
            self._stack.forward(at, is_training=True)
            self._differentiate_loss(at, self._samples.y.index_select(0, index))
            self._stack.backward(at)
            self._update(at, [rate[step] for rate in rates], is_first=step == 0)
        for member in self.members:
            member.epoch += 1

    def evaluate(self) -> dict[int, Scores]:
        """Metrics of the epoch just trained by trial number: the one host read of an epoch."""
        n_val = len(self._x_val)
        size = VALIDATION_BATCH.get(self._tuned_for, VALIDATION_BATCH["other"])
        loss = torch.zeros_like(self._loss_sum)
        # torchmetrics divides counts in float32 at any precision.
        n_correct = torch.zeros_like(loss, dtype=torch.float32)
        for start in range(0, n_val, size):
            y = self._samples.y_val[start : start + size]
            at = self._stack.buffers(len(y), is_training=False)
            self._load(at, self._x_val[start : start + size])
            self._stack.forward(at, is_training=False)
            n_correct += (at.logits.argmax(1) == y).sum(1)
            loss += _cross_entropies(at.logits.log_softmax(1), y)
        train_loss = self._loss_sum / len(self._x)
        table = torch.stack([train_loss, loss / n_val, n_correct / n_val], dim=1).tolist()
        return {m.recipe.number: Scores(*row) for m, row in zip(self.members, table, strict=True)}

    def keep_best(self, number: int) -> None:
        """Remember the weights that the trial has now."""
        position = self._position[number]
        transfer(
            self._layout, self._values[0], position,
            self._layout, self._values[1], position,
        )  # fmt: skip

    @property
    def parameters(self) -> Tensor:
        """All trials' weights and biases with their padding, flat."""
        return self._values[0]

    def weights(self, number: int) -> Linears:
        """Views of a trial's weights, which the next epoch overwrites."""
        return self._layout.linears(self._values[0], self._position[number])

    def best_weights(self, number: int) -> Linears:
        """Views of what `keep_best` kept last (zeros before)."""
        return self._layout.linears(self._values[1], self._position[number])

    def states(self, number: int) -> list[Linears]:
        """Views of a trial's optimizer state."""
        position = self._position[number]
        n_states = self.members[position].recipe.rule.n_states
        return [
            self._layout.linears(values, position)
            for values in self._values[N_OWN_BUFFERS : N_OWN_BUFFERS + n_states]
        ]

    def _load(self, at: Buffers, x: Tensor) -> None:
        torch.sub(x.to(self._dtype), self._samples.mean, out=at.features)
        at.features.div_(self._samples.std)

    def _differentiate_loss(self, at: Buffers, y: Tensor) -> None:
        """Add the trials' losses up; turn logits into gradients of each trial's mean loss."""
        log_p = at.logits.log_softmax(1)
        self._loss_sum += _cross_entropies(log_p, y)
        torch.exp(log_p, out=at.logits)
        at.logits.sub_(self._eye.index_select(1, y)).div_(len(y))

    def _update(self, at: Buffers, rates: Sequence[float], is_first: bool) -> None:
        self._steps += 1.0
        starts = self._layout.row_starts
        for start, stop in self._blocks:
            sizes = [starts[k + 1] - starts[k] for k in range(start, stop)]
            grads = torch.mm(at.d[starts[start] : starts[stop]], at.x).split_with_sizes(sizes)
            for k, own in zip(range(start, stop), grads, strict=True):
                recipe, slices = self.members[k].recipe, self._slices[k]
                kept = slices.grads
                slices.grads = [own, *kept[1:]]
                if recipe.clip_norm is not None:
                    clip(slices.grads, recipe.clip_norm)
                recipe.rule.update(slices, rates[k], is_first and self.members[k].epoch == 0)
                slices.grads = kept  # what was made is let go: its memory is in the cache
            del grads, own


def _blocks(row_starts: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Ranges of trials with at most `most` rows together, or one trial each."""
    blocks, start = [], 0
    for k in range(1, len(row_starts)):
        if k + 1 == len(row_starts) or row_starts[k + 1] - row_starts[start] > most:
            blocks.append((start, k))
            start = k
    return blocks


def _cross_entropies(log_p: Tensor, y: Tensor) -> Tensor:
    """Summed over the samples: (N,) of log probabilities (N, C, B) and classes (B,)."""
    picked = log_p.gather(1, y.expand(len(log_p), 1, -1))
    return picked.sum((1, 2)).neg_()


def _initial(member: Member, which: int) -> Linears:
    if which < N_OWN_BUFFERS:
        return (member.initial, member.best)[which]
    return member.states[which - N_OWN_BUFFERS] if member.states else []


def _write(layout: Layout, values: Tensor, position: int, linears: Linears) -> None:
    if linears:
        for own, given in zip(layout.linears(values, position), linears, strict=True):
            own[0].copy_(given[0])
            own[1].copy_(given[1])
