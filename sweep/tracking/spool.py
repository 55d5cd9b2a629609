"""Records that wait for MLflow: a file that outlives the driver, or memory without one.

    spool.jsonl    the records, one checksummed line each (codec.py), only ever appended to
    spool.cursor   how far they are delivered; may lag behind, delivery stands repetition

Line 1 is a mapping with a random id. The cursor names that id too, so a cursor that belongs to a
file of an earlier time counts for nothing. Both files are the user's own (0600). Who opens a
spool holds the study's lock: two writers would mix their lines.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from sweep.errors import DiskError
from sweep.tracking.codec import DamagedLineError, Entry, from_line, to_line
from sweep.trial import EpochReport, StudyFinished, TrialFinished
from sweep.trial_files import make_private_folder

SPOOL = "spool.jsonl"

PRIVATE = 0o600

_CHUNK = 1 << 18
"""Bytes that are read at a time."""

_REWRITE_AT = 1 << 20
"""Delivered bytes are thrown away once they are this many, and at the end."""

_N_IN_MEMORY = 50_000
"""Records that are kept where the disk takes none (some 50 MB)."""

_log = logging.getLogger("sweep.tracking")


class Backlog(Protocol):
    """Records on their way to MLflow, in order. One thread appends, another does the rest."""

    def append(self, entries: Sequence[Entry]) -> None:
        """Take records. Never raises for want of space: what is dropped is counted."""
        ...

    def take(self) -> list[Entry]:
        """The next records; empty where there are none."""
        ...

    def settle(self) -> None:
        """All that was taken is delivered."""
        ...

    def close(self) -> int:
        """No more records; returns how many of those not settled found no place to wait in."""
        ...

    @property
    def n_untaken(self) -> int:
        """Records that were not taken yet."""
        ...

    @property
    def n_dropped(self) -> int:
        """Records that there was no room for, or that were found damaged."""
        ...

    @property
    def file(self) -> Path | None:
        """Where undelivered records wait for the next time, or None: nowhere."""
        ...


class MemoryBacklog:
    """Records that live as long as the process."""

    file = None
    n_dropped = 0

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque()

    def append(self, entries: Sequence[Entry]) -> None:
        """Take records."""
        self._entries.extend(entries)

    def take(self) -> list[Entry]:
        """All records."""
        return [self._entries.popleft() for _ in range(len(self._entries))]

    def settle(self) -> None:
        """Nothing to do: what was taken is gone."""

    def close(self) -> int:
        """Nothing is lost by it: who took records knows what became of them."""
        return 0

    @property
    def n_untaken(self) -> int:
        """Records that were not taken yet."""
        return len(self._entries)


class Spool:
    """Records in a file.

    Args:
        folder: The study's work folder; made where it is missing.
        limit_bytes: Beyond this size epoch reports are dropped, beyond twice this everything.
        name: The file's name, which ends in .jsonl.

    Raises:
        DiskError: The file cannot be made or opened.
    """

    def __init__(self, folder: Path, limit_bytes: int = 256 << 20, name: str = SPOOL) -> None:
        self.file: Path | None = folder / name
        self._path, self._limit = folder / name, limit_bytes
        self._cursor = self._path.with_suffix(".cursor")
        self._lock = threading.Lock()
        self._memory: list[Entry] = []
        self._n_memory_taken = self.n_dropped = self.n_untaken = 0
        self._is_closed = self._has_warned = False
        self._id, self._read, self._delivered, self._end = "", 0, 0, 0
        try:
            make_private_folder(folder)
            self._descriptor = _open(self._path)
            self._recover()
        except OSError as error:
            raise DiskError(f"{self._path} cannot be written: {error.strerror}") from error

    def append(self, entries: Sequence[Entry]) -> None:
        """Write records at the end: one call of the system, one flush to the disk for results."""
        with self._lock:
            kept = [] if self._is_closed else self._within_limit(entries)
            self.n_dropped += len(entries) - len(kept)
            self.n_untaken += len(kept)
            if not kept:
                return
            if not self._memory:  # else the order would be lost
                try:
                    self._write(b"".join(map(to_line, kept)))
                except OSError as error:
                    self._warn("the spool cannot be written, records stay in memory: %s", error)
                else:
                    if any(isinstance(e, TrialFinished | StudyFinished) for e in kept):
                        with contextlib.suppress(OSError):
                            os.fsync(self._descriptor)
                    return
            self._memory.extend(kept)
            self._bound_memory()

    def take(self) -> list[Entry]:
        """The next records: those of the file first. Raises OSError where it cannot be read."""
        with self._lock:
            if self._is_closed:
                return []
            if self._read == self._end:
                taken = self._memory[self._n_memory_taken :]
                self._n_memory_taken = len(self._memory)
                self.n_untaken = 0
                return taken
            data = self._next_lines()
            lines = data[:-1].split(b"\n")
            self._read += len(data)
            self.n_untaken -= len(lines)
        return [entry for line in lines for entry in self._parse(line)]

    def settle(self) -> None:
        """All that was taken is delivered: remember it, and make the file smaller."""
        with self._lock:
            if self._is_closed or (self._delivered == self._read and not self._n_memory_taken):
                return
            del self._memory[: self._n_memory_taken]
            self._n_memory_taken = 0
            self._delivered = self._read
            try:
                if self._delivered >= _REWRITE_AT:
                    self._rewrite()
                self._save_cursor()
            except OSError as error:  # the cursor may lag
                self._warn("the spool's cursor cannot be written: %s", error)

    def close(self) -> int:
        """Move to the file what is only in memory; returns how many records found no place."""
        with self._lock:
            if self._is_closed:
                return 0
            self._is_closed = True
            n_lost = 0
            try:
                self._write(b"".join(map(to_line, self._memory)))
            except OSError:
                n_lost = len(self._memory)
            if self._delivered == self._end:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._descriptor, 0)
                    self._cursor.unlink(missing_ok=True)
            else:
                with contextlib.suppress(OSError):
                    os.fsync(self._descriptor)
            os.close(self._descriptor)
            self.n_untaken = 0
            return n_lost

    def _recover(self) -> None:
        """Drop a torn last line, find what is not delivered yet."""
        self._end = os.fstat(self._descriptor).st_size
        whole = _end_of_last_line(self._descriptor, self._end)
        if whole < self._end:
            _log.warning("the last record in %s was cut off: dropped", self._path)
            os.ftruncate(self._descriptor, whole)
            self._end = whole
        if self._end == 0:
            self._id, header = _header()
            self._write(header)
            self._read = self._delivered = self._end
            return
        first = os.pread(self._descriptor, 200, 0).split(b"\n", 1)[0]
        with contextlib.suppress(DamagedLineError, KeyError, TypeError):
            self._id = from_line(first)["spool"]
            self._read = len(first) + 1
        self._read = self._delivered = max(self._read, self._saved_cursor())
        self.n_untaken = _count_lines(self._descriptor, self._read, self._end)

    def _saved_cursor(self) -> int:
        try:
            saved = json.loads(self._cursor.read_bytes())
            offset = int(saved["delivered"]) if saved["spool"] == self._id else 0
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        # A cursor from before a power cut may point behind what reached the disk.
        return offset if 0 <= offset <= self._end else 0

    def _save_cursor(self) -> None:
        place = {"spool": self._id, "delivered": self._delivered}
        write_aside(self._cursor, json.dumps(place).encode())

    def _write(self, data: bytes) -> None:
        """Append all of `data` or, where the disk is full, nothing of it."""
        if not data:
            return
        try:
            n_written = os.write(self._descriptor, data)
        except OSError:
            n_written = 0
            raise
        finally:
            if n_written < len(data):
                os.ftruncate(self._descriptor, self._end)
        if n_written < len(data):
            raise OSError("only a part was written: the disk is full")
        self._end += len(data)

    def _rewrite(self) -> None:
        """A new file with what is not delivered, in place of the old one."""
        size = self._end - self._delivered
        if size > _REWRITE_AT:
            return
        new_id, header = _header()
        tail = os.pread(self._descriptor, size, self._delivered)
        write_aside(self._path, header + tail, is_durable=True)
        new = _open(self._path)
        os.close(self._descriptor)
        self._descriptor, self._id = new, new_id
        self._delivered = self._read = len(header)
        self._end = len(header) + len(tail)

    def _next_lines(self) -> bytes:
        """Whole lines from where reading stopped, at least one."""
        n_bytes = _CHUNK
        while True:
            data = os.pread(self._descriptor, min(n_bytes, self._end - self._read), self._read)
            n_whole = data.rfind(b"\n") + 1
            if n_whole:
                return data[:n_whole]
            if not data or n_bytes > self._end - self._read:
                raise OSError(f"{self._path} has become shorter")
            n_bytes *= 2

    def _parse(self, line: bytes) -> list[Entry]:
        try:
            entry = from_line(line)
        except DamagedLineError as error:
            _log.warning("a damaged record in %s is skipped: %s", self._path, error)
            with self._lock:
                self.n_dropped += 1
            return []
        return [] if isinstance(entry, Mapping) else [entry]

    def _within_limit(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        if self._end < self._limit:
            return entries
        self._warn("%s is full (%d MB): epoch reports are dropped", self._path, self._limit >> 20)
        if self._end >= 2 * self._limit:
            return []
        return [e for e in entries if not isinstance(e, EpochReport)]

    def _bound_memory(self) -> None:
        if len(self._memory) <= _N_IN_MEMORY:
            return
        untaken = self._memory[self._n_memory_taken :]
        kept = [e for e in untaken if not isinstance(e, EpochReport)][:_N_IN_MEMORY]
        self.n_dropped += len(untaken) - len(kept)
        self.n_untaken -= len(untaken) - len(kept)
        self._memory[self._n_memory_taken :] = kept

    def _warn(self, message: str, *values: Any) -> None:
        """Once: a full disk would fill the log, too."""
        if not self._has_warned:
            self._has_warned = True
            _log.warning(message, *values)


def write_aside(path: Path, data: bytes, *, is_durable: bool = False) -> None:
    """Write `data` to a new file of the user's own and name it `path`: all of it or nothing."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, PRIVATE)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if is_durable:
                os.fsync(descriptor)
        aside.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, PRIVATE)
    os.fchmod(descriptor, PRIVATE)
    return descriptor


def _header() -> tuple[str, bytes]:
    """A new id, and the line that says it."""
    new_id = secrets.token_hex(8)
    return new_id, to_line({"spool": new_id, "version": 1})


def _end_of_last_line(descriptor: int, size: int) -> int:
    """Where the last whole line of a file of `size` bytes ends."""
    end = size
    while end > 0:
        begin = max(0, end - _CHUNK)
        found = os.pread(descriptor, end - begin, begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0


def _count_lines(descriptor: int, begin: int, end: int) -> int:
    n_lines = 0
    while begin < end and (data := os.pread(descriptor, min(_CHUNK, end - begin), begin)):
        n_lines += data.count(b"\n")
        begin += len(data)
    return n_lines
