"""An interrupted trial goes on as if nothing had happened, in both trainers."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from sweep.data.tensors import Split, TensorData, load_search_data
from sweep.errors import DiskError
from sweep.executors.process import ProcessExecutor
from sweep.files.trial_files import BEST, RESUME_STATE, TrialFiles
from sweep.testing import example_task
from sweep.training.compiled.kernel import SWITCH, load_kernel
from sweep.training.exports import export_model, prepare_export
from sweep.training.fused.trainer import FusedTrainer
from sweep.training.mlp import MLPClassifier
from sweep.training.plain.trainer import PlainTrainer
from sweep.trial import (
    EpochReport,
    Notice,
    Orders,
    Report,
    Stop,
    StopReason,
    Task,
    TrialResult,
    TrialSpec,
    WorkerReady,
    derive_seed,
)

HERE = Path(__file__).parent
N_EPOCHS = 4
METRICS = ("train_loss", "val_loss", "val_acc")
BASE = {"hidden": (12, 6), "optimizer": "Adam", "lr": 5e-3}


@pytest.fixture(scope="module", autouse=True)
def _one_thread_and_own_modules() -> Iterable[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    sys.path.insert(0, str(HERE))
    yield
    sys.path.remove(str(HERE))
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data() -> TensorData:
    """A part of digits."""
    whole = load_search_data("digits", None, 0)
    train = Split(whole.train.x[:200], whole.train.y[:200])
    val = Split(whole.val.x[:60], whole.val.y[:60])
    return dataclasses.replace(whole, train=train, val=val)


class Driver:
    """Hands out specs; stops trial n with `reason` after epoch stops[n] was reported anew."""

    def __init__(
        self,
        specs: Sequence[TrialSpec],
        stops: Mapping[int, int] | None = None,
        reason: StopReason = "interrupted",
    ) -> None:
        self.waiting, self.stops, self.reason = list(specs), dict(stops or {}), reason
        self.calls: list[tuple[Report, ...]] = []

    def __call__(self, reports: Sequence[Report], n_free: int) -> Orders:
        self.calls.append(tuple(reports))
        stop = tuple(
            Stop(r.number, self.reason)
            for r in reports
            if isinstance(r, EpochReport) and self.stops.get(r.number) == r.epoch
        )
        start, self.waiting = self.waiting[:n_free], self.waiting[n_free:]
        return Orders(stop, tuple(start), is_last=not self.waiting)

    def of(self, kind: type[Any]) -> list[Any]:
        return [r for reports in self.calls for r in reports if isinstance(r, kind)]

    def epochs(self, number: int) -> list[EpochReport]:
        return [r for r in self.of(EpochReport) if r.number == number]

    def curve(self, number: int) -> list[tuple[float, ...]]:
        """(epochs, 3), replayed or new; each epoch once and in order."""
        reports = self.epochs(number)
        assert [r.epoch for r in reports] == list(range(1, len(reports) + 1))
        return [tuple(r.metrics[name] for name in METRICS) for r in reports]

    def result(self, number: int) -> TrialResult:
        (found,) = [r for r in self.of(TrialResult) if r.number == number]
        assert isinstance(found, TrialResult)
        return found


def train(trainer: Any, specs: Sequence[TrialSpec], *given: Any, **more: Any) -> Driver:
    driver = Driver(specs, *given, **more)
    trainer.train(driver)
    return driver


def spec(number: int, **hyperparameters: Any) -> TrialSpec:
    return TrialSpec(number, BASE | hyperparameters, derive_seed(0, "init", number))


def continued(task: Task, given: TrialSpec) -> TrialSpec:
    """The trial from its resume state, as a driver hands it out again."""
    assert TrialFiles(task.work_dir, given.number).whole(RESUME_STATE) is not None
    return dataclasses.replace(given, is_resumed=True)


def files(task: Task, number: int) -> set[str]:
    folder = TrialFiles(task.work_dir, number).folder
    return {file.name for file in folder.iterdir()} if folder.is_dir() else set()


ENDED = {"best.ckpt", "model.pt2", "verdict.json"}
TRAINERS: dict[str, Any] = {"plain": PlainTrainer, "fused": FusedTrainer}
both = pytest.mark.parametrize("path", TRAINERS)


def a_task(folder: Path, **changes: Any) -> Task:
    return example_task(folder, epochs=N_EPOCHS, population=4, **changes)


def weights_of(task: Task, result: TrialResult) -> dict[str, torch.Tensor]:
    assert result.has_checkpoint
    path = TrialFiles(task.work_dir, result.number).path(BEST)
    checkpoint = torch.load(path, weights_only=True)
    return dict(checkpoint["state_dict"])


# --- the plain path, bit for bit

CONFIGURATIONS = [
    {"optimizer": "SGD", "lr": 0.05, "momentum": 0.9, "nesterov": True, "schedule": "cosine"},
    {"optimizer": "Adam", "schedule": "one_cycle", "dropout": 0.3},
    {"optimizer": "RMSprop", "lr": 1e-3, "momentum": 0.5, "centered": True, "schedule": "step"},
    {"optimizer": "AdamW", "clip_norm": 0.5, "dropout": 0.2, "batch_size": 48},
]


def assert_goes_on_exactly(
    task: Task, given: TrialSpec, data: TensorData, n_done: int, path: str = "plain"
) -> None:
    """Bit for bit: curve, best epoch, best weights, trained once whole and once in two parts."""
    trainer = TRAINERS[path]
    whole_task = dataclasses.replace(task, work_dir=task.work_dir + "/whole")
    whole = train(trainer(whole_task, data), [given])
    first = train(trainer(task, data), [given], {given.number: n_done})
    assert (first.result(given.number).outcome, len(first.curve(given.number))) == (
        "stopped",
        n_done,
    )
    rest = train(trainer(task, data), [continued(task, given)])
    assert rest.curve(given.number) == whole.curve(given.number)
    assert [r.is_replay for r in rest.epochs(given.number)] == [
        e <= n_done for e in range(1, task.epochs + 1)
    ]
    ours, theirs = rest.result(given.number), whole.result(given.number)
    assert (ours.outcome, ours.n_epochs, ours.best_epoch) == (
        theirs.outcome, theirs.n_epochs, theirs.best_epoch,
    )  # fmt: skip
    right, found = weights_of(whole_task, theirs), weights_of(task, ours)
    assert all(torch.equal(value, right[name]) for name, value in found.items())
    assert [n.message for n in rest.of(Notice)] == [n.message for n in whole.of(Notice)]


@pytest.mark.parametrize("number", range(len(CONFIGURATIONS)))
def test_the_plain_path_goes_on_bit_for_bit(tmp_path: Path, data: TensorData, number: int) -> None:
    """Every optimizer and schedule, with dropout and clipping, equals the uninterrupted trial."""
    given = dataclasses.replace(spec(number, **CONFIGURATIONS[number]), start_epoch=3)
    assert_goes_on_exactly(a_task(tmp_path), given, data, 1 + number % 3)


@pytest.mark.parametrize("number", range(len(CONFIGURATIONS)))
def test_the_kernel_goes_on_bit_for_bit(tmp_path: Path, data: TensorData, number: int) -> None:
    """In float32 too: nothing but the trial's own state decides its next epoch."""
    if load_kernel(4).kernel is None:
        pytest.skip("no kernel here")
    given = dataclasses.replace(spec(number, **CONFIGURATIONS[number]), start_epoch=3)
    assert_goes_on_exactly(a_task(tmp_path), given, data, 1 + number % 3, "fused")


