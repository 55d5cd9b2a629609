"""The driver's side of the seam: takes reports, gives orders, keeps records.

All decisions over a trial's life are made here: pruning, patience, time limits, Ctrl-C, retries,
and the configuration of the next trial.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from sweep.config.settings import RunConfig
from sweep.environment.sources import source_tags
from sweep.files.trial_files import (
    BEST,
    LOGGED,
    MODEL,
    RESUME_STATE,
    TrialFiles,
    remove_broken_off_writes,
)
from sweep.keeping.retention import KeepBest
from sweep.ledger.orders import LiveTrial
from sweep.ledger.study import Ledger
from sweep.ledger.trials import BASELINE, LedgerTrial
from sweep.protocols import Listener
from sweep.search.agenda import Planned, Running, left_over, never_logged, verdict_of
from sweep.search.proposals import Proposal, Proposals
from sweep.search.recorder import Recorder, Step
from sweep.search.tasks import sources_of
from sweep.space import run_name
from sweep.tracking import keys
from sweep.trial import (
    DEVICE_TAG,
    FAILURES,
    EndReason,
    EpochReport,
    Failure,
    Orders,
    Pulse,
    Record,
    Report,
    Stop,
    StopReason,
    StudyExtended,
    TrialFinished,
    TrialResult,
    TrialSpec,
    TrialStarted,
    TrialState,
    WorkerReady,
    derive_seed,
    notice,
    now_ms,
)

MAX_RETRIES = 2
"""How often a trial is tried again after its worker died: the machine's fault, not the user's."""


class Driver:
    """Decides over trials. `exchange` is the seam; `request_stop` may come from a signal."""

    def __init__(
        self, config: RunConfig, ledger: Ledger, proposals: Proposals,
        listeners: Sequence[Listener] = (), retention: KeepBest | None = None,
    ) -> None:  # fmt: skip
        self._config, self._ledger, self._proposals = config, ledger, proposals
        self._listeners, self._retention = listeners, retention
        self._is_better = config.objective.better
        self._running: dict[int, Running] = {}
        self._planned: collections.deque[Planned] = collections.deque()
        self._again: collections.deque[Running] = collections.deque()
        """Trials to hand out again: their worker died or gave them back."""
        self.n_trials = config.trials
        """Finished trials that the study is to have in all."""
        self._unwanted: set[int] = set()
        """Trials that a user pruned."""
        self._n_finished = 0
        self._next_number = 0
        self._deadline = time.monotonic() + config.timeout_s if config.timeout_s else None
        self._last_failure, self._n_same = "", 0
        """The failure of the last ended trial, and how many in a row had it."""
        self._records: list[Record] = []
        self._openings: list[Step] = []
        self._closings: list[Step] = []
        """To be recorded with the present answer."""
        self._recorder = Recorder()
        self.reason: EndReason = "done"
        self._is_stopping = self._has_begun = False
        self._said: set[str] = set()
        self._known_metrics: set[str] = set()
        self._sources = source_tags(sources_of(config))
        self.failure_message = ""
        self.unsaved: list[str] = []
        """A sentence for each interrupted trial whose resume file lacks epochs."""

    def plan(
        self,
        trials: Sequence[LedgerTrial],
        first: Sequence[tuple[Mapping[str, Any], Mapping[str, Any] | None]],
        again: Sequence[int] = (),
        *, has_baseline: bool = False,
    ) -> None:  # fmt: skip
        """Take in the study's trials; plan the first configurations and failed ones to repeat.

        `has_baseline`: the first configuration is the baseline of a new study.
        """
        self._take_in(trials)
        begun = [p.hyperparameters for p in self._planned]
        for trial in trials:
            if trial.number in again and trial.hyperparameters not in begun:
                self._planned.append(Planned(trial.hyperparameters, trial.params or None))
        known = [p.hyperparameters for p in self._planned]
        for place, (hyperparameters, params) in enumerate(first):
            is_baseline = has_baseline and place == 0
            if is_baseline and trials:
                continue
            if hyperparameters not in known and not self._proposals.is_known(hyperparameters):
                planned = Planned(hyperparameters, params, is_baseline=is_baseline)
                self._planned.append(planned)
        self._record()

    def _take_in(self, trials: Sequence[LedgerTrial]) -> None:
        """Learn from finished trials, plan unfinished ones; `trials` are the latest, by number."""
        finished = [t.frozen for t in trials if t.state.is_finished]
        self._proposals.remember(finished)
        self._n_finished += len(finished)
        self._next_number += len(trials)
        planned, said = left_over(trials, self._proposals)
        self._planned.extend(planned)
        self.say(said)

    def recall(self, study_dir: Path) -> None:
        """Record trials that had ended, but were not recorded when their driver died.

        Their worker left a verdict in the trial's folder before it reported. Other unfinished
        trials continue from their checkpoints.
        """
        remove_broken_off_writes(study_dir)
        waiting, self._planned = self._planned, collections.deque()
        for planned in waiting:
            number, verdict = planned.number, None
            if number is not None:
                spec = self._spec(number, planned.hyperparameters)
                verdict = TrialFiles(study_dir, number).usable_verdict(spec)
            if number is None or verdict is None:
                self._planned.append(planned)
                continue
            self._adopt(planned, number)
            reports, result = verdict
            reason = result.notes.get("sweep.stop")
            if reason is not None:
                self._running[number].stop = Stop(number, cast(StopReason, reason))
            for report in reports:
                self._note(dataclasses.replace(report, is_replay=True))
            self._finish(result)
        self._record()

    def request_stop(self, reason: EndReason) -> None:
        """End the search at the next epoch boundary of each worker."""
        if not self._is_stopping:
            self.reason, self._is_stopping = reason, True

    def extend(self, n_trials: int) -> None:
        """Raise the study's total, here and in the ledger."""
        if n_trials > self.n_trials:
            self.n_trials = n_trials
            self._records.append(StudyExtended(now_ms(), n_trials))
        self.write_soon(partial(self._ledger.raise_total, n_trials))

    def prune(self, number: int) -> bool:
        """End a trial at its next report, or at its first one if it waits; False: it has ended."""
        begun = [t for t in (*self._running.values(), *self._again) if t.spec.number == number]
        for trial in begun:
            trial.stop = trial.stop or Stop(number, "pruned")
        is_to_come = number >= self._next_number or any(p.number == number for p in self._planned)
        self._unwanted.add(number)
        return bool(begun) or is_to_come

    def live(self) -> tuple[LiveTrial, ...]:
        """The running trials."""
        return tuple(trial.live(self._config.metric) for trial in self._running.values())

    def write_soon(self, step: Step, *, is_first: bool = False) -> None:
        """Let the recorder do a step after those decided so far; `is_first`: before closings."""
        (self._openings if is_first else self._closings).append(step)

    def say(self, lines: Iterable[str]) -> None:
        """Tell the user, with the next records."""
        self._records += map(notice, lines)

    def settle(self) -> None:
        """Wait until everything is recorded and told. Raises errors of the recorder."""
        self._recorder.settle()

    def abandon(self) -> None:
        """After an error: record what can be recorded at once."""
        self._recorder.abandon()

    def exchange(self, reports: Sequence[Report], n_free: int) -> Orders:
        """Take reports, decide, answer. A trial is in the ledger before its report is taken."""
        speaking = [self._running.get(getattr(report, "number", -1)) for report in reports]
        self._recorder.catch_up(max((t.n_openings for t in speaking if t), default=0))
        is_greeting = bool(reports) and isinstance(reports[0], WorkerReady)
        for report in reports:
            if isinstance(report, WorkerReady):
                self._welcome(report)
            elif isinstance(report, EpochReport):
                self._note(report)
            elif isinstance(report, Pulse):
                self._feel(report)
            elif isinstance(report, TrialResult):
                self._finish(report)
            elif not (is_greeting and report.message in self._said):
                self._said.add(report.message)
                self._records.append(report)
        if self._deadline is not None and time.monotonic() > self._deadline:
            self.request_stop("timeout")
        while self._is_stopping and self._again:
            trial = self._again.popleft()
            self._interrupt(trial, TrialResult(trial.spec.number, "stopped", len(trial.reports)))
        stops = self._stops(
            {r.number: r.epoch for r in reports if isinstance(r, EpochReport | Pulse)}
        )
        starts = [] if self._is_stopping else self._hand_out(n_free + len(stops))
        self._record()
        if starts and not self._has_begun:
            # The first trials begin at the same epoch of the data's order, so none may train while
            # recording another one may still fail.
            self._recorder.catch_up(self._recorder.n_openings)
            self._has_begun = True
        return Orders(stops, tuple(starts), self._is_last(), self._is_stopping)

    def _record(self) -> None:
        """Open and close trials in the ledger, then tell the listeners.

        So all that a listener hears of is in the ledger, and MLflow can be brought up to it at any
        time.
        """
        records, self._records = self._records, []
        tell = [partial(listener.write, records) for listener in self._listeners if records]
        self._recorder.record(self._openings, self._closings, tell)
        self._openings, self._closings = [], []
        if self._is_last() and not self._running:
            self.settle()

    def _is_last(self) -> bool:
        if self._is_stopping:
            return True
        return not self._again and (self._is_full() or self.reason == "exhausted")

    def _is_full(self) -> bool:
        return self._n_finished + len(self._running) >= self.n_trials

    def _welcome(self, worker: WorkerReady) -> None:
        self._records.append(worker)
        if worker.dataset is not None:
            self._openings.append(partial(self._ledger.note_data, worker.dataset))
        self._openings.append(partial(self._ledger.note_tags, {DEVICE_TAG: worker.device}))

    def _note(self, report: EpochReport) -> None:
        trial = self._running.get(report.number)
        if trial is None:
            return  # already ended, e.g. by its time limit
        if report.epoch in trial.reports:
            return  # a retried trial repeats itself; each point is kept once
        if not trial.reports and report.start_epoch != (trial.spec.start_epoch or 0):
            # Before any point is recorded: a restart must see the same minibatches.
            self._openings.append(
                partial(self._ledger.note_start_epoch, report.number, report.start_epoch)
            )
        if not trial.reports:
            trial.spec = dataclasses.replace(trial.spec, start_epoch=report.start_epoch)
        trial.reports[report.epoch] = report
        if report.is_replay:
            trial.resumed_at = report.epochs_done
        else:
            trial.told_ms.append(report.time_ms)
            trial.n_left = 0
        self._records.append(report)
        self._note_metrics(report.metrics)
        wants_stop = False
        value = report.metrics.get(self._config.metric)
        if value is not None:
            trial.n_since_best += 1
            if self._is_better(value, trial.best_value):
                trial.best_epoch, trial.best_value, trial.n_since_best = report.epoch, value, 0
            wants_stop = self._proposals.report(report.number, report.epoch, value)
        if not report.is_replay:
            trial.stop = trial.stop or self._why_stop(trial, report, wants_stop=wants_stop)

    def _note_metrics(self, names: Iterable[str]) -> None:
        """Say once of each metric that MLflow cannot keep its name."""
        new = set(names) - self._known_metrics
        self._known_metrics |= new
        self.say(keys.renamed(new) if new else ())

    def _why_stop(self, trial: Running, report: EpochReport, *, wants_stop: bool) -> Stop | None:
        patience = self._config.patience
        if self._is_late(trial):
            return Stop(report.number, "timeout")
        if report.epochs_done >= self._config.epochs:
            return None  # all epochs are trained
        if wants_stop:
            return Stop(report.number, "pruned")
        if patience is not None and trial.n_since_best >= patience:
            return Stop(report.number, "converged")
        return None

    def _is_late(self, trial: Running) -> bool:
        limit = self._config.trial_timeout_s
        return limit is not None and time.monotonic() - trial.began > limit

    def _feel(self, pulse: Pulse) -> None:
        """Within an epoch a trial may be late, and its logger may have news."""
        self._records.append(pulse)
        trial = self._running.get(pulse.number)
        if trial is not None and trial.stop is None and self._is_late(trial):
            trial.stop = Stop(pulse.number, "timeout")

    def _stops(self, reached: Mapping[int, int]) -> tuple[Stop, ...]:
        """Orders for trials that have just reported, given their epochs.

        A trial that lost epochs with its worker after it was told to stop trains them again first:
        its best epoch may be among them.
        """
        stops = []
        for number, epoch in reached.items():
            trial = self._running.get(number)
            if trial is None:
                continue
            is_behind = epoch < max(trial.reports, default=0)
            if self._is_stopping and (trial.stop is None or is_behind):
                trial.stop = Stop(number, "interrupted")
            waits = is_behind and trial.stop and trial.stop.reason in ("pruned", "converged")
            stops += [trial.stop] if trial.stop is not None and not waits else []
        return tuple(stops)

    def _finish(self, result: TrialResult) -> None:
        trial = self._running.pop(result.number, None)
        if trial is None:
            return  # already ended, e.g. by its time limit
        state, failure = verdict_of(result, trial.stop)
        if unscored := never_logged(trial, state, self._config.metric):
            state, failure = TrialState.FAIL, unscored
        may_retry = failure is not None and failure.is_transient
        costs = failure is not None and trial.costs_a_try(failure)
        may_retry = may_retry and (self._is_stopping or not costs or trial.n_retries < MAX_RETRIES)
        if not may_retry and state is not TrialState.WAITING:
            self._close(trial, result, state, failure)
        elif self._is_stopping:
            self._interrupt(trial, result)
        elif failure is not None:
            trial.n_retries += costs
            self._again.append(trial)
            self.say([f"trial {result.number} is tried again: {failure.message}"])
        else:
            trial.spent_s = time.monotonic() - trial.began
            self._again.append(trial)

    def _interrupt(self, trial: Running, result: TrialResult) -> None:
        """Leave a trial to the next search; note the epochs that it must train again."""
        files = TrialFiles(self._config.study_dir, result.number)
        n_ahead = len(trial.reports) - result.n_epochs if result.failure is None else 0
        lost = files.lost_epochs(trial.told_ms, n_ahead)
        self.unsaved += [lost] if lost else []
        self._close(trial, result, TrialState.WAITING, None)

    def _close(
        self, trial: Running, result: TrialResult, state: TrialState, failure: Failure | None
    ) -> None:
        number, files = result.number, TrialFiles(self._config.study_dir, result.number)
        best_epoch = result.best_epoch or trial.best_epoch or None
        if self._config.kind == "objective":  # a later try may report other values
            best_epoch = trial.best_epoch or None
        best = trial.reports.get(best_epoch or 0)
        best_metrics = best.metrics if best else {}
        value = best_metrics.get(self._config.metric)
        record = TrialFinished(
            number, state, now_ms(), value, best_epoch, best_metrics, result.n_epochs,
            str(files.path(BEST)) if result.has_checkpoint else None,
            str(files.path(MODEL)) if result.has_model else None, failure, dict(result.notes),
            files.has_logged,
        )  # fmt: skip
        record = self._retention.finish(record) if self._retention is not None else record
        attrs = self._proposals.tell(number, state, value)
        reports = [trial.reports[epoch] for epoch in sorted(trial.reports)]
        self._closings += [
            partial(
                self._ledger.close_trial, record, reports, self._config.metric, trial.name, attrs
            ),
        ]
        if self._retention is not None:
            self._closings.append(partial(self._retention.closed, number))
        self._records.append(record)
        if state.is_finished:
            self._n_finished += 1
            self._count_failure(failure)

    def _count_failure(self, failure: Failure | None) -> None:
        """Stop the search after `--max-failures` identical failures in a row."""
        is_counted = failure is not None and FAILURES[failure.kind].is_counted
        what = f"{failure.kind}: {failure.message}" if failure and is_counted else ""
        self._n_same = self._n_same + 1 if what == self._last_failure else 1
        self._last_failure = what
        if failure and is_counted and self._n_same >= self._config.max_failures:
            what = f"{self._n_same} identical failures in a row: {failure.message}"
            self.failure_message = f"the search stopped after {what}"
            self.request_stop("failed")

    def _hand_out(self, n_slots: int) -> list[TrialSpec]:
        specs: list[TrialSpec] = []
        may_begin = n_slots > 0 and not self._is_full() and not self._must_wait()
        if may_begin and self._ledger.has_trial(self._next_number):
            self._take_in(self._ledger.trials_from(self._next_number))  # another program's
        while len(specs) < n_slots:
            if self._again:
                specs.append(self._resume(self._again.popleft()))
                continue
            if self._is_full() or self._must_wait():
                break
            spec = self._next()
            if spec is None:
                self.reason = "exhausted"
                break
            specs.append(spec)
        return specs

    def _must_wait(self) -> bool:
        """Whether a proposal depends on trials that have not ended (`--deterministic`)."""
        first = self._proposals.first_of_generation(self._next_number)
        is_new = not self._planned or self._planned[0].number is None
        return is_new and any(number < first for number in self._running)

    def _resume(self, trial: Running) -> TrialSpec:
        """A trial whose worker is gone, from its checkpoint if there is one."""
        trial.spec = self._from_checkpoint(trial.spec)
        trial.began = time.monotonic() - trial.spent_s
        self._running[trial.spec.number] = trial
        return trial.spec

    def _next(self) -> TrialSpec | None:
        """The next planned trial, else a proposed one; None if the space is exhausted."""
        number, proposal = self._next_number, None
        if not self._planned:
            proposal = self._proposals.ask(number)
        else:
            planned = self._planned.popleft()
            if planned.number is not None:
                return self._adopt(planned, planned.number)
            proposal = self._proposals.adopt(number, planned.hyperparameters, planned.params)
            if planned.is_baseline:
                proposal.frozen.set_user_attr(BASELINE, True)
        if proposal is None:
            return None
        self._openings.append(partial(self._ledger.open_trial, number, proposal.frozen))
        self._next_number += 1
        return self._start(self._spec(number, proposal.hyperparameters), proposal)

    def _adopt(self, planned: Planned, number: int) -> TrialSpec:
        """An interrupted or queued trial under its number, from its checkpoint if it has one."""
        proposal = self._proposals.adopt(number, planned.hyperparameters, planned.params)
        if planned.is_queued:
            self._openings.append(partial(self._ledger.take_queued, number, proposal.frozen))
        else:
            self._openings.append(partial(self._ledger.set_state, number, TrialState.RUNNING))
        spec = self._spec(number, proposal.hyperparameters)
        if planned.start_epoch is not None:
            spec = dataclasses.replace(spec, start_epoch=planned.start_epoch)
        return self._start(self._from_checkpoint(spec), proposal)

    def _spec(self, number: int, hyperparameters: Mapping[str, Any]) -> TrialSpec:
        start_epoch = 0 if self._config.deterministic else None
        seed = derive_seed(self._config.seed, "init", number)
        return TrialSpec(number, hyperparameters, seed, start_epoch)

    def _from_checkpoint(self, spec: TrialSpec) -> TrialSpec:
        is_resumed = TrialFiles(self._config.study_dir, spec.number).size(RESUME_STATE) > 0
        return dataclasses.replace(spec, is_resumed=is_resumed)

    def _start(self, spec: TrialSpec, proposal: Proposal) -> TrialSpec:
        number, name = spec.number, run_name(spec.number, proposal.hyperparameters)
        stop = Stop(number, "pruned") if number in self._unwanted else None
        n_openings = self._recorder.n_openings + len(self._openings)
        self._running[number] = Running(spec, name, n_openings, stop=stop)
        self._records.append(
            TrialStarted(
                number, name, proposal.hyperparameters, proposal.params, now_ms(),
                {"sweep.seed": str(spec.seed), **self._sources},
                logged=str(TrialFiles(self._config.study_dir, number).path(LOGGED)),
            )
        )  # fmt: skip
        return spec
