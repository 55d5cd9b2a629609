"""Stand-ins and contract tests, for sweep's own tests and for authors of plug-ins.

The stand-ins are real but cheap: a trainer with numbers from a script, a driver with a list of
trials, a listener with a memory. A plug-in's test class inherits the contract of its kind and
makes one:

    from sweep.testing import ListenerContract

    class TestMyListener(ListenerContract):
        def make_listener(self, folder):
            return MyListener()

Needs neither pytest nor torch.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sweep.files.trial_files import BEST, TrialFiles
from sweep.protocols import Exchange, Executor, Listener, Trainer
from sweep.trial import (
    DatasetInfo,
    EpochReport,
    Failure,
    Notice,
    Orders,
    Pulse,
    Record,
    Report,
    Stop,
    StopReason,
    StudyFinished,
    StudyInfo,
    Task,
    TrialFinished,
    TrialResult,
    TrialSpec,
    TrialStarted,
    TrialState,
    WorkerReady,
    derive_seed,
    now_ms,
)

DATASET = DatasetInfo("scripted", "sweep.testing", "0" * 32, (1, 2, 2), 3, 80, 20)


def example_data(
    train: tuple[Any, Any], val: tuple[Any, Any], n_classes: int = 10, *, mean: float = 0.0,
    std: float = 1.0, seed: int = 0,
) -> Any:  # fmt: skip
    """A `sweep.data.tensors.TensorData` of tensors: x (n, ...) and y (n,) of both splits."""
    from sweep.data.tensors import Split, TensorData

    shape, n_train, n_val = tuple(train[0].shape[1:]), len(train[1]), len(val[1])
    info = DatasetInfo("example", "", "0" * 32, shape, n_classes, n_train, n_val, mean, std)
    return TensorData(Split(*train), Split(*val), info, seed)


Script = Callable[[TrialSpec], Iterable[Mapping[str, float] | Failure]]
"""The metrics of each epoch of a scripted trial, or its failure."""
AnyRecord = TypeVar("AnyRecord", bound=Record)


class ScriptedTrainer:
    """A Trainer without training: `script(spec)` yields the metrics of each epoch.

    A Failure instead of metrics, or an exception, fails the trial; the end of the script finishes
    it. `n_slots` trials run in step, as in a population.
    """

    def __init__(self, script: Script, n_slots: int = 1) -> None:
        self._script, self._n_slots = script, n_slots

    def train(self, exchange: Exchange) -> None:
        """Run the ordered trials, until `exchange` says is_last and none is left."""
        running: dict[int, Iterator[list[Report]]] = {}
        n_epochs: Counter[int] = Counter()
        reports: list[Report] = [WorkerReady(DATASET, "scripted", self._n_slots, now_ms())]
        while True:
            orders = exchange(tuple(reports), self._n_slots - len(running))
            stopped = [stop.number for stop in orders.stop if running.pop(stop.number, None)]
            reports = [TrialResult(number, "stopped", n_epochs[number]) for number in stopped]
            for spec in orders.start:
                running[spec.number], n_epochs[spec.number] = self._epochs(spec), 0
            if orders.is_last and not running and not reports:
                return
            for number, epochs in list(running.items()):
                said = next(epochs)
                reports += said
                n_epochs[number] += isinstance(said[0], EpochReport)
                if isinstance(said[-1], TrialResult):
                    del running[number]

    def _epochs(self, spec: TrialSpec) -> Iterator[list[Report]]:
        """The reports of each epoch; the last epoch's come with the result, a failure follows."""
        n_epochs, failure = 0, None
        pending: list[Report] = []
        try:
            for said in self._script(spec):
                if isinstance(said, Failure):
                    failure = said
                    break
                if pending:
                    yield pending
                n_epochs += 1
                pending = [
                    EpochReport(spec.number, n_epochs, {"epoch_s": 0.001, **said}, now_ms())
                ]
        except Exception as error:  # noqa: BLE001 - as in a trainer, only this trial fails
            failure = Failure("exception", f"{type(error).__name__}: {error}")
        if failure and pending:
            yield pending
            pending = []
        outcome: Any = "failed" if failure else "finished"
        yield [*pending, TrialResult(spec.number, outcome, n_epochs, failure=failure)]


