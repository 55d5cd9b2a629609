"""The state of a running search, kept up to date from records, for displays."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sweep.objective import Objective
from sweep.trial import (
    EPOCHS_DONE,
    EpochReport,
    HyperValue,
    Record,
    StudyExtended,
    StudyInfo,
    TrialFinished,
    TrialStarted,
    TrialState,
    WorkerReady,
    seconds_of,
)

SAME_EPOCH_S = 0.05
"""Reports this close together come from trials of one population."""


@dataclass(slots=True)
class TrialProgress:
    """One trial as far as its records go."""

    number: int
    name: str
    hyperparameters: Mapping[str, HyperValue] = field(default_factory=dict)
    resumed_at: float = 0
    """Epochs that earlier sessions trained."""
    metrics: dict[int, Mapping[str, float]] = field(default_factory=dict)
    """All metrics by report (an epoch, or a validation within one), in order."""
    values: list[float] = field(default_factory=list)
    """The study's metric at each of these reports; NaN if it was not among them."""
    best: float | None = None
    """The best metric so far."""

    @property
    def epoch(self) -> int:
        """The last report, from 1; 0 before the first."""
        return next(reversed(self.metrics), 0)

    def epochs_at(self, report: int) -> float:
        """Epochs trained at a report."""
        return self.metrics.get(report, {}).get(EPOCHS_DONE, report)

    @property
    def epochs_done(self) -> float:
        """Epochs trained, with a begun one's part."""
        return self.epochs_at(self.epoch) if self.metrics else self.resumed_at

    @property
    def seconds(self) -> float:
        """Its training time so far (see `sweep.trial.seconds_of`)."""
        return seconds_of(self.metrics.values())


