"""Executors with real workers: crashes, hangs, and errors that must reach the user."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import optuna
import pytest
from searches import children_of
from user_code import SPACE

from sweep.config.settings import RunConfig
from sweep.errors import ConfigError, DataError, StoreError, StudyFailedError, SweepError
from sweep.executors import make_executor
from sweep.executors.inline import InlineExecutor
from sweep.executors.memory_limit import MemoryLimit, resident_bytes
from sweep.executors.process import ProcessExecutor
from sweep.files.trial_files import TrialFiles
from sweep.protocols import Executor
from sweep.search.study import Outcome, search
from sweep.space import parse_space
from sweep.testing import ExecutorContract, RecordingListener, ScriptedExchange, example_task
from sweep.trial import (
    EpochReport,
    Notice,
    Orders,
    Report,
    Stop,
    TrialFinished,
    TrialSpec,
    TrialStarted,
    WorkerReady,
)

THREE_PARAMETERS = (
    "# A line.\nparameters:\n  optimizer: {choices: [Adam]}\n"
    "  lr: {float: [1e-3, 0.1], log: true}\n  hidden: {widths: [16, 32], layers: [1, 1]}\n"
)


def workers_of(pid: int) -> list[int]:
    """Process ids of the workers of a driver."""
    return [
        child
        for child in children_of(pid)
        if b"sweep.executors.worker" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


class TestInlineExecutor(ExecutorContract):
    """The contract, in this process."""

    def make_executor(self) -> Executor:
        return InlineExecutor()


class TestProcessExecutor(ExecutorContract):
    """The contract, with a worker process."""

    def make_executor(self) -> Executor:
        return ProcessExecutor(1)


def test_executors_have_names() -> None:
    """The two words that --executor takes."""
    assert isinstance(make_executor("inline", 1), InlineExecutor)
    assert isinstance(make_executor("process", 2), ProcessExecutor)


def test_damaged_data_is_the_users_error(tmp_path: Path) -> None:
    """What a worker finds wrong with the files comes out of `run` as the DataError it is."""
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"not an image")
    executor = ProcessExecutor(1)
    executor.warm_up(example_task(tmp_path, data="mnist", data_dir=str(tmp_path), population=1))
    with pytest.raises(DataError, match="idx"):
        executor.run(ScriptedExchange(()))
    assert workers_of(os.getpid()) == []


def test_the_driver_is_asked_while_no_worker_speaks(tmp_path: Path) -> None:
    """What it cannot record ends the search at once, not at the end of a long epoch."""
    executor = ProcessExecutor(1)
    executor.warm_up(example_task(tmp_path, population=1))

    def exchange(reports: Sequence[Report], n_free: int) -> Orders:
        assert (reports, n_free) == ((), 0)
        raise StoreError("the disk is full")

    with pytest.raises(StoreError, match="full"):
        executor.run(exchange)


def test_workers_that_were_dismissed_come_back(tmp_path: Path) -> None:
    """One of two was told that no trial is to come; then the user extends the search."""
    executor, n_ready = ProcessExecutor(2), 0
    executor.warm_up(example_task(tmp_path, population=1))

    def exchange(reports: Sequence[Report], n_free: int) -> Orders:
        """The second worker leaves, the first one waits until a third one has come."""
        nonlocal n_ready
        is_new = any(isinstance(report, WorkerReady) for report in reports)
        n_ready += is_new
        return Orders(is_last=n_ready == 3 or (is_new and n_ready == 2))

    executor.run(exchange)
    executor.kill()
    assert n_ready == 3


def test_a_worker_that_dies_before_its_first_trial_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After three such deaths the executor gives up, and says what the last one said last."""
    (tmp_path / "torch.py").write_text(
        "import os, sys\nprint('libcudart is missing', file=sys.stderr, flush=True)\n"
        "os._exit(7)  # as a broken build of torch does\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    executor = ProcessExecutor(1)
    executor.warm_up(example_task(tmp_path, population=1))
    with pytest.raises(StudyFailedError) as caught:
        executor.run(ScriptedExchange([TrialSpec(0, {}, 0)]))
    assert str(caught.value) == (
        "a worker cannot start: its worker left with exit code 7: libcudart is missing"
    )
    assert workers_of(os.getpid()) == []


def test_a_bug_in_a_data_function_is_one_line(tmp_path: Path) -> None:
    """A data set of the user's own that raises is named at once, without a second try."""
    executor = ProcessExecutor(1)
    executor.warm_up(example_task(tmp_path, data="user_code:broken_data", population=1))
    with pytest.raises(SweepError, match="ZeroDivisionError: no samples left") as caught:
        executor.run(ScriptedExchange(()))
    assert "\n" not in str(caught.value)


def test_a_module_that_is_not_there_is_the_users_error(tmp_path: Path) -> None:
    """A wrong --module is said once and at once, not trial by trial."""
    executor = InlineExecutor()
    executor.warm_up(example_task(tmp_path, module="user_code:Modell", population=1))
    with pytest.raises(ConfigError, match=r"--module .* has no 'Modell'"):
        executor.run(ScriptedExchange(()))


def test_a_module_that_leaves_as_it_is_imported_is_the_users_error(tmp_path: Path) -> None:
    """`sys.exit` at the top of a file: one line with its place, and the worker's traceback."""
    (tmp_path / "leaves_at_import.py").write_text("import sys\n\nsys.exit('needs a GPU')\n")
    executor = ProcessExecutor(1)
    with contextlib.chdir(tmp_path):
        executor.warm_up(example_task(tmp_path, module="leaves_at_import:Model", population=1))
        with pytest.raises(ConfigError) as caught:
            executor.run(ScriptedExchange(()))
    said = "cannot be imported: leaves_at_import.py:3: SystemExit: needs a GPU"
    assert str(caught.value) == f"--module 'leaves_at_import:Model' {said}"
    (note,) = caught.value.__notes__
    assert 'leaves_at_import.py", line 3, in <module>' in note
    assert note.removeprefix("In the worker:\n") in (tmp_path / "example/sweep.log").read_text()


class NoteWorkers(RecordingListener):
    """Notes which workers there are as it is closed."""

    workers: Sequence[int] = ()

    def close(self) -> None:
        super().close()
        self.workers = workers_of(os.getpid())


def test_a_worker_leaves_while_the_last_records_are_written(tmp_path: Path) -> None:
    """What a user's module does at its exit is waited for, at the very end."""
    (tmp_path / "slow_exit.py").write_text(
        "import atexit, os, time\nfrom user_code import Model as Model\n"
        "def leave() -> None:\n    time.sleep(1.5)\n    open('left', 'w').close()\n"
        "if 'worker' in open('/proc/self/cmdline').read():\n    atexit.register(leave)\n"
    )
    config = RunConfig(
        study="leave", trials=1, epochs=2, module="slow_exit:Model", metric="val_f1", threads=1,
        population=1, storage=f"sqlite:///{tmp_path}/optuna.db", work_dir=str(tmp_path / "work"),
    )  # fmt: skip
    listener = NoteWorkers()
    space = parse_space("# A line.\nparameters:\n  width: {choices: [4]}\n", "one", is_mlp=False)
    with contextlib.chdir(tmp_path):
        search(config, space, [listener])
        assert len(listener.workers) == 1
        assert Path("left").is_file()
    assert workers_of(os.getpid()) == []


def test_a_limit_that_every_worker_is_over_is_left_out(tmp_path: Path) -> None:
    """One replacement that brings no room is enough: it is said once, and the search goes on."""
    config = RunConfig(
        study="cramped", trials=2, epochs=3, baseline=False, threads=1, population=1,
        storage=f"sqlite:///{tmp_path}/optuna.db", work_dir=str(tmp_path / "work"),
        worker_memory_gb=0.01,
    )  # fmt: skip
    listener = RecordingListener()
    outcome = search(config, parse_space(THREE_PARAMETERS, "three"), [listener])
    assert outcome.end.n_by_state == {"COMPLETE": 2}
    replaced, left_out = (n.message for n in listener.of(Notice))
    assert re.fullmatch(r"a worker took [\d.]+ GB, over --worker-memory 0.01: .*", replaced)
    assert re.fullmatch(
        r"a new worker takes [\d.]+ GB at once: going on without --worker-memory 0.01", left_out
    )
    assert [r.number for r in listener.of(TrialStarted)] == [0, 1]
    assert [r.epoch for r in listener.of(EpochReport)] == [1, 2, 3] * 2


class StoppingExchange(ScriptedExchange):
    """Hands out its specs, and stops with an epoch of trial 0 once trial 1 has had its answer."""

    def __call__(self, reports: Sequence[Report], n_free: int) -> Orders:
        """As the driver does after a Ctrl-C."""
        is_answered = bool(self.epochs(1))
        orders = super().__call__(reports, n_free)
        stops = tuple(Stop(r.number, "interrupted") for r in reports if isinstance(r, EpochReport))
        is_stopping = orders.is_last and is_answered and bool(self.epochs(0))
        return Orders(stops if is_stopping else (), orders.start, orders.is_last, is_stopping)


def test_a_hung_worker_does_not_keep_a_stopped_search(tmp_path: Path) -> None:
    """Of two workers one is suspended, as by SIGSTOP: the other saves, it is ended and said."""
    executor = ProcessExecutor(2, stop_grace_s=1.0)
    executor.warm_up(
        example_task(
            tmp_path, module="user_code:Model", metric="val_f1", epochs=500, population=1
        )
    )  # fmt: skip
    specs = [TrialSpec(n, {"mode": mode}, n) for n, mode in enumerate(["slow", "hang"])]
    exchange = StoppingExchange(specs)
    executor.run(exchange)
    executor.kill()
    results = exchange.results()
    assert results[0].outcome == "stopped"
    assert (TrialFiles(tmp_path / "example", 0).folder / "last.ckpt").is_file()
    assert results[1].failure is not None
    assert results[1].failure.kind == "killed"
    said = [r.message for r in exchange.reports if isinstance(r, Notice)]
    assert re.fullmatch(r"a worker was ended: no epoch ended within \d+ s of the stop", said[-1])
    assert workers_of(os.getpid()) == []


def test_a_worker_that_still_loads_is_ended_at_once(tmp_path: Path) -> None:
    """Data that never come have cost nothing that could be saved."""
    executor = ProcessExecutor(1)
    executor.warm_up(example_task(tmp_path, data="user_code:hung_data", population=1))
    executor.run(lambda reports, n_free: Orders(is_last=True, is_stopping=True))
    assert workers_of(os.getpid()) == []


def too_large(limit: MemoryLimit, pid: int, *epochs: int) -> bool:
    """Whether a worker is to be replaced after it trained trial 0 for `epochs`."""
    reports = [EpochReport(0, epoch, {}, 0) for epoch in epochs]
    return limit.check(pid, partial(resident_bytes, pid), reports)[0]


def test_trials_that_start_over_each_time_end_the_limit() -> None:
    """Where resume states cannot be written, new workers would train the same epochs for ever."""
    limit, large = MemoryLimit(0.02), os.getpid()
    with subprocess.Popen(["sleep", "60"]) as small:
        assert not too_large(limit, small.pid, 1, 2, 3)
        small.kill()
    assert too_large(limit, large, 1, 2, 3)
    assert not too_large(limit, large, 1, 2, 3)
    assert not too_large(limit, large, 4)


def test_memory_that_cannot_be_measured_is_one_line() -> None:
    """On a system without /proc the limit is left out, and the user is told once."""
    limit = MemoryLimit(1.5)
    no_process = 2**22 + 1
    measure = partial(resident_bytes, no_process)
    found = [limit.check(0, measure, [EpochReport(0, epoch, {}, 0)]) for epoch in (1, 2)]
    assert [said for _, said in found] == [
        "this system does not say what memory a process takes: going on without "
        "--worker-memory 1.5",
        "",
    ]


BadDay = tuple[Outcome, RecordingListener, RunConfig]


@pytest.fixture(scope="module")
def bad_day(tmp_path_factory: pytest.TempPathFactory) -> BadDay:
    """A search in which every kind of trial occurs once: one worker, a user's module."""
    folder = tmp_path_factory.mktemp("bad_day")
    modes = ("fine", "nan", "raise", "hang", "die")
    first = "".join(f"  - {{mode: {mode}, width: 8}}\n" for mode in modes)
    config = RunConfig(
        study="bad-day", trials=6, epochs=3, module="user_code:Model", metric="val_f1",
        trial_timeout_s=3.0, population=1, storage=f"sqlite:///{folder}/optuna.db", threads=1,
        work_dir=str(folder / "work"),
    )  # fmt: skip
    listener = RecordingListener()
    before = Path.cwd()
    os.chdir(folder)  # where the module leaves the mark of its one death
    try:
        space = parse_space(f"{SPACE}first:\n{first}", "bad", is_mlp=False)
        outcome = search(config, space, [listener])
    finally:
        os.chdir(before)
    return outcome, listener, config


def failure_of(bad_day: BadDay, number: int) -> tuple[str, str, str]:
    """State, class and message of a trial."""
    record: TrialFinished = bad_day[1].finished()[number]
    assert record.failure is not None
    return str(record.state), record.failure.kind, record.failure.message


def test_a_bad_day_ends_with_the_total(bad_day: BadDay) -> None:
    """Six trials are finished, whatever happened to each."""
    outcome, listener, _ = bad_day
    assert (outcome.n_new, outcome.end.reason, len(listener.finished())) == (6, "done", 6)
    assert outcome.best is not None
    assert outcome.best.state == "COMPLETE"


def test_nan_in_a_users_module_is_class_nan(bad_day: BadDay) -> None:
    """A metric that is not a number fails its trial."""
    assert failure_of(bad_day, 1)[:2] == ("FAIL", "nan")


def test_an_exception_in_a_users_module_keeps_its_traceback(bad_day: BadDay) -> None:
    """Class exception, with the line of the user's code."""
    state, kind, message = failure_of(bad_day, 2)
    assert (state, kind) == ("FAIL", "exception")
    assert re.fullmatch(r"ZeroDivisionError: width must not be 8 \(.*user_code.py:\d+\)", message)
    failure = bad_day[1].finished()[2].failure
    assert failure is not None
    assert "user_code.py" in failure.traceback


def test_a_hung_trial_is_ended_by_its_time_limit(bad_day: BadDay) -> None:
    """Class timeout, though no epoch ever ended; the trials after it were trained."""
    state, kind, _ = failure_of(bad_day, 3)
    assert (state, kind) == ("FAIL", "timeout")


def test_a_trial_that_takes_its_worker_along_is_tried_again(bad_day: BadDay) -> None:
    """The one that died once is complete, and the user was told."""
    record = bad_day[1].finished()[4]
    assert str(record.state) == "COMPLETE"
    (notice,) = [n.message for n in bad_day[1].of(Notice) if "trial 4 is tried again" in n.message]
    assert "SIGKILL" in notice
    assert [r.number for r in bad_day[1].of(TrialStarted)] == list(range(6))
    assert workers_of(os.getpid()) == []


def test_optuna_shows_the_same_states(bad_day: BadDay) -> None:
    """The storage and the records agree on every trial."""
    _, listener, config = bad_day
    trials = optuna.load_study(study_name="bad-day", storage=config.storage).trials
    told = {n: str(r.state) for n, r in listener.finished().items()}
    assert {t.number: t.state.name for t in trials} == told
