"""Stand-ins and contract tests, for sweep's own tests and for authors of plug-ins.

The stand-ins are real parts, only cheap: a trainer that reads its numbers from a script, a
driver that hands out a list, a listener that remembers. A plug-in's test class inherits the
contract of its kind and says how to make one:

    from sweep.testing import ListenerContract

    class TestMyListener(ListenerContract):
        def make_listener(self, folder):
            return MyListener()

Needs neither pytest nor torch.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sweep.protocols import Exchange, Executor, Listener, Trainer
from sweep.trial import (
    CheckpointDropped,
    DatasetInfo,
    EpochReport,
    Failure,
    Notice,
    Orders,
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
)

DATASET = DatasetInfo("scripted", "sweep.testing", "0" * 32, (1, 2, 2), 3, 80, 20)

Script = Callable[[TrialSpec], Iterable[Mapping[str, float] | Failure]]
"""What a scripted trial says: metrics after each epoch, or how it fails."""
AnyRecord = TypeVar("AnyRecord", bound=Record)


class ScriptedTrainer:
    """A Trainer that trains nothing: `script(spec)` yields the metrics of each epoch.

    A Failure in their place ends the trial with it, and so does an exception; the end of the
    script ends it finished. `n_slots` trials go in step, as in a population.
    """

    def __init__(self, script: Script, n_slots: int = 1) -> None:
        self._script, self._n_slots = script, n_slots

    def train(self, exchange: Exchange) -> None:
        """Play what `exchange` orders, until it says is_last and nothing is left."""
        running: dict[int, _Playing] = {}
        reports: list[Report] = [WorkerReady(DATASET, "scripted", self._n_slots, _now_ms())]
        while True:
            orders = exchange(tuple(reports), self._n_slots - len(running))
            reports = [
                running.pop(stop.number).result("stopped")
                for stop in orders.stop
                if stop.number in running
            ]
            for spec in orders.start:
                running[spec.number] = _Playing(spec, self._play(spec))
            if orders.is_last and not running and not reports:
                return
            for trial in list(running.values()):
                said = trial.step()
                reports += said
                if any(isinstance(report, TrialResult) for report in said):
                    del running[trial.spec.number]

    def _play(self, spec: TrialSpec) -> Iterator[Mapping[str, float] | Failure]:
        yield from self._script(spec)  # called at the first epoch: what it raises fails the trial


@dataclass
class _Playing:
    """A scripted trial on its way."""

    spec: TrialSpec
    epochs: Iterator[Mapping[str, float] | Failure]
    ahead: Mapping[str, float] | Failure | None = None
    n_epochs: int = 0

    def step(self) -> list[Report]:
        """One epoch; with the last one comes the result."""
        said = self._next() if self.ahead is None else self.ahead
        if said is None:
            return [self.result("finished")]
        if isinstance(said, Failure):
            return [self.result("failed", said)]
        self.n_epochs += 1
        metrics = {"epoch_s": 0.001, **said}
        report = EpochReport(self.spec.number, self.n_epochs, metrics, _now_ms())
        self.ahead = self._next()
        return [report] if self.ahead is not None else [report, self.result("finished")]

    def _next(self) -> Mapping[str, float] | Failure | None:
        try:
            return next(self.epochs, None)
        except Exception as error:  # noqa: BLE001 - as a trainer has it: the trial fails, not more
            return Failure("exception", f"{type(error).__name__}: {error}")

    def result(self, outcome: Any, failure: Failure | None = None) -> TrialResult:
        """The trial's last word."""
        return TrialResult(self.spec.number, outcome, self.n_epochs, failure=failure)


class ScriptedExchange:
    """The driver's end of the seam: hands out `specs`, keeps all reports, stops on request.

    `stop_after` is trial number -> epoch after whose report the trial is to stop.
    """

    def __init__(
        self,
        specs: Sequence[TrialSpec],
        stop_after: Mapping[int, int] | None = None,
        reason: StopReason = "pruned",
    ) -> None:
        self._waiting = list(specs)
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
        """The last word on each trial. Raises ValueError where one had two."""
        found = [r for r in self.reports if isinstance(r, TrialResult)]
        if len({r.number for r in found}) != len(found):
            raise ValueError(f"a trial has two results: {found}")
        return {r.number: r for r in found}


