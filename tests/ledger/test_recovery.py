"""One driver at a time: locks that a dead owner lets go of."""

from __future__ import annotations

import fcntl
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from searches import INLINE, Call
from waiting import PATIENCE_S

import sweep as library
from sweep.errors import DiskError, StoreError, StudyLockedError
from sweep.ledger.locks import (
    LOOK_S,
    owned_study,
    owner_of,
    presence,
    store_lock,
    study_lock,
)
from sweep.ledger.study import create_study
from sweep.testing import RecordingListener
from sweep.trial import Record, TrialFinished

HOLD = """
import sys, time
from pathlib import Path
from sweep.ledger.locks import study_lock
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


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"who": 1'])
def test_a_lock_whose_text_is_damaged_has_an_owner_without_a_name(
    tmp_path: Path, text: str
) -> None:
    """The kernel's lock counts, whatever the file says."""
    with holder(tmp_path) as process:
        (tmp_path / "lock").write_text(text)
        with pytest.raises(StudyLockedError, match="by another process:"):
            study_lock(tmp_path, "mine").__enter__()
        process.kill()


@pytest.mark.parametrize("url", ["sqlite:////{0}/kept/optuna.db", "sqlite:////{0}/b/../kept/x.db"])
def test_an_sqlite_storage_has_a_lock_for_all_work_folders(tmp_path: Path, url: str) -> None:
    """Two work folders on one file: the second driver is refused; another study is free."""
    storage = url.format(tmp_path)
    (tmp_path / "b").mkdir()
    with owned_study(tmp_path / "a", "mine", storage):
        refused = owned_study(tmp_path / "b", "mine", f"sqlite:///{tmp_path}/kept/optuna.db")
        with pytest.raises(StudyLockedError, match=f"process {os.getpid()} on"), refused:
            pass
        with owned_study(tmp_path / "b", "other", storage):
            pass


def test_the_default_layout_has_one_lock(tmp_path: Path) -> None:
    """The lock beside `mlruns/optuna.db` is the one in `mlruns/.sweep`: a driver meets itself."""
    with owned_study(tmp_path / ".sweep", "mine", f"sqlite:///{tmp_path}/optuna.db"):
        assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["lock"]


