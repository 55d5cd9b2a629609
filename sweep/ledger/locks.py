"""One driver at a time: the locks of a study and of the folder's stores."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sweep.databases import postgres, sqlite
from sweep.errors import DiskError, StoreError, StudyLockedError
from sweep.files.trial_folder import make_private_folder

PRIVATE = 0o600
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""Changes with each start of the system (Linux; elsewhere it is not there)."""
OPEN_FILES = Path("/proc/self/fd")
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@contextlib.contextmanager
def owned_study(work_dir: Path, study: str, storage: str) -> Iterator[Callable[[], None]]:
    """Own the study while the block runs, in its work folder and in its storage.

    Drivers that share a storage need not share a work folder: so an SQLite file has a lock beside
    it (in the default layout the same), PostgreSQL one inside. Yields what to call from time to
    time: it raises where a lost connection gave PostgreSQL's lock to another driver.

    Raises StudyLockedError that names a live owner, DiskError, StoreError.
    """
    with contextlib.ExitStack() as stack:
        for folder in {work_dir.resolve(), lock_folder(work_dir, storage).resolve()}:
            stack.enter_context(study_lock(folder / study, study))
        if not postgres.is_postgres(storage):
            yield lambda: None
            return
        from sweep.ledger.storage import in_one_line  # loads Optuna

        with in_one_line(storage, "opened", "Check --storage"):
            claim = postgres.StudyClaim(storage, study)
        stack.callback(claim.release)

        def confirm() -> None:
            with in_one_line(storage):
                claim.renew()

        yield confirm


def presence(work_dir: Path, study: str, *stores: str) -> Callable[[], None]:
    """A check that a study's folder and the SQLite files of its stores are still there.

    SQLite goes on writing to a file that was removed or replaced, and all of it is lost. The
    check raises StoreError; it costs a look at each name, and at the open files of the process.
    """
    paths = [path for path in map(sqlite.path_of, stores) if path is not None]
    # The folder by its lock, which is open: the number of a removed one may be given again.
    lock = (work_dir / study / "lock").absolute()
    known = {path: _identity(path) for path in [*paths, lock]}

    def check() -> None:
        gone = [path for path, was in known.items() if was and _identity(path) != was]
        gone += [] if gone else _unlinked_logs(paths)
        if gone:
            raise StoreError(
                f"{gone[0]} was removed or replaced while the search ran: what was recorded since "
                "then may be lost. Put it back from a copy where there is one, then run the same "
                "command again"
            )

    return check


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _unlinked_logs(paths: Sequence[Path]) -> list[Path]:
    """Write-ahead logs that this process has open and somebody removed (Linux; elsewhere none)."""
    logs = [Path(f"{os.path.realpath(path)}-wal") for path in paths]
    with contextlib.suppress(OSError):
        for entry in OPEN_FILES.iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                name = str(entry.readlink()).removesuffix(" (deleted)")
                if (log := Path(name)) in logs and _identity(log) != _identity(entry):
                    return [log]
    return []


def lock_folder(work_dir: Path, storage: str) -> Path:
    """Where all who use an SQLite storage meet; `work_dir` for other storages."""
    path = sqlite.path_of(storage)
    return work_dir if path is None else path.parent / ".sweep"


@contextlib.contextmanager
def study_lock(study_dir: Path, study: str) -> Iterator[None]:
    """Own the study's work folder while the block runs.

    The kernel lets go of the lock when the owner dies, however it dies; the file's text only
    says who it is. Raises StudyLockedError that names a live owner.
    """
    path = study_dir / "lock"
    with _open(path) as descriptor:
        try:
            _lock(descriptor, path, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StudyLockedError.by(study, *_owner(path)) from None
        owner = {
            "pid": os.getpid(), "host": socket.gethostname(), "boot": _boot_id(),
            "since": time.time(),
        }  # fmt: skip
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(owner).encode(), 0)
        except OSError as error:
            raise DiskError(f"{path} cannot be written: {error.strerror}") from error
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # the text only says who it was
                os.ftruncate(descriptor, 0)


@contextlib.contextmanager
def store_lock(folder: Path) -> Iterator[None]:
    """Wait for and hold the right to create or migrate the stores of this folder.

    Several processes that touch a fresh MLflow or Optuna sqlite file at once break it.
    """
    path = folder / "stores.lock"
    with _open(path, shared=True) as descriptor:
        _lock(descriptor, path, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _open(path: Path, *, shared: bool = False) -> Iterator[int]:
    """The lock's file, made where it is missing; `shared`: for all who may write in its folder."""
    try:
        make_private_folder(path.parent)
        is_new = not path.exists()
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, PRIVATE)
    except OSError as error:
        raise DiskError(
            f"{path} cannot be written: {error.strerror}. Choose another folder with --work-dir"
        ) from error
    try:
        if shared and is_new:
            with contextlib.suppress(PermissionError):  # another user was faster
                os.fchmod(descriptor, path.parent.stat().st_mode & 0o666)
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path, how: int) -> None:
    try:
        fcntl.flock(descriptor, how)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise DiskError(
            f"{path} cannot be locked: {error.strerror}. Its disk has no locks, which keep a "
            "second `sweep run` out: choose a folder on another with --work-dir"
        ) from error


def _owner(path: Path) -> tuple[str, float | None]:
    """Who holds the lock and since when (Unix time), as far as the file says what is so.

    The text may be of an earlier owner, where the present one had no time to write yet.
    """
    try:
        owner = json.loads(path.read_text())
        who = f"process {int(owner['pid'])} on {owner['host']}"
        is_here = owner["host"] == socket.gethostname()
        if is_here and (owner["boot"] != _boot_id() or not _is_alive(owner["pid"])):
            return "", None
        return who, float(owner["since"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _boot_id() -> str:
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""
