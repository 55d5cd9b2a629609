"""The driver's side of the seam: reports come in, orders go out, records are kept.

Everything that decides over a trial's life is here: pruning, patience, time limits, Ctrl-C,
retries, and which configuration takes a free slot.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sweep.config import RunConfig
from sweep.errors import ConfigError, must_be_one_of
from sweep.ledger import Ledger, LedgerTrial
from sweep.proposals import Proposal, Proposals
from sweep.space import run_name
from sweep.trial import (
    EpochReport,
    Failure,
    Listener,
    Notice,
    Orders,
    Record,
    Report,
    Stop,
    TrialFinished,
    TrialResult,
    TrialSpec,
    TrialStarted,
    TrialState,
    WorkerReady,
    derive_seed,
)

MAX_RETRIES = 2
"""How often a trial is tried again after its worker died: the machine's fault, not the user's."""

EndReason = Literal["done", "timeout", "interrupted", "failed", "exhausted"]


@dataclass
class _Running:
    """What the driver knows of a trial that a worker trains."""

    spec: TrialSpec
    name: str
    began: float = field(default_factory=time.monotonic)
    metrics: dict[int, Mapping[str, float]] = field(default_factory=dict)
    best_epoch: int = 0
    stop: Stop | None = None
    n_retries: int = 0


@dataclass(frozen=True)
class _Planned:
    """A configuration that is to be trained whatever the sampler would say."""

    hyperparameters: Mapping[str, Any]
    params: Mapping[str, Any] | None
    number: int | None = None
    """Set for a trial that already has one: it was interrupted."""


class Driver:
    """Decides over trials. `exchange` is the seam; `request_stop` may come from a signal."""

    def __init__(
        self, config: RunConfig, ledger: Ledger, proposals: Proposals, listener: Listener
    ) -> None:
        self._config, self._ledger, self._proposals = config, ledger, proposals
        self._listener = listener
        self._maximize = config.resolved_direction == "maximize"
        self._running: dict[int, _Running] = {}
        self._planned: collections.deque[_Planned] = collections.deque()
        self._retries: collections.deque[_Running] = collections.deque()
        self._n_finished = 0
        self._next_number = 0
        self._deadline = time.monotonic() + config.timeout_s if config.timeout_s else None
        self._failures_in_a_row: tuple[str, int] = ("", 0)
        self.reason: EndReason = "done"
        self._is_stopping = False
        self.failure_message = ""

    def plan(
        self,
        trials: Sequence[LedgerTrial],
        first: Sequence[tuple[Mapping[str, Any], Mapping[str, Any] | None]],
    ) -> None:
        """Take in what an earlier run left, and the configurations to try first."""
        self._proposals.remember([t.frozen for t in trials if t.state.is_finished])
        self._n_finished = sum(t.state.is_finished for t in trials)
        self._next_number = len(trials)
        for trial in trials:
            if not trial.state.is_finished:
                params = trial.params or None
                self._planned.append(_Planned(trial.hyperparameters, params, trial.number))
        known = [p.hyperparameters for p in self._planned]
        for hyperparameters, params in first:
            if hyperparameters not in known and not self._proposals.is_known(hyperparameters):
                self._planned.append(_Planned(hyperparameters, params))

    def request_stop(self, reason: EndReason) -> None:
        """End the search at the next epoch boundary of each worker."""
        if not self._is_stopping:
            self.reason, self._is_stopping = reason, True

    def exchange(self, reports: Sequence[Report], n_free: int) -> Orders:
        """Take reports, decide, answer. Raises ConfigError for a metric that is not reported."""
        records: list[Record] = []
        for report in reports:
            if isinstance(report, WorkerReady | Notice):
                records.append(report)
            elif isinstance(report, EpochReport):
                self._note(report, records)
            else:
                self._finish(report, records)
        if self._deadline is not None and time.monotonic() > self._deadline:
            self.request_stop("timeout")
        stops = self._stops([r.number for r in reports if isinstance(r, EpochReport)])
        starts = [] if self._is_stopping else self._hand_out(n_free + len(stops), records)
        self._listener.write(records)
        return Orders(stops, tuple(starts), is_last=self._is_last())

    def _is_last(self) -> bool:
        if self._is_stopping:
            return True
        is_full = self._n_finished + len(self._running) >= self._config.trials
        return not self._retries and (is_full or self.reason == "exhausted")

    def _note(self, report: EpochReport, records: list[Record]) -> None:
        trial = self._running.get(report.number)
        if trial is None:
            return  # already ended, e.g. by its time limit
        metric = self._config.metric
        if metric not in report.metrics:
            known = sorted(set(report.metrics) - {"epoch_s"})
            raise ConfigError(must_be_one_of("--metric", metric, known))
        if report.epoch in trial.metrics:
            return  # a retried trial repeats itself; each point is kept once
        trial.metrics[report.epoch] = report.metrics
        records.append(report)
        value = report.metrics[metric]
        if not trial.best_epoch or self._is_better(value, trial.metrics[trial.best_epoch][metric]):
            trial.best_epoch = report.epoch
        wants_stop = self._proposals.report(report.number, report.epoch, value)
        trial.stop = trial.stop or self._why_stop(trial, report, wants_stop=wants_stop)

    def _why_stop(self, trial: _Running, report: EpochReport, *, wants_stop: bool) -> Stop | None:
        limit, patience = self._config.trial_timeout_s, self._config.patience
        if limit is not None and time.monotonic() - trial.began > limit:
            return Stop(report.number, "timeout")
        if report.epoch >= self._config.epochs:
            return None  # it is done: there is nothing to save by ending it
        if wants_stop:
            return Stop(report.number, "pruned")
        if patience is not None and report.epoch - trial.best_epoch >= patience:
            return Stop(report.number, "converged")
        return None

    def _stops(self, numbers: Sequence[int]) -> tuple[Stop, ...]:
        stops = []
        for number in numbers:
            trial = self._running.get(number)
            if trial is None:
                continue
            if self._is_stopping and trial.stop is None:
                trial.stop = Stop(number, "interrupted")
            if trial.stop is not None:
                stops.append(trial.stop)
        return tuple(stops)

    def _finish(self, result: TrialResult, records: list[Record]) -> None:
        trial = self._running.pop(result.number, None)
        if trial is None:
            return  # already ended, e.g. by its time limit
        state, failure = _verdict(result, trial.stop)
        may_retry = trial.n_retries < MAX_RETRIES and not self._is_stopping
        if failure is not None and failure.kind in ("killed", "oom") and may_retry:
            trial.n_retries += 1
            self._retries.append(trial)
            records.append(_notice(f"trial {result.number} is tried again: {failure.message}"))
            return
        self._close(trial, result, state, failure, records)

    def _close(
        self,
        trial: _Running,
        result: TrialResult,
        state: TrialState,
        failure: Failure | None,
        records: list[Record],
    ) -> None:
        number, metric = result.number, self._config.metric
        best_epoch = result.best_epoch or trial.best_epoch or None
        best_metrics = trial.metrics.get(best_epoch or 0, {})
        value = best_metrics.get(metric)
        record = TrialFinished(
            number, state, now_ms(), value, best_epoch, best_metrics, result.n_epochs,
            result.checkpoint, result.model_file, failure, dict(result.notes),
        )  # fmt: skip
        attrs = self._proposals.tell(number, _told(state), value)
        curve = {epoch: m[metric] for epoch, m in trial.metrics.items()}
        is_scored = state in (TrialState.COMPLETE, TrialState.PRUNED)
        self._ledger.close_trial(
            number, state, value if is_scored else None, curve, self._summary(record, trial), attrs
        )
        records.append(record)
        if state.is_finished:
            self._n_finished += 1
            self._count_failure(failure)

    def _summary(self, record: TrialFinished, trial: _Running) -> dict[str, Any]:
        failure = record.failure
        return {
            "name": trial.name,
            "best_epoch": record.best_epoch,
            "n_epochs": record.n_epochs,
            "metrics": dict(record.best_metrics),
            "seconds": round(sum(m.get("epoch_s", 0.0) for m in trial.metrics.values()), 4),
            "checkpoint": record.checkpoint,
            "failure": failure and {"kind": failure.kind, "message": failure.message},
            **record.tags,
        }

    def _count_failure(self, failure: Failure | None) -> None:
        if failure is None or failure.kind in ("nan", "timeout"):
            self._failures_in_a_row = ("", 0)
            return
        last, n = self._failures_in_a_row
        what = f"{failure.kind}: {failure.message}"
        self._failures_in_a_row = (what, n + 1 if what == last else 1)
        if self._failures_in_a_row[1] >= self._config.max_failures:
            self.failure_message = (
                f"the search stopped after {self._failures_in_a_row[1]} identical failures in a "
                f"row: {failure.message}"
            )
            self.request_stop("failed")

    def _hand_out(self, n_slots: int, records: list[Record]) -> list[TrialSpec]:
        specs: list[TrialSpec] = []
        while len(specs) < n_slots:
            if self._retries:
                trial = self._retries.popleft()
                self._running[trial.spec.number] = trial
                trial.began = time.monotonic()
                specs.append(trial.spec)
                continue
            if self._n_finished + len(self._running) >= self._config.trials:
                break
            spec = self._next(records)
            if spec is None:
                self.reason = "exhausted"
                break
            specs.append(spec)
        return specs

    def _next(self, records: list[Record]) -> TrialSpec | None:
        planned = self._planned.popleft() if self._planned else None
        number = self._next_number
        proposal: Proposal | None
        if planned is None:
            proposal = self._proposals.ask(number)
        else:
            number = number if planned.number is None else planned.number
            proposal = self._proposals.adopt(number, planned.hyperparameters, planned.params)
        if proposal is None:
            return None
        if planned is not None and planned.number is not None:
            self._ledger.reopen_trial(number)
        else:
            self._ledger.open_trial(number, proposal.frozen)
            self._next_number += 1
        return self._start(number, proposal, records)

    def _start(self, number: int, proposal: Proposal, records: list[Record]) -> TrialSpec:
        seed = derive_seed(self._config.seed, "init", number)
        spec = TrialSpec(number, proposal.hyperparameters, seed)
        name = run_name(number, proposal.hyperparameters)
        self._running[number] = _Running(spec, name)
        records.append(
            TrialStarted(
                number, name, proposal.hyperparameters, proposal.params, now_ms(),
                {"sweep.seed": str(seed)},
            )
        )  # fmt: skip
        return spec

    def _is_better(self, value: float, than: float) -> bool:
        return value > than if self._maximize else value < than


def _verdict(result: TrialResult, stop: Stop | None) -> tuple[TrialState, Failure | None]:
    """The state that a trial ends in: the trainer says what happened, the driver what it means."""
    if result.outcome == "failed":
        return TrialState.FAIL, result.failure or Failure("exception", "unknown failure")
    if stop is None or result.outcome == "finished" or stop.reason == "converged":
        return TrialState.COMPLETE, None
    if stop.reason == "pruned":
        return TrialState.PRUNED, None
    if stop.reason == "timeout":
        return TrialState.FAIL, Failure("timeout", "the trial took longer than --trial-timeout")
    return TrialState.WAITING, None


def _told(state: TrialState) -> TrialState:
    """What the sampler hears: an interrupted trial taught it nothing."""
    return TrialState.FAIL if state is TrialState.WAITING else state


def _notice(message: str) -> Notice:
    return Notice(now_ms(), message)


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000