class ScriptedExchange:
    """The driver's end of the seam: hands out `specs`, keeps all reports, stops on request.

    `stop_after` is trial number -> epoch after whose report the trial is to stop, `stop_within`
    trial number -> how many of its pulses come first.
    """

    def __init__(
        self,
        specs: Sequence[TrialSpec],
        stop_after: Mapping[int, int] | None = None,
        reason: StopReason = "pruned",
        stop_within: Mapping[int, int] | None = None,
    ) -> None:
        self._waiting = list(specs)
        self._stop_within: dict[int, float] = dict(stop_within or {})
        self._stop_after, self._reason = dict(stop_after or {}), reason
        self.reports: list[Report] = []
        self.n_calls = 0

    def __call__(self, reports: Sequence[Report], n_free: int) -> Orders:
        """Take reports; fill every free slot as long as there are specs."""
        self.n_calls += 1
        self.reports += reports
        stops = tuple(
            Stop(r.number, self._reason)
            for r in reports
            if isinstance(r, EpochReport) and self._stop_after.get(r.number) == r.epoch
        )
        for pulse in [r for r in reports if isinstance(r, Pulse)]:
            left = self._stop_within.get(pulse.number, math.inf) - 1
            self._stop_within[pulse.number] = left
            stops += (Stop(pulse.number, self._reason),) if left <= 0 else ()
        n_start = max(0, n_free + len(stops))
        start, self._waiting = self._waiting[:n_start], self._waiting[n_start:]
        return Orders(stops, tuple(start), is_last=not self._waiting)

    def curve(self, number: int, metric: str) -> list[float]:
        """A metric of trial `number`, by epoch."""
        return [r.metrics[metric] for r in self.epochs(number)]

    def epochs(self, number: int) -> list[EpochReport]:
        """The epoch reports of trial `number`, as they came."""
        return [r for r in self.reports if isinstance(r, EpochReport) and r.number == number]

    def results(self) -> dict[int, TrialResult]:
        """The result of each trial. Raises ValueError if one had two."""
        found = [r for r in self.reports if isinstance(r, TrialResult)]
        if len({r.number for r in found}) != len(found):
            raise ValueError(f"a trial has two results: {found}")
        return {r.number: r for r in found}


@dataclass
class RecordingListener:
    """A Listener that stores all records."""

    study: StudyInfo | None = None
    records: list[Record] = field(default_factory=list)
    is_closed: bool = False

    def open(self, study: StudyInfo) -> None:
        """Remember the study."""
        self.study = study

    def write(self, records: Sequence[Record]) -> None:
        """Remember the records."""
        self.records += records

    def close(self) -> None:
        """Set `is_closed`."""
        self.is_closed = True

    def of(self, kind: type[AnyRecord]) -> list[AnyRecord]:
        """The records of one kind, in order."""
        return [record for record in self.records if isinstance(record, kind)]

    def finished(self) -> dict[int, TrialFinished]:
        """The final record of each trial, by number."""
        return {record.number: record for record in self.of(TrialFinished)}


class ListenerContract:
    """The contract of every Listener. Override `make_listener`."""

    def make_listener(self, folder: Path) -> Listener:
        """A new listener; it may keep files in `folder`."""
        raise NotImplementedError

    def test_takes_every_record_of_a_search(self, tmp_path: Path) -> None:
        """A whole search goes through without an error, told by another thread."""
        listener = self.make_listener(tmp_path)
        listener.open(example_study())
        with ThreadPoolExecutor(1) as recorder:
            list(recorder.map(listener.write, example_records()))
        listener.close()

    def test_write_returns_at_once(self, tmp_path: Path) -> None:
        """A thousand epochs are taken in under two seconds: slow work is behind a queue."""
        listener = self.make_listener(tmp_path)
        listener.open(example_study())
        listener.write(example_records()[0])
        began = time.perf_counter()
        for epoch in range(1, 1001):
            listener.write([example_epoch(0, epoch)])
        assert time.perf_counter() - began < 2.0
        listener.close()

    def test_a_search_may_end_with_trials_running(self, tmp_path: Path) -> None:
        """Closing in the midst of a search loses nothing and raises nothing."""
        listener = self.make_listener(tmp_path)
        listener.open(example_study())
        listener.write(example_records()[0])
        listener.close()


