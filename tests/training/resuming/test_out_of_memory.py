"""Where memory runs out, fewer trials go on at a time; none is lost."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from resume_driver import (
    BASE,
    METRICS,
    Driver,
    a_task,
    continued,
    train,
)
from searches import TESTS

from sweep.data.tensors import Split, TensorData
from sweep.training.compiled.kernel import SWITCH, load_kernel
from sweep.training.exports import Example, export_model, prepare_export
from sweep.training.fused.trainer import FusedTrainer
from sweep.training.mlp import MLPClassifier
from sweep.trial import (
    EpochReport,
    Notice,
    Orders,
    Report,
    Task,
    TrialSpec,
    derive_seed,
)

HERE = Path(__file__).parent

N_LARGE, N_FIRST = 16, 3
WIDTH = 512
"""Of two hidden layers: 2.4 MB of weights in float64, four times that with all that goes along."""


def large() -> list[TrialSpec]:
    """Sixteen trials of two hidden layers."""
    return [
        TrialSpec(number, BASE | {"hidden": (WIDTH, WIDTH)}, derive_seed(0, "init", number))
        for number in range(N_LARGE)
    ]


N_EPOCHS, BATCH = 3, 50
"""Of two batches: optimizers of so many weights take a tenth of a second a batch."""
ROOM_MB = {"off": 260, "on": 65}
"""Kernel -> a room that more than eight such trials have, with what is written of them, and
sixteen do not. It is looked for from there: what torch and the allocator take beside them differs
by machine."""
MOST_MB = 600
OUT_OF_MEMORY = ["out of memory with 16 trials at a time: going on with 8"]


def limit_memory(room_mb: int) -> None:
    """This process gets so much more and no more."""
    n_pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = n_pages * resource.getpagesize() + (room_mb << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


class Narrowing(Driver):
    """Three trials train for two epochs; then the others come, and memory is limited."""

    room_mb = 0

    def __call__(self, reports: Sequence[Report], n_free: int) -> Orders:
        if len(self.waiting) == N_LARGE:
            n_free = N_FIRST
        elif len(self.waiting) == N_LARGE - N_FIRST:
            if any(isinstance(r, EpochReport) and r.epoch == 2 for r in reports):
                limit_memory(self.room_mb)
            else:
                n_free = 0
        return super().__call__(reports, n_free)


def train_narrowing(task: Task, data: TensorData, room_mb: int, calls: Path) -> None:
    """What the driver was told goes to `calls`."""
    driver = Narrowing(large())
    driver.room_mb = room_mb
    FusedTrainer(task, data).train(driver)
    calls.write_bytes(pickle.dumps(driver.calls))


def fork(work: Callable[..., None], *given: Any) -> None:
    """Call `work` in a fork of this process, and wait until it has ended, however that was."""
    if (child := os.fork()) == 0:
        with contextlib.suppress(BaseException):
            work(*given)
        os._exit(0)
    os.waitpid(child, 0)


def search_for_room(task: Task, data: TensorData, calls: Path, tried_mb: int) -> None:
    """Limits the memory of forks: from `tried_mb` on halves the range of rooms until the
    population was halved once and nothing else happened. Prints what was tried."""
    too_small, too_large = 0, MOST_MB
    while too_small < tried_mb < too_large:
        calls.unlink(missing_ok=True)
        own = dataclasses.replace(task, work_dir=f"{task.work_dir}-{tried_mb}")
        fork(train_narrowing, own, data, tried_mb, calls)
        told = told_in(calls)
        said = [notice.message for notice in told.of(Notice)]
        print(tried_mb, said if told.calls else "it failed", flush=True)
        if said == OUT_OF_MEMORY:
            return
        if told.calls and (not said or "going on" not in said[0]):
            too_large = tried_mb
        else:
            too_small = tried_mb
        tried_mb = (too_small + too_large) // 2


def train_all(
    data: TensorData, rooms: Mapping[str, Task], last: Task, specs: Sequence[TrialSpec]
) -> None:
    """What this module's tests look at, from one process: it takes ten seconds to be ready."""
    torch.set_num_threads(1)
    export_once(data)
    for kernel, task in rooms.items():
        os.environ[SWITCH] = kernel
        search_for_room(task, data, Path(f"{task.work_dir}-calls"), ROOM_MB[kernel])
    os.environ[SWITCH] = "off"
    fork(train_limited, last, data, specs, 100, Path(f"{last.work_dir}-calls"))  # they take 160


