"""One driver at a time: the locks of a study and of the folder's stores."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from sweep.errors import DiskError, StudyLockedError

PRIVATE = 0o600


@contextlib.contextmanager
def study_lock(study_dir: Path, study: str) -> Iterator[None]:
    """Own the study while the block runs.

    The kernel lets go of the lock when the owner dies, however it dies; the file's text only
    says who it is. Raises StudyLockedError that names a live owner.
    """
    with _open(study_dir / "lock") as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StudyLockedError(_owner(study_dir / "lock", study)) from None
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(owner).encode(), 0)
        try:
            yield
        finally:
            os.ftruncate(descriptor, 0)


@contextlib.contextmanager
def store_lock(work_dir: Path) -> Iterator[None]:
    """Wait for and hold the right to create or migrate this folder's stores.

    Several processes that touch a fresh MLflow or Optuna sqlite file at once break it.
    """
    with _open(work_dir / "stores.lock") as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _open(path: Path) -> Iterator[int]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
    except OSError as error:
        raise DiskError(
            f"{path} cannot be written: {error.strerror}. Choose another folder with --work-dir"
        ) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _owner(path: Path, study: str) -> str:
    try:
        owner = json.loads(path.read_text())
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(owner["since"]))
        who = f"process {owner['pid']} on {owner['host']} since {since}"
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process"
    return f"study {study!r} is being run by {who}: wait for it, or choose --study NAME"