@pytest.mark.parametrize("module", ["Dropping", "OwnLoader"])
def test_a_users_module_goes_on_bit_for_bit(tmp_path: Path, data: TensorData, module: str) -> None:
    """Global generators, ReduceLROnPlateau, batch norm and a shuffling loader are restored."""
    task = a_task(tmp_path, module=f"resume_module:{module}")
    given = TrialSpec(0, {"rate": 0.4}, 11)
    assert_goes_on_exactly(task, given, data, 2)


def test_twice_interrupted(tmp_path: Path, data: TensorData) -> None:
    """A trial that is stopped after each epoch still has the uninterrupted curve."""
    task = a_task(tmp_path, module="resume_module:Dropping")
    given = TrialSpec(0, {}, 11)
    whole_task = dataclasses.replace(task, work_dir=task.work_dir + "/whole")
    whole = train(PlainTrainer(whole_task, data), [given])
    now = given
    for epoch in range(1, N_EPOCHS):
        driver = train(PlainTrainer(task, data), [now], {0: epoch})
        assert [r.is_replay for r in driver.epochs(0)] == [True] * (epoch - 1) + [False]
        now = continued(task, given)
    assert train(PlainTrainer(task, data), [now]).curve(0) == whole.curve(0)


def test_another_process_goes_on_where_one_was_killed(tmp_path: Path) -> None:
    """SIGKILL in the midst of an epoch loses that epoch and what the interval allows, no more."""
    task = a_task(tmp_path, module="resume_module:Dropping", checkpoint_interval_s=0.0)
    whole_task = dataclasses.replace(task, work_dir=task.work_dir + "/whole")
    given = TrialSpec(0, {}, 11)
    code = f"""
        import os, signal, sys
        sys.path[:0] = {[str(HERE)]!r}
        from sweep.training.plain.trainer import PlainTrainer
        from sweep.trial import EpochReport, Orders, Task, TrialSpec
        from resume_module import Dropping

        step = Dropping.training_step
        def deadly(self, batch, batch_idx):
            if self.current_epoch == 3 and batch_idx == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self, batch, batch_idx)
        Dropping.training_step = deadly
        specs = [{given!r}]
        def exchange(reports, n_free):
            start = [specs.pop()] if specs and n_free else []
            return Orders(start=tuple(start), is_last=not specs)
        PlainTrainer({task!r}).train(exchange)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True)
    assert done.returncode == -9, done.stderr
    rest = train(PlainTrainer(task), [continued(task, given)])
    assert [r.is_replay for r in rest.epochs(0)] == [True, True, True, False]
    assert rest.curve(0) == train(PlainTrainer(whole_task), [given]).curve(0)


# --- the fused path, to rounding

SCHEDULES = ("constant", "cosine", "step", "one_cycle")
OPTIMIZERS: list[dict[str, Any]] = [
    {"optimizer": "SGD", "lr": 0.05},
    {"optimizer": "SGD", "lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3},
    {"optimizer": "Adam", "weight_decay": 1e-3},
    {"optimizer": "AdamW", "beta1": 0.8},
    {"optimizer": "NAdam", "weight_decay": 1e-3, "beta1": 0.8},
    {"optimizer": "RMSprop", "lr": 1e-3, "alpha": 0.9},
    {"optimizer": "RMSprop", "lr": 1e-3, "momentum": 0.5, "centered": True},
]
ALL = [
    spec(
        number, **optimizer, schedule=schedule, hidden=((12, 6), (), (20,), (5, 9, 4))[number % 4],
        dropout=0.3 * (number % 2), clip_norm=None if number % 3 else 0.3,
        batch_size=64 if number % 5 else 50,
    )
    for number, (optimizer, schedule) in enumerate(
        (optimizer, schedule) for optimizer in OPTIMIZERS for schedule in SCHEDULES
    )
]  # fmt: skip


def test_the_fused_path_goes_on_exactly(tmp_path: Path, data: TensorData) -> None:
    """All optimizers x schedules, with dropout and clipping, among other neighbours than before.

    Trials are interrupted after different epochs and come back in another order, next to new
    ones, from different start epochs.
    """
    task = a_task(tmp_path, precision="64-true")
    task = dataclasses.replace(task, population=len(ALL))
    starts = [dataclasses.replace(s, start_epoch=s.number % 3) for s in ALL]
    whole_task = dataclasses.replace(task, work_dir=task.work_dir + "/whole")
    whole = train(FusedTrainer(whole_task, data), starts)
    stops = {s.number: 1 + s.number % (N_EPOCHS - 1) for s in starts}
    train(FusedTrainer(task, data), starts, stops)
    again = [continued(task, s) for s in reversed(starts)]
    again[3] = dataclasses.replace(again[3], start_epoch=None)  # the file knows it
    rest = train(FusedTrainer(task, data), [*again[:7], spec(99, lr=0.1), *again[7:]])
    assert not rest.of(Notice)
    for number, n_done in stops.items():
        for mine, other in zip(rest.curve(number), whole.curve(number), strict=True):
            assert mine == pytest.approx(other, rel=1e-7)
        ours, theirs = rest.result(number), whole.result(number)
        assert ours.best_epoch == theirs.best_epoch
        right = weights_of(whole_task, theirs)
        for name, value in weights_of(task, ours).items():
            torch.testing.assert_close(value, right[name], rtol=1e-7, atol=1e-9)
        told = rest.epochs(number)
        assert [r.is_replay for r in told] == [r.epoch <= n_done for r in told]
        assert {r.start_epoch for r in told} == {number % 3}
    assert rest.result(99).outcome == "finished"


@both
def test_replays_are_what_was_told(tmp_path: Path, data: TensorData, path: str) -> None:
    """A resumed trial begins with its former reports, equal in metrics and time, in one go."""
    task = a_task(tmp_path)
    first = train(TRAINERS[path](task, data), [spec(0)], {0: 2})
    rest = train(TRAINERS[path](task, data), [continued(task, spec(0))])
    replayed = [dataclasses.replace(r, is_replay=True) for r in first.epochs(0)]
    assert list(rest.calls[1]) == replayed


@both
def test_resume_state_at_an_interval(tmp_path: Path, data: TensorData, path: str) -> None:
    """It is written at every boundary with interval 0, and not before an hour with 3600 s.

    The plain path writes as the next epoch starts, after the exchange.
    """
    for interval_s, expected in ((0.0, [1, 2, 3] if path == "fused" else [1, 2]), (3600.0, [])):
        task = a_task(tmp_path / str(interval_s), checkpoint_interval_s=interval_s)
        seen = []

        class Watch(Driver):
            def __call__(
                self, reports: Sequence[Report], n_free: int, task: Task = task, seen: Any = seen
            ) -> Orders:
                kept = TrialFiles(task.work_dir, 0).whole(RESUME_STATE)
                if kept is not None:
                    seen.append(torch.load(kept, weights_only=True)["sweep"]["epoch"])
                return super().__call__(reports, n_free)

        watch = Watch([spec(0)])
        TRAINERS[path](task, data).train(watch)
        assert sorted(set(seen)) == expected
        assert len(watch.curve(0)) == N_EPOCHS


@both
def test_a_trial_whose_epochs_are_all_trained(tmp_path: Path, data: TensorData, path: str) -> None:
    """It finishes at once, without an epoch, with the checkpoint of its best."""
    task = a_task(tmp_path)
    first = train(TRAINERS[path](task, data), [spec(0)], {0: 3})
    for n_epochs in (3, 2):
        shorter = dataclasses.replace(
            task, epochs=n_epochs, work_dir=f"{task.work_dir}/{n_epochs}"
        )
        state = TrialFiles(task.work_dir, 0).get(RESUME_STATE)
        assert state is not None
        TrialFiles(shorter.work_dir, 0).put(RESUME_STATE, state)
        again = train(TRAINERS[path](shorter, data), [continued(shorter, spec(0))])
        assert [r.is_replay for r in again.epochs(0)] == [True] * 3
        result = again.result(0)
        assert (result.outcome, result.n_epochs) == ("finished", 3)
        assert result.best_epoch == first.result(0).best_epoch
        best = weights_of(task, first.result(0))
        assert all(torch.equal(v, best[k]) for k, v in weights_of(shorter, result).items())


@both
def test_interrupted_again_before_its_first_epoch(
    tmp_path: Path, data: TensorData, path: str
) -> None:
    """A trial that is stopped at its replay keeps its resume state, and goes on later."""
    task = a_task(tmp_path)
    whole_task = dataclasses.replace(task, work_dir=task.work_dir + "/whole")
    whole = train(TRAINERS[path](whole_task, data), [spec(0)])
    train(TRAINERS[path](task, data), [spec(0)], {0: 2})
    between = train(TRAINERS[path](task, data), [continued(task, spec(0))], {0: 1})
    assert (between.result(0).outcome, between.result(0).n_epochs) == ("stopped", 2)
    assert len(between.epochs(0)) == 2
    rest = train(TRAINERS[path](task, data), [continued(task, spec(0))])
    for mine, other in zip(rest.curve(0), whole.curve(0), strict=True):
        assert mine == pytest.approx(other, rel=1e-5)


# --- files that cannot be used


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def damaged(path: Path, how: str, folder: Path) -> None:
    """Put something else in the place of a good resume file."""
    whole = path.read_bytes()
    checkpoint = torch.load(path, weights_only=True)
    if how == "torn":
        path.write_bytes(whole[: len(whole) // 2])
    elif how == "flipped":
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    elif how == "missing":
        path.unlink()
    elif how == "bomb":
        torch.save(checkpoint | {"extra": Bomb(folder / "exploded")}, path)
    elif how == "bare bomb":
        path.write_bytes(pickle.dumps(Bomb(folder / "exploded")))
    elif how == "other keys":
        torch.save({"state_dict": checkpoint["state_dict"]}, path)
    elif how == "other shapes":
        for name, value in checkpoint["state_dict"].items():
            checkpoint["state_dict"][name] = torch.zeros(*value.shape, 2)
        torch.save(checkpoint, path)
    elif how == "garbled state":
        checkpoint["sweep"]["history"] = [["a", None]]
        torch.save(checkpoint, path)
    elif how == "other optimizer":
        checkpoint["optimizer_states"] = [{"state": {}, "param_groups": []}]
        checkpoint["sweep"]["states"] = []
        torch.save(checkpoint, path)


HOW = (
    "torn", "flipped", "missing", "bomb", "bare bomb", "other keys", "other shapes",
    "garbled state", "other optimizer",
)  # fmt: skip


@both
@pytest.mark.parametrize("how", HOW)
def test_a_file_that_cannot_be_used(tmp_path: Path, data: TensorData, path: str, how: str) -> None:
    """The trial starts from its beginning, in its data order, and one line says so."""
    task = example_task(tmp_path, epochs=2, population=4)
    given = dataclasses.replace(spec(0), start_epoch=5)
    train(TRAINERS[path](task, data), [given], {0: 1})
    again = continued(task, given)
    damaged(TrialFiles(task.work_dir, 0).path(RESUME_STATE), how, tmp_path)
    driver = train(TRAINERS[path](task, data), [again, spec(1)])
    (notice,) = driver.of(Notice)
    assert "trial 0 starts from its beginning" in notice.message
    assert "\n" not in notice.message
    assert not (tmp_path / "exploded").exists()
    assert [r.is_replay for r in driver.epochs(0)] == [False, False]
    assert {r.start_epoch for r in driver.epochs(0)} == {5}
    assert [driver.result(n).outcome for n in (0, 1)] == ["finished", "finished"]
    assert files(task, 0) == ENDED


@both
def test_a_resume_file_of_another_configuration(
    tmp_path: Path, data: TensorData, path: str
) -> None:
    """What a deleted study of the same name left is not taken for this trial's."""
    task = a_task(tmp_path)
    train(TRAINERS[path](task, data), [spec(0)], {0: 1})
    other = dataclasses.replace(continued(task, spec(0)), seed=1)
    driver = train(TRAINERS[path](task, data), [other])
    (notice,) = driver.of(Notice)
    assert "of another configuration" in notice.message
    assert len(driver.curve(0)) == N_EPOCHS


