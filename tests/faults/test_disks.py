"""A disk that is full, a folder that is read-only, files where folders should be."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from disks import SmallDisk, full_disk, read_only_disk, why_no_disk
from harness import Plan, check
from searches import Call, Finished, query

from sweep.files.trial_files import is_whole_checkpoint

RUN = (
    "run", "--study", "six", "--trials", "14", "--executor", "process", "--population", "4",
    "--checkpoint-interval", "0.1",
)  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder to mount on."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if reason := why_no_disk(folder):
        pytest.skip(reason)
    return folder


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    (line,) = done.stderr.splitlines()
    assert "Traceback" not in line
    assert "bug in sweep" not in line
    return line


def n_used_kb(disk: SmallDisk) -> int:
    return int(disk.run("df", "-k", "--output=used", ".").stdout.split()[1])


def test_a_full_disk_stops_the_search_and_room_lets_it_go_on(
    place: Path, tmp_path: Path, finished: Finished
) -> None:
    """Exit code 4 and one line that says what to do. On the full disk trials can be listed, both
    stores are whole and every checkpoint is. Once there is room the same command ends with each
    trial once in each store, with its curve, checkpoint and model."""
    finished.copy(place)
    (begun := tmp_path / "begun").mkdir()
    shutil.copytree(place, begun, dirs_exist_ok=True)
    with full_disk(place, 100_000) as disk:
        disk.run("cp", "-r", f"{begun}/.", str(place))
        disk.run("mount", "-o", f"remount,size={n_used_kb(disk) + 900}k", str(place))
        stopped = disk.sweep(*RUN)
        assert stopped.returncode == 4, stopped.stderr
        assert one_line(stopped).endswith("free some space, then run the same command again")
        listed = disk.sweep("trials", "six", "--format", "csv")
        assert (listed.returncode, listed.stderr) == (0, "")
        assert len(listed.stdout.splitlines()) >= 1 + 6
        assert disk.run("cp", "-r", str(place), str(tmp_path / "copy")).returncode == 0
        disk.run("mount", "-o", "remount,size=100m", str(place))
        ended = disk.sweep(*RUN)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert disk.run("cp", "-r", ".", str(tmp_path / "ended")).returncode == 0
    copy = tmp_path / "copy"
    for store in ("mlflow.db", "mlruns/optuna.db"):
        assert query(copy / store, "PRAGMA integrity_check") == [("ok",)]
    checkpoints = [*(copy / "mlruns/.sweep/six/trials").glob("*/best.ckpt")]
    assert checkpoints
    assert all(map(is_whole_checkpoint, checkpoints))
    shutil.rmtree(place)  # below the disk; stores name their files by absolute paths
    (tmp_path / "ended").rename(place)
    assert check(place, "six", Plan(0, 0, n_trials=14, epochs=3)) == []


def test_a_read_only_folder_can_be_read(place: Path, six: Path) -> None:
    """What reads answers as ever; what has to write says in one line that it cannot."""
    for name in ("mlflow.db", "mlruns"):
        (six / name).rename(place / name)
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    with read_only_disk(place) as disk:
        read = disk.sweep("best", "six")
        assert (read.returncode, read.stderr) == (0, "")
        assert "study: six" in read.stdout
        ran = disk.sweep("run", "--study", "six", "--trials", "9")
        assert ran.returncode == 4
        assert "Read-only file system" in one_line(ran)
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before


def test_a_file_in_place_of_a_folder(six: Path, call: Call) -> None:
    """Where a study's trials should lie there is a file: one line that names it, and both stores
    go on once it is away."""
    trials = six / "mlruns" / ".sweep" / "six" / "trials"
    shutil.rmtree(trials)
    trials.write_text("not a folder")
    more = ("--trials", "7", "--executor", "inline", "--population", "1")
    code, _, errors = call("run", "--study", "six", *more)
    assert (code, len(errors)) == (4, 1)
    assert str(trials) in errors[0]
    trials.unlink()
    code, out, errors = call("run", "--study", "six", *more)
    assert (code, errors) == (0, [])
    assert "six: 7 of 7 trials" in out
    assert call("doctor", "six")[0] == 0
