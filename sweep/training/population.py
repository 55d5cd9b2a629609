"""A population: trials that share every minibatch and are trained as one stack of tensors.

Axes: N trials, B samples of a minibatch, F input features, C classes. Nothing here reads a
value back from the device inside an epoch; `evaluate` does, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sweep.training.layout import Layout, Shape, transfer
from sweep.training.optimizers import Rule, Slices, clip, learning_rates
from sweep.training.products import product
from sweep.training.stack import Buffers, Dropout, Stack

Linears = list[tuple[Tensor, Tensor]]
"""(weight (H_out, H_in), bias (H_out)) of each layer."""
VALIDATION_BATCH = {"cpu": 512, "other": 4096}
"""Samples that are validated at a time: large products, bounded memory."""
VALUES_AT_ONCE = {"cpu": 160_000, "other": 1 << 62}
"""Gradients of layer 1 made before the optimizer takes them: what fits a core's cache."""


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
class Recipe:
    """How one trial is trained."""

    number: int
    shape: Shape
    rule: Rule
    lr: float
    schedule: str = "constant"
    clip_norm: float | None = None
    dropout: Dropout = field(default_factory=lambda: Dropout(0.0, 0))


@dataclass(slots=True, eq=False)
class Member:
    """A trial in a population."""

    recipe: Recipe
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


def nothing() -> None:
    """What is done before a step unless somebody wants more."""


