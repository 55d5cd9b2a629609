"""Populations side by side, one thread each.

Two threads inside every operation wait for each other hundreds of times a step; two populations
with a thread each do not, and nothing spins when somebody else takes a core. torch gives Python's
lock back while it computes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import torch

from sweep.training.fused.population import Population
from sweep.training.members import Member, Scores

MOST_LANES = 4
"""Of stacked trials, a judgement: past it, threads would wait for Python's lock rather than for
each other. The compiled kernel does without that lock."""
WORTH_MOVING, WORTH_MOVING_COMPILED = 0.1, 0.01
"""A trial changes lanes where that makes the longest lane shorter by this share. Stacks are laid
out anew for it; compiled trials are not."""


class Lanes:
    """All populations of a worker; trials join, leave and change lanes between epochs.

    Changes torch's thread count in the calling thread; the caller must restore it.

    Args:
        make: (minibatch size, population epoch) -> an empty population.
        n_threads: Threads that may train; 1 where the device is not a CPU.
        most: Lanes at most.
    """

    def __init__(
        self, make: Callable[[int, int], Population], n_threads: int, most: int = MOST_LANES
    ) -> None:
        self._make, self._n_threads = make, n_threads
        self._n_lanes = max(1, min(n_threads, most))
        self._pool = ThreadPoolExecutor(self._n_lanes, "lane")
        self._populations: list[Population] = []
        self._leaving: dict[Population, set[int]] = {}
        self._joining: dict[Population, list[Member]] = {}

    @property
    def populations(self) -> tuple[Population, ...]:
        """Those that have trials, since the last `change`."""
        return tuple(self._populations)

    def place(self, member: Member, batch_size: int, epoch: int | None) -> Population:
        """The population that a trial will join, at population epoch `epoch` (None: any)."""
        alike = [
            p for p in self._populations if p.batch_size == batch_size and epoch in (None, p.epoch)
        ]
        epoch = alike[0].epoch if alike else epoch or 0
        alike = [p for p in alike if p.epoch == epoch]
        chosen = min(alike, key=self._cost, default=None)
        has_room = len(self._populations) < self._n_lanes
        if chosen is None or (has_room and self._cost(chosen) > 0):
            chosen = self._make(batch_size, epoch)
            self._populations.append(chosen)
        self._joining.setdefault(chosen, []).append(member)
        return chosen

    def leave(self, number: int) -> None:
        """Let a trial go, or forget one that has not joined yet."""
        for members in self._joining.values():
            for member in members:
                if member.number == number:
                    members.remove(member)
                    return
        for population in self._populations:
            if population.has(number):
                self._leaving.setdefault(population, set()).add(number)

    def change(self) -> dict[int, Population]:
        """Do all that was asked, each population once; the new places of trials that moved."""
        moved = self._balance()
        for population in {*self._leaving, *self._joining}:
            population.change(self._leaving.get(population, ()), self._joining.get(population, ()))
        self._leaving, self._joining = {}, {}
        self._populations = [p for p in self._populations if p.members]
        self._share_threads()
        return moved

    def train_epoch(
        self, meanwhile: Callable[[], None]
    ) -> list[tuple[Population, dict[int, Scores]]]:
        """Train and validate every population; what one raises is raised when all are through.

        `meanwhile` is called while they train, unless there is only one lane.
        """
        if self._n_lanes == 1 or len(self._populations) == 1:
            return [(p, _train(p, None)) for p in self._populations]
        n_threads = self._n_threads_each
        longest_first = sorted(self._populations, key=self._cost, reverse=True)
        jobs = [self._pool.submit(_train, p, n_threads) for p in longest_first]
        meanwhile()
        wait(jobs)
        return [(p, job.result()) for p, job in zip(longest_first, jobs, strict=True)]

    @property
    def _n_threads_each(self) -> int:
        """Threads for each of several populations."""
        return max(1, self._n_threads // len(self._populations))

    def _share_threads(self) -> None:
        """A population alone uses all threads."""
        if self._n_lanes > 1 and self._populations:
            # What is done between epochs is small: a thread that helped would spin afterwards.
            torch.set_num_threads(self._n_threads_each)

    def _balance(self) -> dict[int, Population]:
        """Move trials from long lanes to short ones as long as that pays."""
        moved: dict[int, Population] = {}
        lanes = sorted(self._populations, key=lambda p: (p.batch_size, p.epoch))
        for _, run in itertools.groupby(lanes, lambda p: (p.batch_size, p.epoch)):
            alike = list(run)
            while len(alike) > 1 and (move := self._best_move(alike)) is not None:
                member, source, target = move
                if source.has(member.number):
                    source.save(member)
                self.leave(member.number)
                self._joining.setdefault(target, []).append(member)
                moved[member.number] = target
        return moved

    def _best_move(
        self, alike: Sequence[Population]
    ) -> tuple[Member, Population, Population] | None:
        longest, shortest = max(alike, key=self._cost), min(alike, key=self._cost)
        long, short = self._cost(longest), self._cost(shortest)
        costs = {m: _cost(longest, [m]) for m in self._members(longest)}
        becomes = {m: max(long - cost, short + cost) for m, cost in costs.items()}
        best = min(becomes, key=becomes.__getitem__, default=None)
        worth = WORTH_MOVING if longest.kernel is None else WORTH_MOVING_COMPILED
        if best is None or becomes[best] > (1.0 - worth) * long:
            return None
        return best, longest, shortest

    def _members(self, population: Population) -> list[Member]:
        """Those of its next epoch."""
        gone = self._leaving.get(population, ())
        staying = [m for m in population.members if m.number not in gone]
        return [*staying, *self._joining.get(population, ())]

    def _cost(self, population: Population) -> int:
        return _cost(population, self._members(population))


def _cost(population: Population, members: Iterable[Member]) -> int:
    """What a step of these trials costs."""
    return sum(population.cost(member) for member in members)


def _train(population: Population, n_threads: int | None) -> dict[int, Scores]:
    if n_threads is not None:
        torch.set_num_threads(n_threads)  # of this thread
    with torch.no_grad():
        population.train_epoch()
        return population.evaluate()
