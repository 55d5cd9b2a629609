"""Each trial in the path that it was begun in: plain and fused resume files are not the same.

A study may have trials of both: one that was fused yesterday is continued with --population 1.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import torch

from sweep.protocols import Exchange, Trainer
from sweep.trial import Orders, Report, Task, TrainerName, TrialResult, TrialSpec, WorkerReady


class BothPaths:
    """Trains new trials with `trainer`, those of the other path one at a time as they come.

    Args:
        task: What all trials share.
        own: What `trainer` is.
        trainer: For all but trials that were begun in the other path.
    """

    def __init__(self, task: Task, own: TrainerName, trainer: Trainer) -> None:
        self._task, self._own, self._trainer = task, own, trainer

    def train(self, exchange: Exchange) -> None:
        """Train what `exchange` orders, until it says is_last and nothing is left."""
        self._trainer.train(_Sorted(self._task, self._own, exchange))


class _Sorted:
    """An exchange that answers with trials of its own path only: others are trained by then."""

    def __init__(self, task: Task, own: TrainerName, exchange: Exchange) -> None:
        self._task, self._own, self._exchange = task, own, exchange
        self._other: Trainer | None = None

    def __call__(self, reports: Sequence[Report], n_free: int) -> Orders:
        orders = self._exchange(reports, n_free)
        mine = [spec for spec in orders.start if self._is_mine(spec)]
        others = collections.deque(spec for spec in orders.start if not self._is_mine(spec))
        stops, is_last = list(orders.stop), orders.is_last
        while others:
            aside = _OneTrial(others.popleft(), self._exchange)
            self._train_aside(aside)
            orders = self._exchange(aside.last_words, n_free - len(mine) - len(others))
            mine += [spec for spec in orders.start if self._is_mine(spec)]
            others.extend(spec for spec in orders.start if not self._is_mine(spec))
            stops += orders.stop
            is_last |= aside.is_last or orders.is_last
        return Orders(tuple(stops), tuple(mine), is_last)

    def _is_mine(self, spec: TrialSpec) -> bool:
        return spec.trainer in (None, self._own)

    def _train_aside(self, aside: _OneTrial) -> None:
        n_threads = torch.get_num_threads()
        self._other = self._other or _make_other(self._task, self._own)
        try:
            with torch.enable_grad():  # an epoch of the other path may be ending around this
                self._other.train(aside)
        finally:
            torch.set_num_threads(n_threads)


class _OneTrial:
    """An exchange for a trainer of one trial; keeps its last words for the caller to deliver."""

    def __init__(self, spec: TrialSpec, exchange: Exchange) -> None:
        self._spec, self._exchange = spec, exchange
        self.last_words: list[Report] = []
        self.is_last = False

    def __call__(self, reports: Sequence[Report], n_free: int) -> Orders:
        if any(isinstance(report, WorkerReady) for report in reports):
            return Orders(start=(self._spec,), is_last=True)
        if any(isinstance(report, TrialResult) for report in reports):
            self.last_words += reports
            return Orders(is_last=True)
        orders = self._exchange(reports, -1)  # nothing may come in the place of this trial
        self.is_last |= orders.is_last
        stops = tuple(stop for stop in orders.stop if stop.number == self._spec.number)
        return Orders(stops, is_last=True)


def _make_other(task: Task, own: TrainerName) -> Trainer:
    if own == "fused":
        from sweep.training.plain.trainer import PlainTrainer

        return PlainTrainer(task)
    from sweep.training.fused.trainer import FusedTrainer

    return FusedTrainer(dataclasses.replace(task, population=1))