# --- verdicts


@both
@pytest.mark.parametrize("reason", ["pruned", "converged", "timeout"])
def test_a_stopped_trial_has_its_verdict(
    tmp_path: Path, data: TensorData, path: str, reason: StopReason
) -> None:
    """Files first, then the verdict with all reports and the reason, and no resume state."""
    task = a_task(tmp_path, checkpoint_interval_s=0.0)
    driver = train(TRAINERS[path](task, data), [spec(0)], {0: 2}, reason=reason)
    assert TrialFiles(task.work_dir, 0).verdict(spec(0)) == (
        driver.epochs(0),
        driver.result(0),
    )
    assert driver.result(0).notes["sweep.stop"] == reason
    assert files(task, 0) == ENDED - (set() if reason == "converged" else {"model.pt2"})


@both
def test_ends_of_all_kinds(tmp_path: Path, data: TensorData, path: str) -> None:
    """Finished and failed trials have verdicts; an interrupted one has resume state instead."""
    task = a_task(tmp_path, checkpoint_interval_s=0.0)
    specs = [spec(0), spec(1, lr=1e30, optimizer="SGD"), spec(2, optimizer="Adma"), spec(3)]
    driver = train(TRAINERS[path](task, data), specs, {3: 2})
    for number in (0, 1, 2):
        found = TrialFiles(task.work_dir, number).verdict(specs[number])
        assert found == (driver.epochs(number), driver.result(number))
    kinds = [driver.result(n).failure for n in range(4)]
    assert [failure and failure.kind for failure in kinds] == [None, "nan", "exception", None]
    assert files(task, 0) == ENDED
    assert files(task, 1) == files(task, 2) == {"verdict.json"}
    assert files(task, 3) == {"best.ckpt", "last.ckpt"}
    assert "sweep.stop" not in driver.result(0).notes