class TrainerContract:
    """The contract of every Trainer. Override `make_trainer`."""

    hyperparameters: Sequence[Mapping[str, Any]] = (
        {"hidden": (16,), "optimizer": "Adam", "lr": 0.01},
        {"hidden": (8, 8), "optimizer": "SGD", "lr": 0.1},
        {"hidden": (12,), "optimizer": "RMSprop", "lr": 0.001},
    )
    """Configurations with good scores."""

    def make_trainer(self, task: Task) -> Trainer:
        """A new trainer for `task`."""
        raise NotImplementedError

    def specs(self) -> list[TrialSpec]:
        """One spec for each of `hyperparameters`."""
        return [
            TrialSpec(number, values, derive_seed(0, "init", number))
            for number, values in enumerate(self.hyperparameters)
        ]

    def test_every_trial_has_its_epochs_and_one_result(self, tmp_path: Path) -> None:
        """Each trial reports its epochs in order and then has exactly one result."""
        task, exchange = example_task(tmp_path), ScriptedExchange(self.specs())
        self.make_trainer(task).train(exchange)
        assert isinstance(exchange.reports[0], WorkerReady)
        for number, result in exchange.results().items():
            assert [r.epoch for r in exchange.epochs(number)] == list(range(1, task.epochs + 1))
            assert (result.outcome, result.n_epochs) == ("finished", task.epochs)
            assert all(r.metrics["epoch_s"] >= 0 for r in exchange.epochs(number))
        assert sorted(exchange.results()) == [spec.number for spec in self.specs()]

    def test_a_stopped_trial_reports_no_more(self, tmp_path: Path) -> None:
        """A stopped trial ends there; the others go on to their last epoch."""
        task = example_task(tmp_path)
        exchange = ScriptedExchange(self.specs(), stop_after={1: 1})
        self.make_trainer(task).train(exchange)
        results = exchange.results()
        assert (results[1].outcome, results[1].n_epochs) == ("stopped", 1)
        assert len(exchange.epochs(1)) == 1
        assert all(results[n].outcome == "finished" for n in results if n != 1)

    def test_the_same_spec_gives_the_same_curve(self, tmp_path: Path) -> None:
        """Training is a function of the spec and the task."""
        task = example_task(tmp_path)
        exchanges = [ScriptedExchange(self.specs()[:1]) for _ in range(2)]
        for exchange in exchanges:
            self.make_trainer(task).train(exchange)
        assert exchanges[0].curve(0, task.metric) == exchanges[1].curve(0, task.metric)

    def test_an_error_of_the_driver_is_no_failed_trial(self, tmp_path: Path) -> None:
        """An error of `exchange` at the end of an epoch comes out of `train` unchanged."""
        exchange = ScriptedExchange(self.specs())

        def refuse(reports: Sequence[Report], n_free: int) -> Orders:
            if any(isinstance(report, EpochReport) for report in reports):
                raise _Refusal
            return exchange(reports, n_free)

        try:
            self.make_trainer(example_task(tmp_path)).train(refuse)
        except _Refusal:
            return
        raise AssertionError("the driver's error was swallowed")

    def test_nothing_to_do_is_no_error(self, tmp_path: Path) -> None:
        """A trainer without trials returns at once."""
        exchange = ScriptedExchange(())
        self.make_trainer(example_task(tmp_path)).train(exchange)
        assert not exchange.results()


class _Refusal(Exception):  # noqa: N818
    """A driver's error in a test."""


