"""One driver at a time: locks that a dead owner lets go of."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sweep.errors import DiskError, StudyLockedError
from sweep.recovery import store_lock, study_lock

HOLD = """
import sys, time
from pathlib import Path
from sweep.recovery import study_lock
with study_lock(Path(sys.argv[1]), "mine"):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that owns the study."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_driver_is_refused_and_the_first_named(tmp_path: Path) -> None:
    """The error says which process owns the study and what to do."""
    with holder(tmp_path) as process:
        with pytest.raises(StudyLockedError) as caught, study_lock(tmp_path, "mine"):
            pass
        process.kill()
    assert f"process {process.pid} on " in str(caught.value)
    assert "--study NAME" in str(caught.value)


def test_a_killed_owner_lets_go(tmp_path: Path) -> None:
    """After SIGKILL the study is free at once; no file has to be deleted."""
    with holder(tmp_path) as process:
        os.kill(process.pid, signal.SIGKILL)
    with study_lock(tmp_path, "mine"):
        assert (tmp_path / "lock").read_text().startswith('{"pid": ')


def test_the_lock_is_let_go_when_the_search_raises(tmp_path: Path) -> None:
    """An error inside frees the study."""
    with pytest.raises(ValueError, match="inside"), study_lock(tmp_path, "mine"):
        raise ValueError("inside")
    with study_lock(tmp_path, "mine"):
        pass


def test_other_studies_are_free(tmp_path: Path) -> None:
    """Each study has a lock of its own."""
    with study_lock(tmp_path / "a", "a"), study_lock(tmp_path / "b", "b"):
        pass


def test_only_the_owner_may_read_the_lock(tmp_path: Path) -> None:
    """The lock file is private."""
    with study_lock(tmp_path, "mine"):
        assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600


def test_a_folder_that_cannot_be_made_is_a_disk_error(tmp_path: Path) -> None:
    """A file in place of the folder is named, with the flag that helps."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="--work-dir"), study_lock(tmp_path / "file" / "x", "x"):
        pass


def test_stores_are_made_one_after_the_other(tmp_path: Path) -> None:
    """A second process waits until the first has made its stores."""
    order: list[str] = []

    def second() -> None:
        with store_lock(tmp_path):
            order.append("second")

    with store_lock(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.1)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
