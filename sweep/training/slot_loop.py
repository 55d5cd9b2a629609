"""The slot loop shared by all engines: it manages trials, an engine does the arithmetic.

begin ── engine trains an epoch ── end_epoch ── turn_over ─┐
                ▲                                          │
                └──────────── trials in slots ◄────────────┘
"""

from __future__ import annotations

import collections
import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol

import lightning

from sweep.errors import DiskError
from sweep.files.outcomes import write_outcomes
from sweep.files.trial_files import BEST, MODEL, RESUME_STATE
from sweep.hyperparameters import DEFAULT_MODULE
from sweep.loading import raised_by_user_code
from sweep.protocols import Exchange
from sweep.training.checkpoints import checkpoint_of
from sweep.training.exports import Example, try_export
from sweep.training.failures import classify
from sweep.training.model_choice import ModelChoice
from sweep.training.process_state import current_folder, undisturbed
from sweep.training.resuming import (
    Keeper,
    forget_earlier_try,
    saved_bytes,
    see_that_it_loads,
)
from sweep.training.run import Run
from sweep.trial import Failure, Notice, Report, Task, TrialResult, TrialSpec, now_ms

IDLE_S, LONGEST_IDLE_S = 0.01, 0.3
"""Pause between two questions of a worker that was given nothing."""


class Engine(Protocol):
    """Trains the open trials of a worker.

    The training loop around it calls `Slots.end_epoch` with the metrics of each epoch.
    """

    def rung(self, run: Run) -> str:
        """How the trial was trained: the value of its tag `sweep.trainer`."""
        ...

    def open(self, run: Run) -> Sequence[Report]:
        """Add a trial, restored from its resume file if it has one; returns reports to send."""
        ...

    def keep_best(self, numbers: Sequence[int]) -> None:
        """Keep the current weights of these trials as their best."""
        ...

    def state(self, run: Run) -> dict[str, Any] | None:
        """A checkpoint to resume from, in Lightning's format; None: nothing new to keep."""
        ...

    def module(self, run: Run, which: Literal["best", "last"]) -> lightning.LightningModule | None:
        """The trial's module with its best or its last weights; None: the engine has none."""
        ...

    def example(self, run: Run) -> Example | None:
        """A sample of the module's input, for its export; None: there is none."""
        ...

    def checkpoint_arguments(self, run: Run) -> Mapping[str, Any]:
        """The module's arguments in plain values, for `load_from_checkpoint`."""
        ...

    def close(self, number: int) -> None:
        """Remove the trial and free its memory."""
        ...


