"""A population: trials that see the same minibatches.

On a CPU the compiled kernel trains them where there is one (`compiled`). Others are stacked, in
shards on a CPU, one after the other for an epoch each: as many trials as leave their weights and
optimizer states in the cache from one step to the next.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from sweep.training.compiled.kernel import Kernel
from sweep.training.compiled.trials import CompiledTrials, is_for_kernel
from sweep.training.members import Linears, Member, Samples, Scores
from sweep.training.stacked.layout import Layout
from sweep.training.stacked.shard import Shard
from sweep.training.stacked.stack import Inputs

SHARD_BYTES = {"cpu": 8_000_000, "other": 1 << 62}
"""Weights and optimizer states of a shard: measured on a core that has 16 MB of the last cache
to itself (benchmarks/NOTES.md)."""
COST_OF_A_TRIAL, COST_OF_A_DEEP_WEIGHT = 40_000, 3
"""Of a stacked trial, in weights of layer 1, which cost 1.5 ns a step each: fitted on 28
populations on a CPU, with a mean error of 7 % (benchmarks/NOTES.md)."""
COST_OF_A_COMPILED_TRIAL = 10_000
"""In weights, which cost the kernel about the same in all layers (benchmarks/NOTES.md)."""


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

    `tuned_for` is the device type that shards, buckets and batches are chosen for; `shard_bytes`
    (None: as for that type) is what a shard may have of weights and optimizer states. Results do
    not depend on them but for rounding.
    `before_step` is called before every minibatch of stacked trials. `kernel` trains what it
    knows, from when it is set; None: everything is stacked.
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
        self.shard_bytes: int | None = None
        self.before_step: Callable[[], None] = nothing
        self.kernel: Kernel | None = None
        self._order, self._dtype = order, dtype
        like = torch.empty(0, dtype=dtype, device=samples.x.device)
        self._inputs = Inputs(samples.n_features, like)
        self._shards: list[Shard] = []
        self._shard_of: dict[int, Shard] = {}
        self._compiled: CompiledTrials | None = None
        self._home_of: dict[int, Shard | CompiledTrials] = {}

    @property
    def members(self) -> list[Member]:
        """All trials."""
        stacked = [member for shard in self._shards for member in shard.members]
        return [*(self._compiled.members if self._compiled else ()), *stacked]

    def change(self, leaving: Iterable[int] = (), joining: Sequence[Member] = ()) -> None:
        """Let trials leave (by number) and join; the others keep their exact state."""
        gone = set(leaving)
        for_kernel = [m for m in joining if self._is_for_kernel(m)]
        if self.kernel is not None and self._compiled is None:
            self._compiled = CompiledTrials(
                self.kernel, self.samples, self.batch_size, self.n_epochs, self._dtype
            )
        if self._compiled is not None:
            self._compiled.change(gone, for_kernel)
        self._change_stacked(gone, [m for m in joining if not self._is_for_kernel(m)])
        self._home_of = dict(self._shard_of)
        if self._compiled is not None:
            self._home_of.update({m.recipe.number: self._compiled for m in self._compiled.members})

    def train_epoch(self) -> None:
        """One epoch of every trial; their losses stay on the device until `evaluate`."""
        order = self._order(self.epoch).to(self.samples.x.device)
        if self._compiled is not None:
            self._compiled.train_epoch(order)
        for shard in self._shards:
            shard.train_epoch(order, self.before_step)
        self.epoch += 1

    def evaluate(self) -> dict[int, Scores]:
        """Metrics of the epoch just trained by trial number: one host read a shard."""
        scores = self._compiled.evaluate() if self._compiled is not None else {}
        for shard in self._shards:
            scores.update(shard.evaluate())
        return scores

    def keep_best(self, numbers: Iterable[int]) -> None:
        """Remember the weights that these trials have now."""
        for number in numbers:
            self._home_of[number].keep_best(number)

    def cost(self, member: Member) -> int:
        """What a step of the trial costs, in weights of layer 1."""
        first, *deep = (n_in * n_out for n_in, n_out in self._pairs(member))
        if self._is_for_kernel(member):
            return COST_OF_A_COMPILED_TRIAL + first + sum(deep)
        return COST_OF_A_TRIAL + first + COST_OF_A_DEEP_WEIGHT * sum(deep)

    @property
    def parameters(self) -> list[Tensor]:
        """Stacked trials' weights and biases with their padding, flat, of each shard."""
        return [shard.parameters for shard in self._shards]

    def has(self, number: int) -> bool:
        """Whether the trial has a place here (one that joins has it after `change`)."""
        return number in self._home_of

    def weights(self, number: int) -> Linears:
        """Views of a trial's weights, which the next epoch overwrites."""
        return self._home_of[number].weights(number)

    def best_weights(self, number: int) -> Linears:
        """Views of what `keep_best` kept last (zeros before)."""
        return self._home_of[number].best_weights(number)

    def states(self, number: int) -> list[Linears]:
        """Views of a trial's optimizer state."""
        return self._home_of[number].states(number)

    def save(self, member: Member) -> None:
        """Give a trial that is to leave its weights and optimizer state to take along."""
        number = member.recipe.number
        member.initial = _copies(self.weights(number))
        member.best = _copies(self.best_weights(number))
        member.states = [_copies(linears) for linears in self.states(number)]

    def _is_for_kernel(self, member: Member) -> bool:
        sizes = self.samples.n_features, self.samples.n_classes, self.batch_size
        return self.kernel is not None and is_for_kernel(member.recipe, *sizes)

    def _change_stacked(self, gone: set[int], joining: Sequence[Member]) -> None:
        before = [member for shard in self._shards for member in shard.members]
        staying = [m for m in before if m.recipe.number not in gone]
        if joining or len(staying) != len(before):
            self._arrange([*staying, *joining], {m.recipe.number for m in joining})

    def _arrange(self, members: Sequence[Member], joining: set[int]) -> None:
        """Lay out anew: what stays is copied on the device, what joins is written."""
        old = {frozenset(m.recipe.number for m in shard.members): shard for shard in self._shards}
        sources = {n: shard for n, shard in self._shard_of.items() if n not in joining}
        shards, made = [], []
        for group in self._shares(members):
            numbers = frozenset(m.recipe.number for m in group)
            kept = old.pop(numbers, None) if numbers.isdisjoint(joining) else None
            shards.append(kept or self._new_shard(group))
            if kept is None:
                made.append(shards[-1])
        for shard in old.values():
            shard.retire()
        for which in range(max((shard.n_buffers for shard in made), default=0)):
            for shard in made:
                if which < shard.n_buffers:
                    shard.fill(sources)
            for shard in old.values():
                shard.let_go(which)  # both layouts at once: one buffer only
        for shard in made:
            shard.prepare()
        self._shards = shards
        self._shard_of = {m.recipe.number: shard for shard in shards for m in shard.members}

    def _new_shard(self, members: Sequence[Member]) -> Shard:
        return Shard(
            self.samples, self._inputs, members, self.batch_size, self.n_epochs, self._dtype,
            self.tuned_for,
        )  # fmt: skip

    def _shares(self, members: Sequence[Member]) -> list[list[Member]]:
        """Trials by shard, alike ones together: shards of about the same number of bytes."""
        layout = Layout(
            [m.recipe.shape for m in members],
            self.samples.n_features, self.samples.n_classes, self.tuned_for,
        )  # fmt: skip
        alike = [members[index] for index in layout.order]
        ends = list(itertools.accumulate(map(self._n_bytes, alike)))
        most = self.shard_bytes or SHARD_BYTES.get(self.tuned_for, SHARD_BYTES["other"])
        n_shards = max(1, min(len(ends), round(ends[-1] / most))) if ends else 0
        shares: list[list[Member]] = [[] for _ in range(n_shards)]
        for member, begin, end in zip(alike, [0, *ends], ends, strict=False):
            shares[int((begin + end) / 2 / ends[-1] * n_shards)].append(member)
        return [share for share in shares if share]

    def _n_bytes(self, member: Member) -> int:
        """What a step of the trial reads and writes again in the next."""
        n_weights = sum((n_in + 1) * n_out for n_in, n_out in self._pairs(member))
        return n_weights * (1 + member.recipe.rule.n_states) * self._dtype.itemsize

    def _pairs(self, member: Member) -> list[tuple[int, int]]:
        """(inputs, outputs) of each layer."""
        widths = (self.samples.n_features, *member.recipe.shape.hidden, self.samples.n_classes)
        return list(itertools.pairwise(widths))


def _copies(linears: Linears) -> Linears:
    return [(weight.clone(), bias.clone()) for weight, bias in linears]