def in_a_process(*given: Any) -> str:
    """Call `train_all` with `given` in a process of its own; what it prints."""
    code = f"""
        import pickle, sys
        sys.path[:0] = {[str(HERE), str(TESTS)]!r}
        import test_out_of_memory
        test_out_of_memory.train_all(*pickle.load(sys.stdin.buffer))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, input=pickle.dumps(given), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def told_in(calls: Path) -> Driver:
    """A driver that was told what the file says; nothing where there is none."""
    driver = Driver(())
    driver.calls = pickle.loads(calls.read_bytes()) if calls.exists() else []
    return driver


@pytest.fixture(scope="module")
def two_batches(data: TensorData) -> TensorData:
    """The first of them."""
    train = Split(data.train.x[: 2 * BATCH], data.train.y[: 2 * BATCH])
    return dataclasses.replace(data, train=train)


def wide_task(folder: Path, checkpoint_interval_s: float) -> Task:
    """Of the sixteen side by side, in float64."""
    task = a_task(folder, checkpoint_interval_s=checkpoint_interval_s, precision="64-true")
    return dataclasses.replace(task, population=N_LARGE, batch_size=BATCH, epochs=N_EPOCHS)


@dataclass(frozen=True)
class Limited:
    """Trainings that ran out of memory."""

    rooms: dict[str, Task]
    """Kernel -> a training with little room from its third epoch on."""
    last: Task
    """Of trials that were read back."""
    said: str

    @staticmethod
    def calls(task: Task) -> Driver:
        return told_in(Path(f"{task.work_dir}-calls"))


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory, two_batches: TensorData) -> Limited:
    """All of them, with resume states of sixteen trials for the last."""
    folder = tmp_path_factory.mktemp("limited")
    kernels = ("off", "on") if load_kernel(8).kernel is not None else ("off",)
    rooms = {kernel: wide_task(folder / kernel, 0.0) for kernel in kernels}
    last = wide_task(folder / "last", 3600.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SWITCH, "off")
        train(FusedTrainer(last, two_batches), large(), dict.fromkeys(range(N_LARGE), 1))
    specs = [continued(last, s) for s in large()]
    return Limited(rooms, last, in_a_process(two_batches, rooms, last, specs))


@pytest.mark.parametrize("kernel", ["off", "on"])
def test_out_of_memory_halves_the_population(
    kernel: str, limited: Limited, monkeypatch: pytest.MonkeyPatch, two_batches: TensorData
) -> None:
    """Where sixteen trials do not fit, eight at a time go on: none lost, every curve as without.

    Those that trained before go on from their resume state. (Far tighter, torch's lazy imports
    fail in ways that no trainer can answer: the worker dies then, and is replaced.)
    """
    if kernel not in limited.rooms:
        pytest.skip("no kernel here")
    monkeypatch.setenv(SWITCH, kernel)
    task = limited.rooms[kernel]
    narrow = limited.calls(task)
    assert [n.message for n in narrow.of(Notice)] == OUT_OF_MEMORY, limited.said
    starts = {n: narrow.epochs(n)[0].start_epoch for n in range(N_LARGE)}
    again = [dataclasses.replace(s, start_epoch=starts[s.number]) for s in large()]
    roomy = dataclasses.replace(
        task, work_dir=task.work_dir + "-roomy", checkpoint_interval_s=3600
    )
    wide = train(FusedTrainer(roomy, two_batches), again)
    for number in range(N_LARGE):
        assert narrow.result(number).outcome == "finished"
        first = {r.epoch: r for r in reversed(narrow.epochs(number))}
        for epoch, right in enumerate(wide.curve(number), start=1):
            ours = tuple(first[epoch].metrics[name] for name in METRICS)
            assert ours == pytest.approx(right, rel=1e-7)
    # Each epoch was trained once, also by those that were interrupted, whenever that was.
    for number in range(N_LARGE):
        reports = narrow.epochs(number)
        replayed = [r.epoch for r in reports if r.is_replay]
        assert replayed == list(range(1, len(replayed) + 1))
        assert [r.epoch for r in reports if not r.is_replay] == list(range(1, N_EPOCHS + 1))
    assert any(r.is_replay for n in range(N_LARGE) for r in narrow.epochs(n))


def export_once(data: TensorData) -> None:
    """Let torch load what its exports need, 0.1 GB, before memory is limited."""
    model = MLPClassifier(data.info.feature_shape[-1] ** 2, 10, hidden=(WIDTH, WIDTH)).double()
    prepare_export(model, data.info.feature_shape)
    with tempfile.TemporaryDirectory() as folder:
        export_model(Path(folder) / "model.pt2", model, Example(data.info.feature_shape))


def train_limited(
    task: Task, data: TensorData, specs: Sequence[TrialSpec], room_mb: int, calls: Path
) -> None:
    """This process gets no more memory from when its worker is ready."""

    class Limiting(Driver):
        def __call__(self, reports: Sequence[Report], n_free: int) -> Orders:
            if not self.calls:
                limit_memory(room_mb)
            return super().__call__(reports, n_free)

    driver = Limiting(specs)
    FusedTrainer(task, data).train(driver)
    calls.write_bytes(pickle.dumps(driver.calls))


def test_out_of_memory_while_trials_are_read_back(
    limited: Limited, monkeypatch: pytest.MonkeyPatch, two_batches: TensorData
) -> None:
    """Where there is no room to read sixteen resume states, fewer trials go on at a time; none
    fails, and none starts again."""
    monkeypatch.setenv(SWITCH, "off")
    narrow = limited.calls(limited.last)
    first, *others = [n.message for n in narrow.of(Notice)]
    assert first == OUT_OF_MEMORY[0]
    assert all("going on with" in message for message in others)
    whole = dataclasses.replace(limited.last, work_dir=f"{limited.last.work_dir}-whole")
    wide = train(FusedTrainer(whole, two_batches), large())
    for number in range(N_LARGE):
        assert narrow.result(number).outcome == "finished"
        told = {r.epoch: tuple(r.metrics[m] for m in METRICS) for r in narrow.epochs(number)}
        for epoch, right in enumerate(wide.curve(number), start=1):
            assert told[epoch] == pytest.approx(right, rel=1e-7)
        # An epoch that was broken off is trained again, from the same resume file.
        assert {r.epoch for r in narrow.epochs(number) if not r.is_replay} == {2, 3}
