"""Trials of any function: `f(params, report) -> float`, for training that is not Lightning's."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from sweep.errors import ConfigError
from sweep.loading import import_object
from sweep.protocols import Exchange
from sweep.training.devices import ready
from sweep.training.mlflow_calls import FluentCalls
from sweep.training.project.reading import ignored_names
from sweep.training.resuming import seed_everything
from sweep.training.run import Run
from sweep.training.slot_loop import Slots, train_one_by_one
from sweep.trial import VALUE, Report, Task, now_ms

MINIMIZED = f"{VALUE} is minimized; --direction maximize is the other way"


class TrialStopped(BaseException):
    """Raised by `report` to end a trial: by a pruner, patience, a time limit, or Ctrl-C.

    Let it pass: it is no Exception, so that `except Exception` does not catch it.
    """


class TrialReport:
    """The second argument of an objective function.

    Args:
        run: The trial.
        slots: Takes the reports.
        calls: Metrics of MLflow calls in the function.
    """

    def __init__(self, run: Run, slots: Slots, calls: FluentCalls) -> None:
        self._run, self._slots, self._calls = run, slots, calls
        self._began_s = time.perf_counter()
        self.number, self.seed = run.spec.number, run.spec.seed
        self.epochs = run.task.epochs
        """How often the function may report: `--epochs`."""
        self.folder = Path(run.files.make_folder(), "own")
        """The function's folder, kept while a trial waits to be tried again. Its reports begin
        anew then: those that an earlier try made count once."""
        self.folder.mkdir(exist_ok=True)

    def __call__(self, value: float | None = None, **metrics: float) -> None:
        """Report the objective, other metrics, or both, after an epoch.

        Raises TrialStopped if the trial is to end, ConfigError for more than `epochs` reports.
        """
        if self._run.is_trained:
            raise ConfigError(
                f"the objective reports more often than --epochs says ({self.epochs}): report "
                "report.epochs times at most, or raise --epochs"
            )
        self._take({**metrics, **({} if value is None else {self._run.task.metric: value})})
        if not self._run.is_over:
            self._slots.tell()
        if self._run.stop is not None or self._run.failure is not None:
            raise TrialStopped

    def _take(self, values: Mapping[str, Any]) -> None:
        run, now_s = self._run, time.perf_counter()
        metrics, notices = self._calls.metrics(now_ms())
        metrics |= {name: float(number) for name, number in values.items()}
        self._slots.say(*[notice.message for notice in notices])
        self._slots.end_epoch({run.spec.number: metrics}, now_s - self._began_s)
        self._began_s = now_s

    def end(self, returned: Any) -> None:
        """Take what the function returned: a number, a mapping of metrics, or None.

        A value that was reported already is not counted twice. Raises TypeError for anything else.
        """
        metric, history = self._run.task.metric, self._run.history
        if returned is None and history:
            return
        values = dict(returned) if isinstance(returned, Mapping) else {metric: returned}
        try:
            value = float(values[metric])
        except (KeyError, TypeError, ValueError):
            raise TypeError(
                f"the objective must return a number, or a mapping with {metric!r}, but returned "
                f"{returned!r}"
            ) from None
        if not any(report.metrics.get(metric) == value for report in history):
            self._take(values)


class FunctionTrainer:
    """Calls the function for one trial after the other; implements `sweep.protocols.Trainer`.

    Raises ConfigError if the function cannot be imported or ignores a parameter.
    """

    def __init__(self, task: Task) -> None:
        self._task, self._calls = task, FluentCalls(task.work_dir)
        if task.n_threads:
            torch.set_num_threads(task.n_threads)
        with self._calls.caught():
            self._function = import_object(task.module, "objective")
        if not callable(self._function):
            kind = type(self._function).__name__
            raise ConfigError(f"{task.module} must be a function, but is of type {kind}")
        if faults := ignored_names(self._function, task):
            raise ConfigError(faults)

    def train(self, exchange: Exchange) -> None:
        """Train the trials ordered by `exchange`, until is_last is set and none is left."""
        task, slots = self._task, Slots(self._task, exchange)
        self._slots = slots
        if (task.metric, task.direction) == (VALUE, "minimize"):
            slots.say(MINIMIZED)
        try:
            train_one_by_one(slots, self, ready(task, None, 1), self._calls.caught)
        finally:
            self._calls.remove()

    # the engine of the slot loop: there is no module

    def fit(self, run: Run) -> None:
        """Call the function for a trial. Raises any error of it."""
        seed_everything(run.spec.seed)
        report = TrialReport(run, self._slots, self._calls)
        with contextlib.suppress(TrialStopped):
            report.end(self._function(dict(run.spec.hyperparameters), report))

    def rung(self, run: Run) -> str:
        """See `sweep.training.slot_loop.Engine`."""
        return "function"

    def open(self, run: Run) -> Sequence[Report]:
        """Does nothing: a trial that was interrupted starts again."""
        return ()

    def keep_best(self, numbers: Sequence[int]) -> None:
        """Does nothing."""

    def state(self, run: Run) -> None:
        """None: only the function knows its state, and `report.folder` may hold it."""

    def module(self, run: Run, which: Literal["best", "last"]) -> None:
        """None."""

    def example(self, run: Run) -> None:
        """None."""

    def checkpoint_arguments(self, run: Run) -> Mapping[str, Any]:
        """None are kept."""
        return {}

    def close(self, number: int) -> None:
        """Does nothing."""
