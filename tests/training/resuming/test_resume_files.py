"""Files that a trial goes on from: damaged, of others, on full disks; and verdicts."""

from __future__ import annotations

import dataclasses
import pickle
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from resume_driver import (
    ENDED,
    N_EPOCHS,
    TRAINERS,
    Driver,
    a_task,
    both,
    continued,
    files,
    spec,
    train,
)

from sweep.data.tensors import TensorData
from sweep.errors import DiskError
from sweep.files.trial_files import RESUME_STATE, TrialFiles
from sweep.testing import example_task
from sweep.training.plain.trainer import PlainTrainer
from sweep.trial import (
    EpochReport,
    Notice,
    Orders,
    Report,
    StopReason,
    TrialSpec,
)

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
    said = [notice.message for notice in driver.of(Notice)]
    assert sum("last.ckpt" in message for message in said) == 1
    assert not any("exported" in message for message in said)