@both
def test_the_verdict_of_a_resumed_trial_is_whole(
    tmp_path: Path, data: TensorData, path: str
) -> None:
    """It has the epochs from before the interruption too, none of them as a replay."""
    task = a_task(tmp_path)
    first = train(TRAINERS[path](task, data), [spec(0)], {0: 2})
    rest = train(TRAINERS[path](task, data), [continued(task, spec(0))])
    found = TrialFiles(task.work_dir, 0).verdict()
    assert found is not None
    assert found[0] == [*first.epochs(0), *rest.epochs(0)[2:]]
    assert found[1] == rest.result(0)


@both
def test_a_trial_that_is_tried_again_forgets(tmp_path: Path, data: TensorData, path: str) -> None:
    """From its start on, an earlier try's verdict, resume state and broken-off files are gone;
    something that cannot be removed fails no trial."""
    task = a_task(tmp_path)
    train(TRAINERS[path](task, data), [spec(0)])
    train(TRAINERS[path](task, data), [spec(1)], {1: 1})
    assert files(task, 0) == ENDED
    broken_off = TrialFiles(task.work_dir, 0).folder / ".model.pt2.0"
    broken_off.write_bytes(b"half")
    broken_off.with_name(".a-folder").mkdir()
    seen = train(TRAINERS[path](task, data), [spec(0), spec(1)], {0: 1, 1: 1}, reason="pruned")
    assert not broken_off.exists()
    assert seen.result(0).failure is None
    train(TRAINERS[path](task, data), [spec(0)], {0: 1})
    assert not {"verdict.json", "model.pt2"} & set(files(task, 0))
    assert "last.ckpt" not in files(task, 1)