@dataclass
class RecordingListener:
    """A Listener that remembers all it is told."""

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
        """Remember that it was closed."""
        self.is_closed = True

    def of(self, kind: type[AnyRecord]) -> list[AnyRecord]:
        """The records of one kind, in order."""
        return [record for record in self.records if isinstance(record, kind)]

    def finished(self) -> dict[int, TrialFinished]:
        """The final record of each trial, by number."""
        return {record.number: record for record in self.of(TrialFinished)}


class ListenerContract:
    """What every Listener keeps to. Say how to make one in `make_listener`."""

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
    """What every Trainer keeps to. Say how to make one in `make_trainer`."""

    hyperparameters: Sequence[Mapping[str, Any]] = (
        {"hidden": (16,), "optimizer": "Adam", "lr": 0.01},
        {"hidden": (8, 8), "optimizer": "SGD", "lr": 0.1},
        {"hidden": (12,), "optimizer": "RMSprop", "lr": 0.001},
    )
    """Configurations that train well."""

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
        """A trial that is ordered to stop ends there; the others go on to their last epoch."""
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
        """What `exchange` raises at the end of an epoch comes out of `train` as it is."""
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
        """A trainer that is told at once that nothing will come leaves."""
        exchange = ScriptedExchange(())
        self.make_trainer(example_task(tmp_path)).train(exchange)
        assert not exchange.results()


class _Refusal(Exception):  # noqa: N818
    """What a driver raises in a test."""


class ExecutorContract:
    """What every Executor keeps to. Say how to make one in `make_executor`."""

    def make_executor(self) -> Executor:
        """A new executor, with one worker."""
        raise NotImplementedError

    def test_trains_what_is_ordered(self, tmp_path: Path) -> None:
        """Two trials of the bundled digits train to the end and leave their checkpoints."""
        executor = self.make_executor()
        executor.warm_up(example_task(tmp_path, population=1))
        values = {"hidden": (16,), "optimizer": "Adam", "lr": 0.01}
        exchange = ScriptedExchange([TrialSpec(n, values, n) for n in range(2)])
        executor.run(exchange)
        executor.kill()
        first, second = (exchange.results()[n] for n in (0, 1))
        assert first.outcome == second.outcome == "finished"
        assert all(Path(r.checkpoint or "").is_file() for r in (first, second))

    def test_an_error_of_the_driver_ends_the_run(self, tmp_path: Path) -> None:
        """What `exchange` raises comes out of `run` as it is."""

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
    """A study of four trials that is just opened."""
    values: dict[str, Any] = {
        "name": "example", "n_trials": 4, "metric": "val_acc", "direction": "maximize",
        "epochs": 2, "config": {"seed": 0}, "space_name": "mlp", "space_text": "parameters: {}\n",
        "time_ms": _now_ms(), "dataset": DATASET,
    }  # fmt: skip
    return StudyInfo(**(values | changes))


def example_epoch(number: int, epoch: int) -> EpochReport:
    """A report with an MLP's metrics."""
    metrics = {"train_loss": 1.0, "val_loss": 1.0, "val_acc": 0.5, "epoch_s": 0.01}
    return EpochReport(number, epoch, metrics, _now_ms())


def example_records() -> list[list[Record]]:
    """A search of four trials, each with another final state, as the driver tells it."""
    values = {"optimizer": "SGD", "lr": 0.01, "hidden": (8,)}
    ends = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.WAITING)
    ready = WorkerReady(DATASET, "cpu", 1, _now_ms())
    written: list[list[Record]] = [
        [ready, TrialStarted(0, "t000 SGD", values, {"lr": 0.01}, _now_ms())]
    ]
    for number, state in enumerate(ends):
        if number:
            written.append([TrialStarted(number, f"t{number:03d} SGD", values, {}, _now_ms())])
        written.append([example_epoch(number, 1)])
        failure = Failure("nan", "train_loss is nan") if state is TrialState.FAIL else None
        value = None if failure else 0.5
        best = {} if failure else dict(example_epoch(number, 1).metrics)
        written.append(
            [TrialFinished(number, state, _now_ms(), value, 1, best, 1, failure=failure)]
        )
    last = StudyFinished(_now_ms(), {str(s): 1 for s in ends}, 0, 0.5, 0.5, "interrupted")
    return [*written, [CheckpointDropped(1, _now_ms()), Notice(_now_ms(), "one line"), last]]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
