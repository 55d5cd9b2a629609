"""The driver's side of the seam: reports come in, orders go out, records are kept.

Everything that decides over a trial's life is here: pruning, patience, time limits, Ctrl-C,
retries, and which configuration takes a free slot.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from sweep.config.settings import RunConfig
from sweep.errors import ConfigError, must_be_one_of
from sweep.files.trial_folder import (
    BEST,
    MODEL,
    RESUME_STATE,
    TrialFiles,
    remove_broken_off_writes,
)
from sweep.keeping.retention import KeepBest
from sweep.ledger.study import Ledger
from sweep.ledger.trials import LedgerTrial
from sweep.protocols import Listener
from sweep.search.agenda import Greetings, Planned, Running, Streak, left_over
from sweep.search.endings import notice, summary_of, told_of, verdict_of
from sweep.search.proposals import Proposal, Proposals
from sweep.search.recorder import Recorder, Step
from sweep.space import run_name
from sweep.tracking import keys
from sweep.trial import (
    DEVICE_TAG,
    EndReason,
    EpochReport,
    Failure,
    Notice,
    Orders,
    Record,
    Report,
    Stop,
    StopReason,
    TrialFinished,
    TrialResult,
    TrialSpec,
    TrialStarted,
    TrialState,
    WorkerReady,
    derive_seed,
    now_ms,
)

MAX_RETRIES = 2
"""How often a trial is tried again after its worker died: the machine's fault, not the user's."""


class Driver:
    """Decides over trials. `exchange` is the seam; `request_stop` may come from a signal."""

    def __init__(
        self, config: RunConfig, ledger: Ledger, proposals: Proposals, listener: Listener,
        retention: KeepBest | None = None,
    ) -> None:  # fmt: skip
        self._config, self._ledger, self._proposals = config, ledger, proposals
        self._listener, self._retention = listener, retention or KeepBest(config)
        self._is_better = config.objective.better
        self._running: dict[int, Running] = {}
        self._planned: collections.deque[Planned] = collections.deque()
        self._again: collections.deque[Running] = collections.deque()
        """Trials whose worker died or gave them back."""
        self._n_finished = 0
        self._next_number = 0
        self._deadline = time.monotonic() + config.timeout_s if config.timeout_s else None
        self._failures = Streak()
        self._openings: list[Step] = []
        self._closings: list[Step] = []
        self._recorder = Recorder()
        self.reason: EndReason = "done"
        self._is_stopping = self._has_begun = False
        self._n_slots = 1
        """Of the last worker that got ready."""
        self._epoch = 0
        """The population epoch that ended last, in which a new trial most likely starts."""
        self._greetings = Greetings()
        self._known_names: set[str] = set()
        self.failure_message = ""
        self.unsaved: list[str] = []
        """A sentence for each interrupted trial whose resume state lacks epochs."""

    def plan(
        self,
        trials: Sequence[LedgerTrial],
        first: Sequence[tuple[Mapping[str, Any], Mapping[str, Any] | None]],
        again: Sequence[int] = (),
    ) -> None:
        """Take in what an earlier run left, what to try first, and failed trials to try again."""
        finished = [t.frozen for t in trials if t.state.is_finished]
        self._proposals.remember(self._proposals.fitting(finished))
        self._n_finished = sum(t.state.is_finished for t in trials)
        self._next_number = len(trials)
        planned, said = left_over(trials, self._proposals)
        self._planned.extend(planned)
        self._record([notice(text) for text in said])
        begun = [p.hyperparameters for p in self._planned]
        for trial in trials:
            if trial.number in again and trial.hyperparameters not in begun:
                self._planned.append(Planned(trial.hyperparameters, trial.params or None))
        known = [p.hyperparameters for p in self._planned]
        for hyperparameters, params in first:
            if hyperparameters not in known and not self._proposals.is_known(hyperparameters):
                self._planned.append(Planned(hyperparameters, params))

    def request_stop(self, reason: EndReason) -> None:
        """End the search at the next epoch boundary of each worker."""
        if not self._is_stopping:
            self.reason, self._is_stopping = reason, True

    def exchange(self, reports: Sequence[Report], n_free: int) -> Orders:
        """Take reports, decide, answer. Raises ConfigError for a metric that is not reported.

        What was handed out with the last answer is in the ledger before a report is taken.
        """
        records: list[Record] = []
        self._recorder.catch_up()
        for report in reports:
            if isinstance(report, WorkerReady):
                self._welcome(report, records)
            elif isinstance(report, Notice):
                if not isinstance(reports[0], WorkerReady) or self._greetings.are_news(
                    report.message
                ):
                    records.append(report)
            elif isinstance(report, EpochReport):
                self._note(report, records)
            else:
                self._finish(report, records)
        if self._deadline is not None and time.monotonic() > self._deadline:
            self.request_stop("timeout")
        while self._is_stopping and self._again:
            trial = self._again.popleft()
            result = TrialResult(trial.spec.number, "stopped", len(trial.reports))
            self._interrupt(trial, result, records)
        stops = self._stops([r.number for r in reports if isinstance(r, EpochReport)])
        starts = [] if self._is_stopping else self._hand_out(n_free + len(stops), records)
        self._record(records)
        if starts and not self._has_begun:
            # All of the first trials begin at one epoch of the data's order: none may be trained
            # while it is open whether the next one can be recorded.
            self._recorder.catch_up()
            self._has_begun = True
        return Orders(stops, tuple(starts), self._is_last(), self._is_stopping)

    def _welcome(self, worker: WorkerReady, records: list[Record]) -> None:
        records.append(worker)
        self._ledger.note_data(worker.dataset)
        self._ledger.note_tags({**self._ledger.tags, DEVICE_TAG: worker.device})
        self._n_slots = worker.n_slots

    def recall(self, study_dir: Path) -> None:
        """Record trials that were trained to the end when their driver died at hand-over.

        Their worker left a verdict before it spoke of it. Others go on from their checkpoint.
        """
        remove_broken_off_writes(study_dir)
        records: list[Record] = []
        waiting, self._planned = self._planned, collections.deque()
        for planned in waiting:
            number, verdict = planned.number, None
            if number is not None:
                spec = self._spec(number, planned.hyperparameters)
                verdict = TrialFiles(study_dir, number).usable_verdict(spec)
            if number is None or verdict is None:
                self._planned.append(planned)
                continue
            self._adopt(planned, number, records)
            reports, result = verdict
            reason = result.notes.get("sweep.stop")
            if reason is not None:
                self._running[number].stop = Stop(number, cast(StopReason, reason))
            for report in reports:
                self._note(dataclasses.replace(report, is_replay=True), records)
            self._finish(result, records)
        self._record(records)

    def _record(self, records: list[Record]) -> None:
        """Open and close trials in the ledger, then tell the listeners.

        In this order: whatever a listener hears of is in the ledger, and MLflow can be brought up
        to that at any time. A kill before a trial is closed costs a second look at its verdict.
        """
        tell = [functools.partial(self._listener.write, records)] if records else []
        self._recorder.record(self._openings, [*self._closings, *tell])
        self._openings, self._closings = [], []
        if self._is_last() and not self._running:
            self.settle()

    def settle(self) -> None:
        """Wait until all is recorded and told. Raises what went wrong with it."""
        self._recorder.settle()

    def abandon(self) -> None:
        """The search broke off: record what can be recorded at once."""
        self._recorder.abandon()

    def _is_last(self) -> bool:
        if self._is_stopping:
            return True
        is_full = self._n_finished + len(self._running) >= self._config.trials
        return not self._again and (is_full or self.reason == "exhausted")

    def _note(self, report: EpochReport, records: list[Record]) -> None:
        trial = self._running.get(report.number)
        if trial is None:
            return  # already ended, e.g. by its time limit
        metric = self._config.metric
        if metric not in report.metrics:
            known = sorted(set(report.metrics) - {"epoch_s"})
            raise ConfigError(must_be_one_of("--metric", metric, known))
        if report.epoch in trial.reports:
            return  # a retried trial repeats itself; each point is kept once
        if not trial.reports and report.start_epoch != trial.noted_start_epoch:
            # Before any point is recorded: a restart must see the same minibatches.
            note = functools.partial(
                self._ledger.note_start_epoch, report.number, report.start_epoch
            )
            self._openings.append(note)
        trial.start_epoch = trial.noted_start_epoch = report.start_epoch
        if self._n_slots > 1 and not report.is_replay:
            self._epoch = report.start_epoch + report.epoch
        trial.reports[report.epoch] = report
        if not report.is_replay:
            trial.told_ms.append(report.time_ms)
        records.append(report)
        records += [notice(text) for text in self._odd_names(report.metrics)]
        value = report.metrics[metric]
        best = trial.reports.get(trial.best_epoch)
        if best is None or self._is_better(value, best.metrics[metric]):
            trial.best_epoch = report.epoch
        wants_stop = self._proposals.report(report.number, report.epoch, value)
        if not report.is_replay:
            trial.stop = trial.stop or self._why_stop(trial, report, wants_stop=wants_stop)

    def _odd_names(self, names: Iterable[str]) -> list[str]:
        """What to say of metrics that MLflow cannot keep under their names, once each."""
        new = set(names) - self._known_names
        self._known_names |= new
        return keys.renamed(new) if new else []

    def _why_stop(self, trial: Running, report: EpochReport, *, wants_stop: bool) -> Stop | None:
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
        for trial in filter(None, map(self._running.get, numbers)):
            if self._is_stopping and trial.stop is None:
                trial.stop = Stop(trial.spec.number, "interrupted")
            if trial.stop is not None:
                stops.append(trial.stop)
        return tuple(stops)

    def _finish(self, result: TrialResult, records: list[Record]) -> None:
        trial = self._running.pop(result.number, None)
        if trial is None:
            return  # already ended, e.g. by its time limit
        state, failure = verdict_of(result, trial.stop)
        may_retry = failure is not None and failure.is_transient
        may_retry = may_retry and (self._is_stopping or trial.n_retries < MAX_RETRIES)
        if not may_retry and state is not TrialState.WAITING:
            self._close(trial, result, state, failure, records)
        elif self._is_stopping:
            self._interrupt(trial, result, records)
        elif failure is not None:
            trial.n_retries += 1
            self._again.append(trial)
            records.append(notice(f"trial {result.number} is tried again: {failure.message}"))
        else:
            trial.spent_s = time.monotonic() - trial.began
            self._again.append(trial)

    def _interrupt(self, trial: Running, result: TrialResult, records: list[Record]) -> None:
        """Leave a trial to the next run; note what it will have to train again."""
        files = TrialFiles(self._config.study_dir, result.number)
        n_ahead = len(trial.reports) - result.n_epochs if result.failure is None else 0
        lost = files.lost_epochs(trial.told_ms, n_ahead)
        self.unsaved += [lost] if lost else []
        self._close(trial, result, TrialState.WAITING, None, records)

    def _close(
        self,
        trial: Running,
        result: TrialResult,
        state: TrialState,
        failure: Failure | None,
        records: list[Record],
    ) -> None:
        number, files = result.number, TrialFiles(self._config.study_dir, result.number)
        best_epoch = result.best_epoch or trial.best_epoch or None
        best = trial.reports.get(best_epoch or 0)
        best_metrics = best.metrics if best else {}
        value = best_metrics.get(self._config.metric)
        record = self._retention.finish(
            TrialFinished(
                number, state, now_ms(), value, best_epoch, best_metrics, result.n_epochs,
                str(files.path(BEST)) if result.has_checkpoint else None,
                str(files.path(MODEL)) if result.has_model else None, failure,
                dict(result.notes),
            )
        )  # fmt: skip
        attrs = self._proposals.tell(number, told_of(state), value)
        reports = [trial.reports[epoch] for epoch in sorted(trial.reports)]
        is_scored = state in (TrialState.COMPLETE, TrialState.PRUNED)
        self._closings.append(
            functools.partial(
                self._write_end, number, state, value if is_scored else None, reports,
                self._config.metric, summary_of(record, trial.name, trial.metrics), attrs,
            )
        )  # fmt: skip
        records.append(record)
        if state.is_finished:
            self._n_finished += 1
            self._count_failure(failure)

    def _write_end(self, number: int, *end: Any) -> None:
        """In the recorder's thread: the ledger first, then the trial's files may go."""
        self._ledger.close_trial(number, *end)
        self._retention.closed(number)

    def _count_failure(self, failure: Failure | None) -> None:
        n_failures = self._failures.count(failure)
        if failure is not None and n_failures >= self._config.max_failures:
            what = f"{n_failures} identical failures in a row: {failure.message}"
            self.failure_message = f"the search stopped after {what}"
            self.request_stop("failed")

    def _hand_out(self, n_slots: int, records: list[Record]) -> list[TrialSpec]:
        specs: list[TrialSpec] = []
        while len(specs) < n_slots:
            if self._again:
                specs.append(self._resume(self._again.popleft()))
                continue
            if self._n_finished + len(self._running) >= self._config.trials:
                break
            spec = self._next(records)
            if spec is None:
                self.reason = "exhausted"
                break
            specs.append(spec)
        return specs

    def _resume(self, trial: Running) -> TrialSpec:
        """A trial whose worker is gone, from its checkpoint where it has one."""
        start_epoch = trial.spec.start_epoch if trial.start_epoch is None else trial.start_epoch
        trial.spec = self._from_checkpoint(trial.spec, start_epoch)
        trial.began = time.monotonic() - trial.spent_s
        self._running[trial.spec.number] = trial
        return trial.spec

    def _next(self, records: list[Record]) -> TrialSpec | None:
        planned = self._planned.popleft() if self._planned else None
        number = self._next_number
        proposal: Proposal | None
        if planned is not None and planned.number is not None:
            return self._adopt(planned, planned.number, records)
        if planned is None:
            proposal = self._proposals.ask(number)
        else:
            proposal = self._proposals.adopt(number, planned.hyperparameters, planned.params)
        if proposal is None:
            return None
        opening = (number, proposal.frozen, self._epoch)
        self._openings.append(functools.partial(self._ledger.open_trial, *opening))
        self._next_number += 1
        spec = self._spec(number, proposal.hyperparameters)
        return self._start(spec, proposal, records, self._epoch)

    def _adopt(self, planned: Planned, number: int, records: list[Record]) -> TrialSpec:
        """An interrupted trial under its own number, from its checkpoint where it has one."""
        proposal = self._proposals.adopt(number, planned.hyperparameters, planned.params)
        if planned.is_queued:
            taking = functools.partial(self._ledger.take_queued, number, proposal.frozen)
            self._openings.append(taking)
        else:
            self._openings.append(functools.partial(self._ledger.reopen_trial, number))
        spec = self._spec(number, proposal.hyperparameters)
        spec = self._from_checkpoint(spec, planned.start_epoch)
        return self._start(spec, proposal, records, spec.start_epoch or 0)

    def _spec(self, number: int, hyperparameters: Mapping[str, Any]) -> TrialSpec:
        return TrialSpec(number, hyperparameters, derive_seed(self._config.seed, "init", number))

    def _from_checkpoint(self, spec: TrialSpec, start_epoch: int | None) -> TrialSpec:
        is_resumed = TrialFiles(self._config.study_dir, spec.number).size(RESUME_STATE) > 0
        return dataclasses.replace(spec, start_epoch=start_epoch, is_resumed=is_resumed)

    def _start(
        self, spec: TrialSpec, proposal: Proposal, records: list[Record], noted: int
    ) -> TrialSpec:
        number = spec.number
        name = run_name(number, proposal.hyperparameters)
        self._running[number] = Running(spec, name, noted_start_epoch=noted)
        records.append(
            TrialStarted(
                number, name, proposal.hyperparameters, proposal.params, now_ms(),
                {"sweep.seed": str(spec.seed)},
            )
        )  # fmt: skip
        return spec