# --- disks


@both
def test_resume_state_on_a_full_disk(tmp_path: Path, data: TensorData, path: str) -> None:
    """Training goes on, one line says so once, and the last good state stays readable."""
    task = a_task(tmp_path, checkpoint_interval_s=0.0)
    folder = TrialFiles(task.work_dir, 0).folder
    good = folder / "last.ckpt.good"

    class FillTheDisk(Driver):
        def __call__(self, reports: Sequence[Report], n_free: int) -> Orders:
            late = any(isinstance(r, EpochReport) and r.epoch >= 2 for r in reports)
            if late and not good.exists():
                while not (folder / "last.ckpt").exists():
                    time.sleep(0.01)  # a thread writes it
                (folder / "last.ckpt").rename(good)
                (folder / "last.ckpt").mkdir()  # no file can take its name
            return super().__call__(reports, n_free)

    driver = FillTheDisk([spec(0)], {0: 3})
    TRAINERS[path](task, data).train(driver)
    (notice,) = driver.of(Notice)
    assert "Is a directory" in notice.message
    assert driver.result(0).outcome == "stopped"
    (folder / "last.ckpt").rmdir()
    good.rename(folder / "last.ckpt")
    rest = train(TRAINERS[path](task, data), [continued(task, spec(0))])
    n_kept = sum(r.is_replay for r in rest.epochs(0))
    assert n_kept in (1, 2)  # the plain path writes as the next epoch starts
    assert len(rest.curve(0)) == N_EPOCHS