class ExecutorContract:
    """The contract of every Executor. Override `make_executor`."""

    def make_executor(self) -> Executor:
        """A new executor, with one worker."""
        raise NotImplementedError

    def test_trains_what_is_ordered(self, tmp_path: Path) -> None:
        """Two trials of the bundled digits train to the end and leave their checkpoints."""
        executor = self.make_executor()
        task = example_task(tmp_path, population=1)
        executor.warm_up(task)
        values = {"hidden": (16,), "optimizer": "Adam", "lr": 0.01}
        exchange = ScriptedExchange([TrialSpec(n, values, n) for n in range(2)])
        executor.run(exchange)
        executor.kill()
        first, second = (exchange.results()[n] for n in (0, 1))
        assert first.outcome == second.outcome == "finished"
        assert first.has_checkpoint
        assert second.has_checkpoint
        assert all(TrialFiles(task.work_dir, n).whole(BEST) for n in (0, 1))

    def test_an_error_of_the_driver_ends_the_run(self, tmp_path: Path) -> None:
        """An error of `exchange` comes out of `run` unchanged."""

        def refuse(reports: Sequence[Report], n_free: int) -> Orders:
            raise _Refusal

        executor = self.make_executor()
        executor.warm_up(example_task(tmp_path, population=1))
        with contextlib.suppress(_Refusal):
            executor.run(refuse)
            raise AssertionError("the driver's error was swallowed")

    def test_kill_is_harmless(self) -> None:
        """An executor without workers may be killed, twice."""
        for executor in [self.make_executor()] * 2:
            executor.kill()


def example_task(folder: Path, **changes: Any) -> Task:
    """A task on the bundled digits: two epochs on one thread, files below `folder`."""
    values: dict[str, Any] = {
        "study": "example", "seed": 0, "data": "digits", "data_dir": None,
        "module": "sweep.training.mlp:MLPClassifier", "epochs": 2, "batch_size": 64,
        "metric": "val_acc", "direction": "maximize", "work_dir": str(folder / "example"),
        "log_file": str(folder / "example" / "sweep.log"), "accelerator": "cpu", "n_threads": 1,
    }  # fmt: skip
    return Task(**(values | changes))


def example_study(**changes: Any) -> StudyInfo:
    """A study of four trials, just opened."""
    values: dict[str, Any] = {
        "name": "example", "n_trials": 4, "metric": "val_acc", "direction": "maximize",
        "epochs": 2, "config": {"seed": 0}, "space_name": "mlp", "space_text": "parameters: {}\n",
        "time_ms": now_ms(), "dataset": DATASET,
    }  # fmt: skip
    return StudyInfo(**(values | changes))


def example_epoch(number: int, epoch: int) -> EpochReport:
    """A report with an MLP's metrics."""
    metrics = {"train_loss": 1.0, "val_loss": 1.0, "val_acc": 0.5, "epoch_s": 0.01}
    return EpochReport(number, epoch, metrics, now_ms())


def example_records() -> list[list[Record]]:
    """A search of four trials, each with another final state, as the driver tells it."""
    values = {"optimizer": "SGD", "lr": 0.01, "hidden": (8,)}
    ends = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.WAITING)
    ready = WorkerReady(DATASET, "cpu", 1, now_ms())
    written: list[list[Record]] = [
        [ready, TrialStarted(0, "t000 SGD", values, {"lr": 0.01}, now_ms())]
    ]
    for number, state in enumerate(ends):
        if number:
            written.append([TrialStarted(number, f"t{number:03d} SGD", values, {}, now_ms())])
        written.append([example_epoch(number, 1)])
        failure = Failure("nan", "train_loss is nan") if state is TrialState.FAIL else None
        value = None if failure else 0.5
        best = {} if failure else dict(example_epoch(number, 1).metrics)
        written.append(
            [TrialFinished(number, state, now_ms(), value, 1, best, 1, failure=failure)]
        )
    last = StudyFinished(now_ms(), {str(s): 1 for s in ends}, 0, 0.5, 0.5, "interrupted")
    return [*written, [Notice(now_ms(), "one line"), last]]