class Population:
    """Trials that see the same minibatches of `batch_size`.

    Args:
        samples: Training and validation data; its device is the population's.
        batch_size: B; the last minibatch of an epoch may be smaller.
        n_epochs: Epochs of a whole trial, what schedules run over.
        order: Population epoch -> order of the training samples (n_train,) int64.
        epoch: Population epoch to start with.
        dtype: Of weights and activations.

    `tuned_for` is the device type that buckets and batches are chosen for; results do not
    depend on it. `before_step` is called before every minibatch.
    """

    def __init__(
        self,
        samples: Samples,
        batch_size: int,
        n_epochs: int,
        order: Callable[[int], Tensor],
        epoch: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.samples, self.batch_size, self.n_epochs = samples, batch_size, n_epochs
        self.epoch = epoch
        self.tuned_for = samples.x.device.type
        self.members: list[Member] = []
        self.before_step: Callable[[], None] = nothing
        self._order, self._dtype, self._device = order, dtype, samples.x.device
        self._x, self._x_val = samples.x.flatten(1), samples.x_val.flatten(1)
        self._eye = torch.eye(samples.n_classes, dtype=dtype, device=self._device)
        self._starts = range(0, len(samples.x), batch_size)
        self._position: dict[int, int] = {}
        self._values: list[Tensor] = []  # parameters, best epoch's, then optimizer states

    def change(self, leaving: Iterable[int] = (), joining: Sequence[Member] = ()) -> None:
        """Let trials leave (by number) and join; the others keep their exact state."""
        gone = set(leaving)
        staying = [m for m in self.members if m.recipe.number not in gone]
        if not joining and len(staying) == len(self.members):
            return
        members = [*staying, *joining]
        if members:
            self._arrange(members, {m.recipe.number for m in joining})
        else:
            self._values, self._position, self.members = [], {}, []

    def train_epoch(self) -> None:
        """One epoch of every trial; their losses stay on the device until `evaluate`."""
        order = self._order(self.epoch).to(self._device)
        rates = [
            learning_rates(r.schedule, r.lr, m.epoch, self.n_epochs, len(self._starts))
            for m in self.members
            for r in (m.recipe,)
        ]
        self._loss_sum.zero_()
        self._stack.start_epoch([m.epoch for m in self.members])
        for step, start in enumerate(self._starts):
            self.before_step()
            index = order[start : start + self.batch_size]
            at = self._stack.buffers(len(index), is_training=True)
            self._load(at, self._x.index_select(0, index))
            self._stack.forward(at, is_training=True)
            self._differentiate_loss(at, self.samples.y.index_select(0, index))
            self._stack.backward(at)
            self._update(at, [rate[step] for rate in rates], is_first=step == 0)
        self.epoch += 1
        for member in self.members:
            member.epoch += 1

    def evaluate(self) -> dict[int, Scores]:
        """Metrics of the epoch just trained by trial number: the one host read of an epoch."""
        n_val = len(self._x_val)
        size = VALIDATION_BATCH.get(self.tuned_for, VALIDATION_BATCH["other"])
        loss = torch.zeros_like(self._loss_sum)
        # torchmetrics divides counts in float32 at any precision.
        n_correct = torch.zeros_like(loss, dtype=torch.float32)
        for start in range(0, n_val, size):
            y = self.samples.y_val[start : start + size]
            at = self._stack.buffers(len(y), is_training=False)
            self._load(at, self._x_val[start : start + size])
            self._stack.forward(at, is_training=False)
            n_correct += (at.logits.argmax(1) == y).sum(1)
            loss += _cross_entropies(at.logits.log_softmax(1), y)
        train_loss = self._loss_sum / len(self._x)
        table = torch.stack([train_loss, loss / n_val, n_correct / n_val], dim=1).tolist()
        return {m.recipe.number: Scores(*row) for m, row in zip(self.members, table, strict=True)}

    def keep_best(self, numbers: Iterable[int]) -> None:
        """Remember the weights that these trials have now."""
        for number in numbers:
            position = self._position[number]
            transfer(
                self._layout, self._values[0], position,
                self._layout, self._values[1], position,
            )  # fmt: skip

    @property
    def parameters(self) -> Tensor:
        """All trials' weights and biases with their padding, flat."""
        return self._values[0]

    def has(self, number: int) -> bool:
        """Whether the trial has a place here (one that joins has it after `change`)."""
        return number in self._position

    def weights(self, number: int) -> Linears:
        """Views of a trial's weights, which the next epoch overwrites."""
        return self._layout.linears(self._values[0], self._position[number])

    def best_weights(self, number: int) -> Linears:
        """Views of what `keep_best` kept last (zeros before)."""
        return self._layout.linears(self._values[1], self._position[number])

    def states(self, number: int) -> list[Linears]:
        """Views of a trial's optimizer state."""
        position = self._position[number]
        rule = self.members[position].recipe.rule
        return [
            self._layout.linears(values, position)
            for values in self._values[2 : 2 + rule.n_states]
        ]

    def save(self, member: Member) -> None:
        """Give a trial that is to leave its weights and optimizer state to take along."""
        number = member.recipe.number
        member.initial = _copies(self.weights(number))
        member.best = _copies(self.best_weights(number))
        member.states = [_copies(linears) for linears in self.states(number)]

    def _arrange(self, members: Sequence[Member], joining: set[int]) -> None:
        """Lay out anew: what stays is copied on the device, what joins is written."""
        old, old_values, old_position = (
            getattr(self, "_layout", None), self._values, self._position
        )  # fmt: skip
        layout = Layout(
            [m.recipe.shape for m in members],
            self.samples.n_features, self.samples.n_classes, self.tuned_for,
        )  # fmt: skip
        self.members = [members[index] for index in layout.order]
        self._position = {m.recipe.number: k for k, m in enumerate(self.members)}
        n_buffers = 2 + max(m.recipe.rule.n_states for m in members)
        self._values = []
        for which in range(n_buffers):
            values = torch.zeros(layout.n_values, dtype=self._dtype, device=self._device)
            for k, member in enumerate(self.members):
                if which >= 2 + member.recipe.rule.n_states:
                    continue
                if member.recipe.number in joining:
                    _write(layout, values, k, _initial(member, which))
                elif old is not None:
                    before = old_position[member.recipe.number]
                    transfer(old, old_values[which], before, layout, values, k)
            self._values.append(values)
            if which < len(old_values):
                old_values[which] = values.new_empty(0)  # both layouts at once: one buffer only
        self._layout = layout
        self._prepare()
        for member in members:
            member.initial, member.states, member.best = [], [], []

    def _prepare(self) -> None:
        """Everything that one step needs, made once per layout."""
        layout = self._layout
        grads = torch.zeros_like(self._values[0])
        self._stack = Stack(
            layout, self._values[0], grads, [m.recipe.dropout for m in self.members]
        )
        self._loss_sum = torch.zeros(len(self.members), dtype=self._dtype, device=self._device)
        self._steps = torch.tensor(
            [float(m.epoch * len(self._starts)) for m in self.members], device=self._device,
            dtype=torch.float32,
        )  # fmt: skip
        # A trial's first layer is differentiated and used up while it is in the cache; writing
        # all gradients to memory first would make the optimizer wait for it.
        most = VALUES_AT_ONCE.get(self.tuned_for, VALUES_AT_ONCE["other"]) // layout.n_columns
        self._blocks = _blocks(layout.row_starts, most)
        self._slices = []
        for k, member in enumerate(self.members):
            own = layout.chunks(grads, k)
            buffers = self._values[2 : 2 + member.recipe.rule.n_states]
            states = tuple(layout.chunks(values, k) for values in buffers)
            params = layout.chunks(self._values[0], k)
            self._slices.append(Slices(params, own, states, [self._steps[k]] * len(own)))

    def _load(self, at: Buffers, x: Tensor) -> None:
        torch.sub(x.to(self._dtype), self.samples.mean, out=at.features)
        at.features.div_(self.samples.std)

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
            grads = product(at.d[starts[start] : starts[stop]], at.x_t).split_with_sizes(sizes)
            for k, own in zip(range(start, stop), grads, strict=True):
                recipe, slices = self.members[k].recipe, self._slices[k]
                kept = slices.grads
                slices.grads = [own, *kept[1:]]
                for layer, differentiate in at.late[k]:
                    slices.grads[layer] = differentiate()
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


def _copies(linears: Linears) -> Linears:
    return [(weight.clone(), bias.clone()) for weight, bias in linears]


def _initial(member: Member, which: int) -> Linears:
    if which == 0:
        return member.initial
    if which == 1:
        return member.best
    return member.states[which - 2] if member.states else []


def _write(layout: Layout, values: Tensor, position: int, linears: Linears) -> None:
    if linears:
        for own, given in zip(layout.linears(values, position), linears, strict=True):
            own[0].copy_(given[0])
            own[1].copy_(given[1])