@both
@pytest.mark.parametrize("file", ["best.ckpt", "model.pt2", "verdict.json"])
def test_a_full_disk_at_the_end(tmp_path: Path, data: TensorData, path: str, file: str) -> None:
    """What a trial must leave and cannot is a DiskError of one line; its resume state stays."""
    task = a_task(tmp_path, checkpoint_interval_s=0.0)
    folder = TrialFiles(task.work_dir, 0).folder
    (folder / file).mkdir(parents=True)  # no file can take its name
    with pytest.raises(DiskError, match=f"{file} cannot be written: Is a directory"):
        train(TRAINERS[path](task, data), [spec(0)])
    (folder / file).rmdir()
    rest = train(TRAINERS[path](task, data), [continued(task, spec(0))])
    assert rest.result(0).outcome == "finished"
    assert len(rest.curve(0)) == N_EPOCHS


def test_a_module_that_cannot_be_saved(tmp_path: Path, data: TensorData) -> None:
    """It trains all the same; one line says that it could not be resumed."""
    task = a_task(tmp_path, module="resume_module:Unpicklable", checkpoint_interval_s=0.0)
    driver = train(PlainTrainer(task, data), [TrialSpec(0, {}, 1)])
    assert driver.result(0).outcome == "finished"
    (notice,) = driver.of(Notice)
    assert "last.ckpt" in notice.message