NO_LOCKS = """
import ctypes, struct, sys
from pathlib import Path

def refuse(call, errno):
    def statement(code, yes, no, value):
        return struct.pack("HBBI", code, yes, no, value)
    load, equal, leave = 0x20, 0x15, 0x06
    program = b"".join([
        statement(load, 0, 0, 0), statement(equal, 0, 1, call),
        statement(leave, 0, 0, 0x00050000 | errno), statement(leave, 0, 0, 0x7FFF0000),
    ])
    class Filter(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("program", ctypes.c_char_p)]
    libc = ctypes.CDLL(None, use_errno=True)
    wanted = Filter(len(program) // 8, program)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(wanted), 0, 0):
        print("no filter")
        sys.exit(0)

from sweep.errors import DiskError
from sweep.ledger.locks import store_lock, study_lock
refuse(73, int(sys.argv[2]))
for lock in (study_lock(Path(sys.argv[1]), "mine"), store_lock(Path(sys.argv[1]))):
    try:
        with lock:
            print("owned")
    except DiskError as error:
        print(error)
"""
"""Runs with a kernel that refuses flock (call 73 on x86-64), as a disk without locks does."""


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="needs seccomp on x86-64"
)
@pytest.mark.parametrize("number", [37, 95], ids=["ENOLCK", "ENOTSUP"])
def test_a_disk_without_locks_is_one_line(tmp_path: Path, number: int) -> None:
    """The error names the file and the flag that helps."""
    done = subprocess.run(
        [sys.executable, "-c", NO_LOCKS, str(tmp_path), str(number)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    if done.stdout == "no filter\n":
        pytest.skip("seccomp is not allowed here")
    first, second = done.stdout.splitlines()
    assert first.startswith(f"{tmp_path}/lock cannot be locked: {os.strerror(number)}. ")
    assert second.startswith(f"{tmp_path}/stores.lock cannot be locked: ")
    assert "--work-dir" in first


def test_a_killed_owner_lets_go(tmp_path: Path) -> None:
    """After SIGKILL the study is free at once; no file has to be deleted."""
    with holder(tmp_path) as process:
        os.kill(process.pid, signal.SIGKILL)
    with study_lock(tmp_path, "mine"):
        assert (tmp_path / "lock").read_text().startswith('{"who": "process ')


def test_a_look_at_the_owner_takes_nothing(tmp_path: Path) -> None:
    """Whoever looks is told of a live owner alone; a driver that starts meanwhile is not refused,
    and the text that a killed one left says nothing."""
    url = f"sqlite:///{tmp_path}/optuna.db"
    assert owner_of(tmp_path, "mine", url) is None
    with holder(tmp_path / "mine") as process:
        owner = owner_of(tmp_path, "mine", url)
        os.kill(process.pid, signal.SIGKILL)
    assert owner is not None
    assert str(owner).startswith(f"process {process.pid} on ")
    assert time.time() - (owner.since_s or 0) < PATIENCE_S
    assert (tmp_path / "mine" / "lock").read_text()
    assert owner_of(tmp_path, "mine", url) is None
    with (tmp_path / "mine" / "lock").open() as looked_at:
        fcntl.flock(looked_at, fcntl.LOCK_SH)
        look = threading.Timer(LOOK_S / 4, fcntl.flock, (looked_at, fcntl.LOCK_UN))
        look.start()
        with study_lock(tmp_path / "mine", "mine"):
            look.join()


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


def test_the_work_folder_is_the_users_own(tmp_path: Path) -> None:
    """Whatever the umask, nobody else may enter a study's folder or read its lock; what studies
    share is as open as the folder that it is in."""
    tmp_path.chmod(0o770)
    before = os.umask(0)
    try:
        with study_lock(tmp_path / ".sweep" / "s", "mine"), store_lock(tmp_path / ".sweep"):
            modes = {p.name: p.stat().st_mode & 0o777 for p in tmp_path.rglob("*")}
    finally:
        os.umask(before)
    assert modes == {".sweep": 0o770, "s": 0o700, "lock": 0o600, "stores.lock": 0o660}


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


# Files that are removed under a search


@pytest.mark.parametrize("how", ["removed", "replaced", "moved", "log", "folder"])
def test_a_store_that_is_removed_is_noticed(tmp_path: Path, how: str) -> None:
    """The check is silent while all is there, and names what was removed or replaced."""
    file, folder = tmp_path / "optuna.db", tmp_path / "work" / "mine"
    folder.mkdir(parents=True)
    url = f"sqlite:///{file}"
    ledger, _ = create_study(url, "mine", "maximize")
    held = (folder / "lock").open("w")
    check = presence(tmp_path / "work", "mine", url, "http://localhost:5000")
    ledger.settle(False)
    check()
    log = file.with_name("optuna.db-wal")
    if how == "log":
        log.unlink()
    elif how == "folder":
        shutil.rmtree(folder)
        folder.mkdir()
    elif how == "moved":
        file.rename(tmp_path / "backup.db")
    else:
        copy = file.read_bytes()
        file.unlink()
        if how == "replaced":
            file.write_bytes(copy)
    named = {"log": log, "folder": folder / "lock"}.get(how, file)
    with pytest.raises(StoreError, match=f"{re.escape(str(named))} was removed or replaced while"):
        check()
    ledger.close()
    held.close()


@pytest.mark.usefixtures("ready_store")
@pytest.mark.parametrize("name", ["mlruns/optuna.db", "mlflow.db", "mlruns/.sweep/s", "mlruns"])
def test_a_search_whose_store_is_removed_says_so(call: Call, name: str) -> None:
    """`sweep run` ends with exit code 4 and one line, not as if all were well."""

    class Remover(RecordingListener):
        """Removes the file, or folder, at the third trial's end."""

        def write(self, records: Sequence[Record]) -> None:
            super().write(records)
            if sum(isinstance(r, TrialFinished) for r in self.records) >= 3:
                path = Path(name)
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    with pytest.raises(StoreError, match="was removed or replaced while the search ran"):
        library.run(
            study="s", trials=4, epochs=1, space="mlp_small", listeners=[Remover()], **INLINE
        )