class Slots:
    """The trials of a worker: takes orders, opens and closes trials, keeps files, reports.

    Args:
        task: Settings of the study.
        exchange: The driver's end of the seam.
        keeps_end: Write each trial's state after its last epoch, nothing else (`sweep train`).
    """

    def __init__(self, task: Task, exchange: Exchange, *, keeps_end: bool = False) -> None:
        self._task, self._exchange, self.keeps_end = task, exchange, keeps_end
        self._keeper = Keeper(task.checkpoint_interval_s)
        self.choice = ModelChoice(task)
        """Which models are exported."""
        self._engine: Any = None
        self._backlog: collections.deque[TrialSpec] = collections.deque()
        self._reports: list[Report] = []
        """Reports not sent yet."""
        self._said: set[str] = set()
        self._is_last = False
        self.running: dict[int, Run] = {}
        self.ended: tuple[Run, lightning.LightningModule | None, Example | None] | None = None
        """With `keeps_end`: the last trial, its module after its last epoch (None: failed), and a
        sample for its export."""
        self.n_slots = 0
        self.driver_error: BaseException | None = None
        """Error raised by `exchange` in this process: no fault of a trial."""

    def begin(self, engine: Engine, first: Sequence[Report] = ()) -> None:
        """Train with `engine` from now on; send `first` and open trials."""
        self._engine = engine
        self._reports = [*first, *self._reports]
        self.turn_over()

    def say(self, *messages: str) -> None:
        """Tell the user, each message once."""
        for text in messages:
            if text and text not in self._said:
                self._said.add(text)
                self._reports.append(Notice(now_ms(), text))

    def add(self, *reports: Report) -> None:
        """Send reports with the next ones."""
        self._reports += reports

    def end_epoch(
        self, metrics: Mapping[int, Mapping[str, float]], epoch_s: float,
        outcomes: Mapping[int, tuple[Any, Any, str]] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        """Record metrics and outcomes of an epoch, or of a part of one, by trial number.

        Args:
            metrics: Metrics of each trial.
            epoch_s: The time of all, in seconds.
            outcomes: (values (U,), samples in each (U,) or None, why they are unknown), where the
                metric may be the mean of values by sample.
        """
        runs = {number: self.running[number] for number in metrics}
        metric = self._task.metric
        for number, run in runs.items():
            if (score := metrics[number].get(metric)) is not None:
                run.outcomes.add(score, *outcomes.get(number, (None, None, "")))
        self._engine.keep_best([n for n, run in runs.items() if run.take(metrics[n])])
        for number, run in runs.items():
            if run.failure is None:
                self._reports.append(run.report(metrics[number], epoch_s / len(metrics)))

    def keep_if_due(self) -> bool:
        """Write resume files if the interval has passed; returns whether it has.

        All at one epoch boundary, so trials resumed together share the data order again.
        """
        is_due = bool(self.running) and self.is_keeping_due
        if is_due:
            self.keep(self.running.values())
        return is_due

    @property
    def is_keeping_due(self) -> bool:
        """Whether the interval between resume files has passed."""
        return self._keeper.is_due

    def keep(self, runs: Iterable[Run]) -> None:
        """Write resume files now; a failing disk is reported once.

        On several devices an error of the module's own code ends the trial: the other ranks wait.
        """
        if self._task.n_devices > 1:
            states = [(run, self._engine.state(run)) for run in runs]
            writes = [partial(self._write, run, state) for run, state in states]
        else:
            writes = [partial(self._write_state, run) for run in runs]
        self._reports += self._keeper.keep(writes)

    def tell(self, *reports: Report, refill: bool = True) -> None:
        """Send reports and receive orders: mark trials to stop, queue trials to start.

        With `refill=False` no trials are requested for free slots.
        """
        said = (*self._reports, *reports)
        n_free = self.n_slots - len(self.running) - len(self._backlog)
        try:
            orders = self._exchange(said, max(0, n_free) if refill else 0)
        except BaseException as error:
            self.driver_error = error
            raise
        self._reports = []
        self._is_last |= orders.is_last
        self._backlog.extend(orders.start)
        for stop in orders.stop:
            run = self.running.get(stop.number)
            if run is not None and not run.is_over:
                run.stop = stop

    def conclude_ended(self) -> None:
        """Conclude all ended trials. Raises DiskError.

        Each result is sent at once: the driver records it while the next trial is exported. New
        trials are requested after the last result.
        """
        ended = self._ended()
        for run in ended:
            self.conclude(run)
            if run is not ended[-1]:
                self.tell(refill=False)

    def turn_over(self) -> None:
        """Conclude ended trials and open ordered ones, until the driver has no more orders."""
        idle_s = IDLE_S
        while True:
            self.conclude_ended()
            self.tell()
            self.conclude_ended()
            has_opened = False
            while self._backlog and len(self.running) < self.n_slots:
                self._open(self._backlog.popleft())
                has_opened = True
            if self._reports or self._ended():
                continue
            if self.running or self._is_last:
                return
            idle_s = IDLE_S if has_opened else min(2 * idle_s, LONGEST_IDLE_S)
            if not has_opened:
                time.sleep(idle_s)

    def _ended(self) -> list[Run]:
        return [run for run in self.running.values() if run.is_over and not run.is_held]

    def halve(self, failure: Failure) -> None:
        """Out of memory: halve the slots and queue running trials again from their resume files;
        a trial alone in memory fails."""
        self._engine = None  # frees its memory for the next one
        runs, before = list(self.running.values()), self.n_slots
        self.running = {}
        self.n_slots = max(1, before // 2)
        if before == 1:
            self._reports += [
                TrialResult(run.spec.number, "failed", run.epoch, failure=failure) for run in runs
            ]
            return
        self._backlog.extendleft(run.as_it_was_kept() for run in reversed(runs))
        said = f"out of memory with {before} trials at a time: going on with {self.n_slots}"
        self._reports.append(Notice(now_ms(), said))

    def fail(self, run: Run, error: BaseException) -> None:
        """Fail the trial with `error`; write the traceback to the study's log.

        Raises the driver's own errors, DiskError and the user's second Ctrl-C.
        """
        if self.driver_error is not None:
            raise self.driver_error from None
        if isinstance(error, DiskError):
            raise error
        self.fail_with(run, classify(raised_by_user_code(error), self._task.module))

    def fail_with(self, run: Run, failure: Failure) -> None:
        """Fail the trial; write the traceback to the study's log."""
        run.failure = failure
        with contextlib.suppress(OSError), Path(self._task.log_file).open("a") as log:
            log.write(f"trial {run.spec.number} failed: {failure.message}\n{failure.traceback}\n")

    def conclude(self, run: Run) -> None:
        """Write an ended trial's files, report its result, free its slot. Raises DiskError, and
        out-of-memory errors if fewer trials might fit.

        If another process has written its files, its result is there.
        """
        if run.result is not None:
            self._free(run, run.result)
            return
        number = run.spec.number
        reason = run.stop.reason if run.stop is not None and run.failure is None else ""
        if reason == "interrupted" or (self.keeps_end and run.failure is None):
            self.keep([run])
        has_checkpoint = has_model = False
        if run.failure is None and not self.keeps_end:
            try:
                has_checkpoint, has_model = self._write_files(run, reason)
            except BaseException as error:
                if self.may_fit_later(error):
                    raise
                self.fail(run, error)
        notes = {
            "sweep.trainer": self._engine.rung(run),
            "sweep.start_epoch": str(run.start_epoch),
        }
        if run.failure is not None:
            reason = ""
            result = TrialResult(number, "failed", run.epoch, failure=run.failure, notes=notes)
        else:
            result = TrialResult(
                number, "stopped" if run.stop else "finished", run.epoch, run.best_epoch,
                has_checkpoint, has_model,
                notes=notes | ({"sweep.stop": reason} if reason else {}),
            )  # fmt: skip
        self._end_for_good(run, result, reason)
        if self.keeps_end:
            module = None if run.failure else self._engine.module(run, "last")
            self.ended = run, module, self._engine.example(run)
        self._free(run, result)  # only now: an out-of-memory error above must not lose the trial

    def _free(self, run: Run, result: TrialResult) -> None:
        self._reports.append(result)
        del self.running[run.spec.number]
        self._engine.close(run.spec.number)

    def _open(self, spec: TrialSpec) -> None:
        run = Run(spec, self._task)
        forget_earlier_try(run)
        try:
            self._reports += self._engine.open(run)
        except Exception as error:  # a bad configuration fails its own trial only
            if spec.is_resumed and self.may_fit_later(error):
                self._backlog.appendleft(spec)  # it fitted before
                raise
            self.fail(run, error)
        self.running[spec.number] = run

    def may_fit_later(self, error: BaseException) -> bool:
        """Whether memory ran out that fewer trials might not need."""
        return self.n_slots > 1 and classify(error).kind == "oom"

    def _write_state(self, run: Run) -> None:
        self._write(run, self._engine.state(run))

    def _write(self, run: Run, checkpoint: Mapping[str, Any] | None) -> None:
        if checkpoint is not None:
            content = saved_bytes(checkpoint)
            if self._task.module != DEFAULT_MODULE:
                see_that_it_loads(checkpoint, content)
            run.files.put(RESUME_STATE, content)

    def _write_files(self, run: Run, reason: str) -> tuple[bool, bool]:
        """Write the best epoch's checkpoint and exported model; whether the trial has them."""
        if run.best_epoch is None:
            return False, False
        module = self._engine.module(run, "best")
        if module is None:
            return False, False
        arguments = self._engine.checkpoint_arguments(run)
        epoch = max(0, math.ceil(run.history[run.best_epoch - 1].epochs_done) - 1)
        checkpoint = checkpoint_of(module, arguments, epoch, run.best_step)
        run.files.put(BEST, saved_bytes(checkpoint))
        is_exported = reason in ("", "converged") and self.choice.includes(run)
        return True, is_exported and self._export(run, module)

    def _export(self, run: Run, module: lightning.LightningModule) -> bool:
        began_s, name = time.perf_counter(), self._task.module
        path, why = try_export(run.files.path(MODEL), module, self._engine.example(run), name)
        took_s = time.perf_counter() - began_s
        self.say(no_model(name, why) if path is None else self.choice.exported(took_s))
        return path is not None

    def _end_for_good(self, run: Run, result: TrialResult, reason: str) -> None:
        """Write the verdict and delete the resume file, unless the trial may be resumed."""
        is_transient = result.failure is not None and result.failure.is_transient
        if reason == "interrupted" or is_transient or self.keeps_end:
            return
        write_outcomes(self._task.work_dir, run.spec.number, run.outcomes)
        run.files.write_verdict(run.history, result, run.spec)
        run.files.remove(RESUME_STATE)


def train_one_by_one(
    slots: Slots, engine: Any, first: Report, caught: Callable[[], AbstractContextManager[None]]
) -> None:
    """Let `engine.fit(run)` train one trial after the other, each within `caught`.

    A user's bug fails the trial, not the search; `first` is the worker's greeting.
    """
    folder, slots.n_slots = current_folder(), 1
    slots.begin(engine, [first])
    while slots.running:
        (run,) = slots.running.values()
        with undisturbed(folder), caught():
            try:
                engine.fit(run)
            except BaseException as error:  # noqa: BLE001 - `fail` re-raises the driver's errors
                slots.fail(run, error)
            slots.conclude(run)
        slots.turn_over()


def train_in_turns(
    slots: Slots, make_engine: Callable[[], Any], first: Report, n_slots: int,
    caught: Callable[[], AbstractContextManager[None]],
) -> None:  # fmt: skip
    """Let an engine train up to `n_slots` trials at the same time, each until it ends.

    Out of memory, half as many go on, each from its last checkpoint.
    """
    folder, slots.n_slots, greeting = current_folder(), n_slots, [first]
    while True:
        engine = make_engine()
        with undisturbed(folder), caught():
            try:
                slots.begin(engine, greeting)
                while slots.running:
                    for number, error in engine.advance():
                        run = slots.running[number]
                        if error is not None:
                            slots.fail(run, error)
                            if slots.may_fit_later(error):
                                raise error
                        slots.conclude(run)
                    slots.turn_over()
                return
            except (RuntimeError, MemoryError, OSError) as error:
                failure = classify(error)
                if failure.kind != "oom":
                    raise
            finally:
                engine.end()
        slots.halve(failure)
        greeting = []
        del engine
        gc.collect()


def no_model(module: str, why: str) -> str:
    """Notice for a user's module not exportable by `torch.export`."""
    return f"{module} cannot be exported, so MLflow gets checkpoints but no logged model: {why}"