# --- memory


N_LARGE, N_FIRST = 16, 3
WIDTH = 512
"""Of two hidden layers: 2.4 MB of weights in float64, four times that with all that goes along."""


def large() -> list[TrialSpec]:
    """Sixteen trials of two hidden layers."""
    return [
        TrialSpec(number, BASE | {"hidden": (WIDTH, WIDTH)}, derive_seed(0, "init", number))
        for number in range(N_LARGE)
    ]


ROOM_MB = (0, 600)
"""Between them is a room that more than eight such trials have, with what is written of them, and
sixteen do not: what torch and the allocator take beside them differs from machine to machine."""
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


def search_for_room(task: Task, data: TensorData, folder: Path) -> None:
    """In a process of its own, which limits the memory of its children: halves `ROOM_MB` until
    the population was halved once and nothing else happened. Prints what was tried."""
    torch.set_num_threads(1)
    export_once(data)
    too_small, too_large = ROOM_MB
    while too_large - too_small > 1:
        room_mb = (too_small + too_large) // 2
        calls = folder / "calls"
        calls.unlink(missing_ok=True)
        own = dataclasses.replace(task, work_dir=str(folder / str(room_mb)))
        if (child := os.fork()) == 0:
            with contextlib.suppress(BaseException):
                train_narrowing(own, data, room_mb, calls)
            os._exit(0)
        os.waitpid(child, 0)
        told = told_in(calls)
        said = [notice.message for notice in told.of(Notice)]
        print(room_mb, said if told.calls else "it failed", flush=True)
        if said == OUT_OF_MEMORY:
            return
        if told.calls and (not said or "going on" not in said[0]):
            too_large = room_mb
        else:
            too_small = room_mb


