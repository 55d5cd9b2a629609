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
from dataclasses import dataclass
from pathlib import Path

from sweep.databases import postgres, sqlite
from sweep.errors import DiskError, StoreError, StudyLockedError
from sweep.files.trial_files import make_private_folder

PRIVATE = 0o600
OPEN_FILES = Path("/proc/self/fd")
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
LOOK_S = 0.02
"""Longer than `owner_of` holds a free lock."""


@dataclass(frozen=True)
class Owner:
    """The live process that runs a study."""

    who: str
    """Process and host; "": they are not known."""
    since_s: float | None = None
    """Unix time of its start."""

    def __str__(self) -> str:
        """Process and host."""
        return self.who or "another process"


@contextlib.contextmanager
def owned_study(work_dir: Path, study: str, storage: str) -> Iterator[Callable[[], None]]:
    """Own the study within the block, in its work folder and in its storage.

    Drivers may share a storage without sharing a work folder, so an SQLite file has a lock beside
    it (by default the same one) and PostgreSQL a lock inside. Yields a function to call from time
    to time: it raises if a lost connection gave PostgreSQL's lock to another driver.

    Raises StudyLockedError with the live owner, DiskError, StoreError.
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


def owner_of(work_dir: Path, study: str, storage: str) -> Owner | None:
    """Who runs the study, by the locks that `owned_study` takes; None: nobody. Raises StoreError.

    An advisory lock tells nothing of itself, so a free one is held for a moment.
    """
    for folder in {work_dir.resolve(), lock_folder(work_dir, storage).resolve()}:
        if (owner := _live_owner(folder / study / "lock")) is not None:
            return owner
    if not postgres.is_postgres(storage):
        return None
    from sweep.ledger.storage import in_one_line  # loads Optuna

    with in_one_line(storage):
        found = postgres.owner_of(storage, study)
    return None if found is None else Owner(*found)


def _live_owner(path: Path) -> Owner | None:
    """The owner of a lock's file, unless it has ended; a regular end empties the file."""
    try:
        if not path.read_text():
            return None
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:
        return _of_another_user(path)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return Owner(*_owner(path))
    except OSError:
        pass
    finally:
        os.close(descriptor)
    return None


def _of_another_user(path: Path) -> Owner | None:
    """The owner of a lock that only another user may read: held, as far as its length tells."""
    with contextlib.suppress(OSError):
        if path.stat().st_size:
            return Owner("another user's process")
    return None


def presence(work_dir: Path, study: str, *stores: str) -> Callable[[], None]:
    """A check that a study's folder and the SQLite files of its stores still exist.

    SQLite continues to write to a removed file, and all that is lost. The check raises StoreError;
    it costs a `stat` of each name and a look at the open files of the process.
    """
    paths = [path for path in map(sqlite.path_of, stores) if path is not None]
    # The folder by its open lock: a new folder may get the inode of a removed one.
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
    """Removed write-ahead logs that this process has open (Linux only)."""
    logs = [Path(f"{os.path.realpath(path)}-wal") for path in paths]
    with contextlib.suppress(OSError):
        for entry in OPEN_FILES.iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                name = str(entry.readlink()).removesuffix(" (deleted)")
                if (log := Path(name)) in logs and _identity(log) != _identity(entry):
                    return [log]
    return []


def lock_folder(work_dir: Path, storage: str) -> Path:
    """The folder of locks beside an SQLite storage; `work_dir` for other storages."""
    path = sqlite.path_of(storage)
    return work_dir if path is None else path.parent / ".sweep"


@contextlib.contextmanager
def study_lock(study_dir: Path, study: str) -> Iterator[None]:
    """Own the study's work folder within the block.

    The kernel releases the lock when the owner dies; the file's text only names the owner. Raises
    StudyLockedError with the live owner.
    """
    path = study_dir / "lock"
    with _open(path) as descriptor:
        try:
            _take(descriptor, path)
        except BlockingIOError:
            raise StudyLockedError.by(study, *_owner(path)) from None
        owner = {"who": f"process {os.getpid()} on {socket.gethostname()}", "since": time.time()}
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(owner).encode(), 0)
        except OSError as error:
            raise DiskError(f"{path} cannot be written: {error.strerror}") from error
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)


@contextlib.contextmanager
def store_lock(folder: Path) -> Iterator[None]:
    """Wait for the lock of this folder's stores and hold it within the block.

    Two processes that create or migrate an SQLite file of MLflow or Optuna at once break it.
    """
    path = folder / "stores.lock"
    with _open(path, shared=True) as descriptor:
        _lock(descriptor, path, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _open(path: Path, *, shared: bool = False) -> Iterator[int]:
    """The lock's file, created if missing; `shared`: with the folder's permissions."""
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


def _take(descriptor: int, path: Path) -> None:
    """Lock the file for one owner. Raises BlockingIOError if another has it."""
    try:
        _lock(descriptor, path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # perhaps `owner_of` looks at it just now
        time.sleep(LOOK_S)
        _lock(descriptor, path, fcntl.LOCK_EX | fcntl.LOCK_NB)


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
    """The owner of a lock and its start (Unix time), if it has written them."""
    try:
        owner = json.loads(path.read_text())
        return str(owner["who"]), float(owner["since"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", None
