"""What a display knows of a running search: a picture kept up to date from records."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sweep.objective import Objective
from sweep.trial import (
    EpochReport,
    HyperValue,
    Record,
    StudyInfo,
    TrialFinished,
    TrialStarted,
    TrialState,
    WorkerReady,
)


@dataclass(slots=True)
class TrialProgress:
    """One trial as far as its records go."""

    number: int
    name: str
    hyperparameters: Mapping[str, HyperValue] = field(default_factory=dict)
    started_ms: int | None = None
    """Unix time in milliseconds at which it first started, or None where that was not seen."""
    resumed_at: int = 0
    """Epochs it had behind it when this session took it up."""
    curve: list[tuple[int, float]] = field(default_factory=list)
    """(epoch, metric) in order; a metric that was not reported is NaN."""
    best: float | None = None
    """The best metric so far."""

    @property
    def epoch(self) -> int:
        """The last finished epoch, from 1; 0 before the first."""
        return self.curve[-1][0] if self.curve else self.resumed_at


class Progress:
    """The state of one search. Cost of a record: constant. Not thread-safe.

    `clock` gives seconds that only grow. The remaining time is epochs left over epochs per
    second since the first epoch began, so it is known before the first trial ends (in a
    population all may end at once) and start-up does not spoil it.
    """

    def __init__(self, study: StudyInfo, clock: Callable[[], float] = time.monotonic) -> None:
        self.study = study
        self.running: dict[int, TrialProgress] = {}
        self.counts: Counter[TrialState] = Counter()
        self.best_value = study.best_value
        self.best_number = study.best_number
        self.best_name = "" if study.best_number is None else f"trial {study.best_number}"
        self.worker: WorkerReady | None = None
        self._clock = clock
        self._opened_s = clock()
        self._states: dict[int, TrialState] = {}
        self._finished_work = 0.0
        self._work_since_s: float | None = None
        self._reported_s = self._opened_s

    @property
    def n_done(self) -> int:
        """Finished trials of the study, those of earlier sessions included."""
        return self.study.n_done + len(self._states)

    @property
    def elapsed_s(self) -> float:
        """Seconds since this session opened the study."""
        return self._clock() - self._opened_s

    def apply(self, record: Record) -> TrialProgress | None:
        """Take in `record`; returns the trial that it is about, None where it is about none."""
        if isinstance(record, TrialStarted):
            return self._start(record)
        if isinstance(record, EpochReport):
            return self._report(record)
        if isinstance(record, TrialFinished):
            return self._finish(record)
        if isinstance(record, WorkerReady):
            self.worker = record
        return None

    def is_better(self, value: float, than: float | None) -> bool:
        """Whether `value` beats `than` (None, NaN: anything that is a number does)."""
        objective = Objective(self.study.metric, self.study.direction)
        return objective.better(value, math.nan if than is None else than)

    def leader(self) -> tuple[TrialProgress, float] | None:
        """The running trial with the best metric so far, and that metric."""
        found: tuple[TrialProgress, float] | None = None
        for trial in self.running.values():
            if trial.best is not None and self.is_better(trial.best, found[1] if found else None):
                found = (trial, trial.best)
        return found

    def eta_s(self) -> float | None:
        """Estimated seconds until the last trial is done; None while nothing is known."""
        epochs = max(self.study.epochs, 1)
        done = self._finished_work + sum(
            (t.epoch - t.resumed_at) / epochs for t in self.running.values()
        )
        if self._work_since_s is None or done <= 0:
            return None
        left = self.study.n_trials - self.n_done
        left_work = max(0.0, left - sum(t.epoch / epochs for t in self.running.values()))
        # Work is known at reports only: between two of them the estimate counts down.
        spent_s = max(self._reported_s - self._work_since_s, 1e-3)
        return max(0.0, left_work / done * spent_s - (self._clock() - self._reported_s))

    def _start(self, record: TrialStarted) -> TrialProgress:
        # A trial may start again: taken up after a crash, or retried in a smaller population.
        state = self._states.pop(record.number, None)
        if state is not None:
            self.counts[state] -= 1
        trial = self.running.setdefault(record.number, TrialProgress(record.number, record.name))
        trial.name, trial.hyperparameters = record.name, record.hyperparameters
        trial.started_ms = trial.started_ms or record.time_ms
        return trial

    def _report(self, record: EpochReport) -> TrialProgress | None:
        if record.number in self._states:
            return None
        trial = self.running.setdefault(record.number, self._unnamed(record.number))
        if self._work_since_s is None:
            epoch_s = record.metrics.get("epoch_s", 0.0)
            self._work_since_s = self._clock() - (epoch_s if math.isfinite(epoch_s) else 0.0)
        if not trial.curve:
            trial.resumed_at = record.epoch - 1
        while trial.curve and trial.curve[-1][0] >= record.epoch:
            trial.curve.pop()
        value = record.metrics.get(self.study.metric, math.nan)
        trial.curve.append((record.epoch, value))
        if self.is_better(value, trial.best):
            trial.best = value
        self._reported_s = self._clock()
        return trial

    def _finish(self, record: TrialFinished) -> TrialProgress:
        trial = self.running.pop(record.number, None) or self._unnamed(record.number)
        if record.number in self._states:
            self.counts[self._states[record.number]] -= 1
        else:
            self._finished_work += 1 - trial.resumed_at / max(self.study.epochs, 1)
            self._reported_s = self._clock()
        self._states[record.number] = record.state
        self.counts[record.state] += 1
        if (
            record.state is TrialState.COMPLETE
            and record.value is not None
            and self.is_better(record.value, self.best_value)
        ):
            self.best_value, self.best_number = record.value, record.number
            self.best_name = trial.name
        return trial

    @staticmethod
    def _unnamed(number: int) -> TrialProgress:
        return TrialProgress(number, f"t{number:03d}")