def in_a_process(function: str, *given: Any) -> str:
    """Call a function of this module with `given` in a process of its own; what it prints."""
    code = f"""
        import pickle, sys
        sys.path[:0] = {[str(HERE), str(HERE.parent)]!r}
        import test_resume
        test_resume.{function}(*pickle.load(sys.stdin.buffer))
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


@pytest.mark.parametrize("kernel", ["off", "on"])
def test_out_of_memory_halves_the_population(
    tmp_path: Path, kernel: str, monkeypatch: pytest.MonkeyPatch, data: TensorData
) -> None:
    """Where sixteen trials do not fit, eight at a time go on: none lost, every curve as without.

    Those that trained before go on from their resume state. (Far tighter, torch's lazy imports
    fail in ways that no trainer can answer: the worker dies then, and is replaced.)
    """
    task = a_task(tmp_path, checkpoint_interval_s=0.0, precision="64-true")
    if kernel == "on" and load_kernel(8).kernel is None:
        pytest.skip("no kernel here")
    monkeypatch.setenv(SWITCH, kernel)
    task = dataclasses.replace(task, population=N_LARGE, batch_size=50)
    tried = in_a_process("search_for_room", task, data, tmp_path)
    narrow = told_in(tmp_path / "calls")
    assert [n.message for n in narrow.of(Notice)] == OUT_OF_MEMORY, tried
    starts = {n: narrow.epochs(n)[0].start_epoch for n in range(N_LARGE)}
    again = [dataclasses.replace(s, start_epoch=starts[s.number]) for s in large()]
    roomy = dataclasses.replace(
        task, work_dir=task.work_dir + "/roomy", checkpoint_interval_s=3600
    )
    wide = train(FusedTrainer(roomy, data), again)
    for number in range(N_LARGE):
        assert narrow.result(number).outcome == "finished"
        first = {r.epoch: r for r in reversed(narrow.epochs(number))}
        for epoch, right in enumerate(wide.curve(number), start=1):
            ours = tuple(first[epoch].metrics[name] for name in METRICS)
            assert ours == pytest.approx(right, rel=1e-7)
    # Each epoch was trained once, also by those that were interrupted.
    replayed = [[r.epoch for r in narrow.epochs(n) if r.is_replay] for n in range(N_LARGE)]
    assert replayed == [[1, 2]] * N_FIRST + [[]] * (N_LARGE - N_FIRST)
    assert all(len(narrow.epochs(n)) == N_EPOCHS + len(replayed[n]) for n in range(N_LARGE))


def export_once(data: TensorData) -> None:
    """Let torch load what its exports need, 0.1 GB, before memory is limited."""
    model = MLPClassifier(data.info.feature_shape[-1] ** 2, 10, hidden=(WIDTH, WIDTH)).double()
    prepare_export(model, data.info.feature_shape)
    with tempfile.TemporaryDirectory() as folder:
        export_model(Path(folder) / "model.pt2", model, data.info.feature_shape)


def train_limited(
    task: Task, data: TensorData, specs: Sequence[TrialSpec], room_mb: int, calls: Path
) -> None:
    """In a process of its own, which gets no more memory from when it is ready."""
    torch.set_num_threads(1)
    export_once(data)

    class Limiting(Driver):
        def __call__(self, reports: Sequence[Report], n_free: int) -> Orders:
            if not self.calls:
                limit_memory(room_mb)
            return super().__call__(reports, n_free)

    driver = Limiting(specs)
    FusedTrainer(task, data).train(driver)
    calls.write_bytes(pickle.dumps(driver.calls))


def test_out_of_memory_while_trials_are_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: TensorData
) -> None:
    """Where there is no room to read sixteen resume states, fewer trials go on at a time; none
    fails, and none starts again."""
    monkeypatch.setenv(SWITCH, "off")
    task = a_task(tmp_path, checkpoint_interval_s=3600.0, precision="64-true")
    task = dataclasses.replace(task, population=N_LARGE, batch_size=50)
    train(FusedTrainer(task, data), large(), dict.fromkeys(range(N_LARGE), 2))
    specs = [continued(task, s) for s in large()]
    calls = tmp_path / "calls"
    in_a_process("train_limited", task, data, specs, 100, calls)  # they take 160
    limited = told_in(calls)
    first, *others = [n.message for n in limited.of(Notice)]
    assert first == OUT_OF_MEMORY[0]
    assert all("going on with" in message for message in others)
    whole = dataclasses.replace(task, work_dir=str(tmp_path / "whole"))
    wide = train(FusedTrainer(whole, data), large())
    for number in range(N_LARGE):
        assert limited.result(number).outcome == "finished"
        told = {r.epoch: tuple(r.metrics[m] for m in METRICS) for r in limited.epochs(number)}
        for epoch, right in enumerate(wide.curve(number), start=1):
            assert told[epoch] == pytest.approx(right, rel=1e-7)
        # An epoch that was broken off is trained again, from the same resume file.
        assert {r.epoch for r in limited.epochs(number) if not r.is_replay} == {3, 4}


def test_a_killed_worker_is_replaced_by_a_smaller_one(tmp_path: Path) -> None:
    """After SIGKILL with four trials the next worker trains two at a time, and says so."""
    task = a_task(tmp_path, checkpoint_interval_s=0.0)

    class Kill(Driver):
        lost: tuple[int, ...] = ()

        def __call__(self, reports: Sequence[Report], n_free: int) -> Orders:
            failed = [r for r in reports if isinstance(r, TrialResult) and r.failure]
            if failed:
                self.lost = tuple(r.number for r in failed)
                self.waiting = [continued(task, spec(n)) for n in self.lost] + self.waiting
            epochs = [r.epoch for r in reports if isinstance(r, EpochReport)]
            if epochs == [2] * 4 and not self.lost:
                os.kill(executor._workers[0].process.pid, signal.SIGKILL)
            return super().__call__(reports, n_free)

    executor = ProcessExecutor(1)
    executor.warm_up(task)
    driver = Kill([spec(n) for n in range(5)])
    executor.run(driver)
    executor.kill()
    assert driver.lost == (0, 1, 2, 3)
    assert [ready.n_slots for ready in driver.of(WorkerReady)] == [4, 2]
    (notice,) = driver.of(Notice)
    assert notice.message == (
        "a worker with 4 trials was ended by SIGKILL: the next trains 2 at a time"
    )
    ended = [r.number for r in driver.of(TrialResult) if r.outcome == "finished"]
    assert sorted(ended) == list(range(5))