class Progress:
    """The state of one search. Cost of a record: constant. Not thread-safe.

    `clock` gives seconds that only grow.
    """

    def __init__(self, study: StudyInfo, clock: Callable[[], float] = time.monotonic) -> None:
        self.study = study
        self._objective = Objective(study.metric, study.direction)
        self.running: dict[int, TrialProgress] = {}
        self.interrupted: dict[int, TrialProgress] = {}
        """Trials that wait for the next session, with their epochs."""
        self.counts: Counter[TrialState] = Counter()
        self.best_value = study.best_value
        self.best_number = study.best_number
        self.best_name = "" if study.best_number is None else f"trial {study.best_number}"
        self.worker: WorkerReady | None = None
        """The first one."""
        self._clock = clock
        self._opened_s = clock()
        self._states: dict[int, TrialState] = {}
        self._finished_work = 0.0
        self._first: tuple[float, float] | None = None
        """When the first epoch of this session had ended, and the work done by then."""
        self._news_s = self._opened_s

    @property
    def n_done(self) -> int:
        """Finished trials of the study, those of earlier sessions included."""
        return self.study.n_done + len(self._states)

    @property
    def elapsed_s(self) -> float:
        """Seconds since this session opened the study."""
        return self._clock() - self._opened_s

    @property
    def epoch_age_s(self) -> float:
        """Seconds since the last epoch ended, or since trials started before that."""
        return self._clock() - self._news_s

    @property
    def share(self) -> float:
        """Finished part of the study, from 0 to 1; a trial counts by its epochs."""
        total = max(self.study.n_trials, 1)
        begun = [*self.running.values(), *self.interrupted.values()]
        return min(1.0, (self.n_done + sum(map(self._part, begun))) / total)

    def apply(self, record: Record) -> TrialProgress | None:
        """Take in `record`; returns its trial, or None for a record of the search."""
        if isinstance(record, TrialStarted):
            return self._start(record)
        if isinstance(record, EpochReport):
            return self._report(record)
        if isinstance(record, TrialFinished):
            return self._finish(record)
        if isinstance(record, WorkerReady):
            self.worker = self.worker or record
        elif isinstance(record, StudyExtended):
            self.study = dataclasses.replace(self.study, n_trials=record.n_trials)
        return None

    def begin_measuring(self) -> None:
        """Let `eta_s` count the work from now on, without that of earlier searches."""
        self._first = self._clock(), self._work()

    def is_better(self, value: float, than: float | None) -> bool:
        """Whether `value` beats `than` (None, NaN: any finite number does)."""
        return self._objective.better(value, math.nan if than is None else than)

    def ranked(self) -> list[TrialProgress]:
        """Running trials, best metric so far first; of equals the lower number."""
        goodness = self._objective.goodness
        return sorted(self.running.values(), key=lambda t: (-goodness(t.best), t.number))

    def leader(self) -> TrialProgress | None:
        """The running trial with the best metric so far."""
        first = next(iter(self.ranked()), None)
        return None if first is None or first.best is None else first

    def eta_s(self) -> float | None:
        """Estimated seconds until the last trial is done; None before two epochs were measured.

        Remaining work over work per second. The measurement begins at the end of the session's
        first epoch, because start-up and compilation would spoil it.
        """
        if self._first is None:
            return None
        since_s, before = self._first
        done, spent_s = self._work() - before, self._news_s - since_s
        if done <= 0 or spent_s < SAME_EPOCH_S:
            return None
        left = self.study.n_trials - self.n_done
        left_work = max(0.0, left - sum(map(self._part, self.running.values())))
        # Work is known at reports only: between two of them the estimate counts down.
        return max(0.0, left_work / done * spent_s - (self._clock() - self._news_s))

    def _part(self, trial: TrialProgress) -> float:
        return min(1.0, trial.epochs_done / max(self.study.epochs, 1))

    def _work(self) -> float:
        """Trials' worth of work that this session did."""
        epochs = max(self.study.epochs, 1)
        running = sum((t.epochs_done - t.resumed_at) / epochs for t in self.running.values())
        return self._finished_work + running

    def _start(self, record: TrialStarted) -> TrialProgress:
        # A trial may start again: taken up after a crash, or retried in a smaller population.
        state = self._states.pop(record.number, None)
        if state is not None:
            self.counts[state] -= 1
        self.interrupted.pop(record.number, None)
        if not self.running:
            self._news_s = self._clock()
        trial = self.running.setdefault(record.number, TrialProgress(record.number, record.name))
        trial.name, trial.hyperparameters = record.name, record.hyperparameters
        return trial

    def _report(self, record: EpochReport) -> TrialProgress | None:
        if record.number in self._states:
            return None
        trial = self.running.setdefault(record.number, self._unnamed(record.number))
        if record.is_replay or not trial.metrics:
            trial.resumed_at = _begun_at(record)
        while trial.metrics and trial.epoch >= record.epoch:
            trial.metrics.popitem()
            trial.values.pop()
        value = record.metrics.get(self.study.metric, math.nan)
        trial.metrics[record.epoch] = record.metrics
        trial.values.append(value)
        if self.is_better(value, trial.best):
            trial.best = value
        if not record.is_replay:
            self._measure()
        return trial

    def _measure(self) -> None:
        """An epoch ended now."""
        self._news_s = self._clock()
        if self._first is None or self._news_s - self._first[0] < SAME_EPOCH_S:
            since_s = self._news_s if self._first is None else self._first[0]
            self._first = since_s, self._work()

    def _finish(self, record: TrialFinished) -> TrialProgress:
        trial = self.running.pop(record.number, None) or self._unnamed(record.number)
        if not record.state.is_finished:
            self.interrupted[record.number] = trial
            return trial
        if record.number in self._states:
            self.counts[self._states[record.number]] -= 1
        else:
            self._finished_work += 1 - trial.resumed_at / max(self.study.epochs, 1)
        self._states[record.number] = record.state
        self.counts[record.state] += 1
        if record.state is TrialState.COMPLETE and record.value is not None:
            self._take_best(record.number, record.value, trial.name)
        return trial

    def _take_best(self, number: int, value: float, name: str) -> None:
        """Of equal values the lower number is the best, whichever trial ended first."""
        is_earlier = value == self.best_value and number < (self.best_number or 0)
        if is_earlier or self.is_better(value, self.best_value):
            self.best_value, self.best_number, self.best_name = value, number, name

    @staticmethod
    def _unnamed(number: int) -> TrialProgress:
        return TrialProgress(number, f"t{number:03d}")


def _begun_at(first: EpochReport) -> float:
    """Epochs trained before this session, by a trial's first report in it."""
    if first.is_replay:
        return first.epochs_done
    return 0.0 if EPOCHS_DONE in first.metrics else first.epoch - 1
