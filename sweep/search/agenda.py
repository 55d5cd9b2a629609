"""Driver bookkeeping: trials in training, and trials to train before the sampler is asked."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sweep.errors import ConfigError, did_you_mean
from sweep.ledger.orders import LONGEST_CURVE, LiveTrial
from sweep.trial import (
    EPOCHS_DONE,
    FAILURES,
    EpochReport,
    Failure,
    Stop,
    TrialResult,
    TrialSpec,
    TrialState,
)

if TYPE_CHECKING:
    from sweep.ledger.trials import LedgerTrial
    from sweep.search.proposals import Proposals


MOST_LEFT = 3
"""If so many machines leave with a trial before its next report, it may be what ends them: by the
memory that it takes, say."""


@dataclass
class Running:
    """A trial that was handed out and has not ended."""

    spec: TrialSpec
    name: str
    n_openings: int = 0
    """It is in the ledger once the recorder has done so many."""
    began: float = field(default_factory=time.monotonic)
    reports: dict[int, EpochReport] = field(default_factory=dict)
    """By epoch."""
    resumed_at: float = 0
    """Epochs that earlier searches trained."""
    told_ms: list[int] = field(default_factory=list)
    """Unix time of each epoch trained by its present worker."""
    best_epoch: int = 0
    best_value: float = math.nan
    """Objective at `best_epoch`."""
    n_since_best: int = 0
    """Reports with the objective since then."""
    stop: Stop | None = None
    n_retries: int = 0
    n_left: int = 0
    """Machines that left with it since it last got further."""
    spent_s: float = 0.0
    """Training time in workers that gave it back."""

    def costs_a_try(self, failure: Failure) -> bool:
        """Whether a transient failure is one of the few that a trial has.

        A machine that leaves is not, unless the trial may be why: it got no further on several.
        """
        if FAILURES[failure.kind].costs_a_try:
            return True
        self.n_left += 1
        return self.n_left >= MOST_LEFT

    def live(self, metric: str) -> LiveTrial:
        """How far it is, for people who look from elsewhere."""
        latest = list(itertools.islice(reversed(self.reports.values()), LONGEST_CURVE))
        values = tuple(report.metrics.get(metric, math.nan) for report in reversed(latest))
        done = latest[0].epochs_done if latest else 0
        return LiveTrial(self.spec.number, done, self.resumed_at, self.best_value, values)


@dataclass(frozen=True)
class Planned:
    """A configuration to train before the sampler is asked."""

    hyperparameters: Mapping[str, Any]
    params: Mapping[str, Any] | None
    """Optuna's parameters; None: the space cannot express the configuration."""
    number: int | None = None
    """Number of an interrupted or queued trial; None: a new trial."""
    start_epoch: int | None = None
    """Epoch of the population at the trial's first start."""
    is_baseline: bool = False
    """It has the constructors' defaults, and is the study's first trial."""
    is_queued: bool = False
    """Another program queued the trial, by Optuna's `enqueue_trial`."""


def left_over(
    trials: Sequence[LedgerTrial], proposals: Proposals
) -> tuple[list[Planned], list[str]]:
    """Unfinished trials to train: interrupted ones, and those queued by other programs.

    Other programs' running trials, and queued ones outside the space, are not touched: the second
    item has one line for each.
    """
    planned, said = [], []
    for trial in (t for t in trials if not t.state.is_finished):
        number, alone = trial.number, f"trial {trial.number} is left alone: it"
        if not trial.is_foreign:
            params = trial.params or None
            planned.append(Planned(trial.hyperparameters, params, number, trial.start_epoch))
        elif trial.queued is not None:
            try:
                queued = proposals.queued(number, trial.queued)
                planned.append(Planned(*queued, number, is_queued=True))
            except ConfigError as error:
                said.append(f"{alone} was queued, but {error}")
        else:
            said.append(f"{alone} is {trial.state}, and another program's")
    return planned, said


def verdict_of(result: TrialResult, stop: Stop | None) -> tuple[TrialState, Failure | None]:
    """The state of an ended trial. The trainer says what happened, the driver's reason decides.

    A trial stopped without an order was interrupted by its executor.
    """
    if result.outcome == "failed":
        return TrialState.FAIL, result.failure or Failure("exception", "unknown failure")
    reason = stop.reason if stop is not None else "interrupted"
    if result.outcome == "finished" or reason == "converged":
        return TrialState.COMPLETE, None
    if reason == "pruned":
        return TrialState.PRUNED, None
    if reason == "timeout":
        return TrialState.FAIL, Failure("timeout", "the trial took longer than --trial-timeout")
    return TrialState.WAITING, None


def never_logged(trial: Running, state: TrialState, metric: str) -> Failure | None:
    """The failure of a trial that ended without a value of the objective; None: it needs none.

    A trial that a user pruned before its first value was not pruned by its values.
    """
    names = {name for report in trial.reports.values() for name in report.metrics}
    if not state.is_scored or trial.best_epoch:
        return None
    if state is TrialState.PRUNED and metric not in names:
        return None
    logged = sorted(names - {"epoch_s", EPOCHS_DONE})
    what = f"it logged {', '.join(logged)}" if logged else "it logged nothing"
    hint = did_you_mean(metric, logged)
    return Failure("exception", f"the trial never logged {metric!r}; {what}{hint}")
