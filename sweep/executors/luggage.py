"""What of a study's folder travels with a message between machines: files, as far as they changed.

A worker on another machine has a folder of its own for the study, with the same names in it. What
changed there since the last message goes along with the next one and is put in the same place of
the driver's folder, before the driver hears the message; a trial's files go the other way as it is
handed out. So nobody opens another machine's path.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sweep.errors import StoreError
from sweep.files.outcomes import outcomes_path
from sweep.files.trial_files import BROKEN_OFF, RANKS, STEPS, TrialFiles, replace_file

PIECE = 2**24
"""Bytes of a file that travel at a time: larger files never are in memory as a whole."""


@dataclass(frozen=True)
class Parcel:
    """A file, or what was added to its end, or that it is gone."""

    name: str
    """Path below the study's folder."""
    pieces: Sequence[Any] | None
    """Its content in pieces, as `hold` of its sender made them; None: the file is gone."""
    start: int = 0
    """Where the content begins in the file."""
    is_log: bool = False
    """It is added to a file that others write, too."""
    mtime_ns: int = 0
    """Unix time of its last change, by the sender's clock: that of the trial's reports."""


class Luggage:
    """The files below a study's folder that have changed since they were last packed.

    Args:
        folder: The study's folder.
        logs: Names of logs: what was added travels, and is added to the receiver's.
        hold: Makes of a large piece what travels in its place.
    """

    def __init__(
        self, folder: str | Path, logs: Sequence[str] = (), hold: Callable[[bytes], Any] = bytes
    ) -> None:
        self._folder, self._logs, self._hold = Path(folder), logs, hold
        self._known: dict[str, tuple[int, int, int]] = {}
        """Name -> size, time of change and number of the file, as packed or unpacked last."""

    def packed(self, numbers: Iterable[int]) -> list[Parcel]:
        """What is new among the files of these trials, and in what grows."""
        found = {name: self._folder / name for name in self._logs}
        for number in numbers:
            found |= self._files_of(number)
        parcels = [self._parcel(name, path) for name, path in found.items()]
        below = tuple(self._prefix(number) for number in numbers)
        gone = [name for name in self._known if name.startswith(below) and name not in found]
        for name in gone:
            del self._known[name]
        return [*(Parcel(name, None) for name in gone), *(p for p in parcels if p is not None)]

    def unpack(self, parcels: Iterable[Parcel], fetch: Callable[[Any], bytes] = bytes) -> None:
        """Write files where they belong. Raises DiskError; StoreError for a name elsewhere."""
        for parcel in parcels:
            where = PurePosixPath(parcel.name)
            if where.is_absolute() or ".." in where.parts:
                raise StoreError(f"a worker sent a file called {parcel.name}")
            path = self._folder / where
            if parcel.pieces is None:
                _remove(path, self._folder)
                self._known.pop(parcel.name, None)
                continue
            pieces = (fetch(piece) for piece in parcel.pieces)
            if parcel.is_log:
                _add(path, pieces)
                continue
            if parcel.start:
                _write_at(path, parcel.start, pieces)
            else:
                replace_file(path, pieces)
            os.utime(path, ns=(parcel.mtime_ns, parcel.mtime_ns))
            self._known[parcel.name] = _look_of(path)

    def forget(self, number: int) -> None:
        """The trial's files here are nobody's any more: remove them."""
        for name, path in self._files_of(number).items():
            path.unlink(missing_ok=True)
            self._known.pop(name, None)

    def _prefix(self, number: int) -> str:
        return TrialFiles("", number).folder.as_posix() + "/"

    def _files_of(self, number: int) -> dict[str, Path]:
        """Relative name -> path; writes that have not ended, or were broken off, are left out, and
        so are pipes, links and what ranks have for themselves."""
        folder, outcomes = TrialFiles(self._folder, number).folder, outcomes_path("", number)
        found = {
            path.relative_to(self._folder).as_posix(): path
            for path in (Path(top, name) for top, _, names in os.walk(folder) for name in names)
            if not BROKEN_OFF.fullmatch(path.name) and _is_plain(path)
            and path.relative_to(folder).parts[0] != RANKS
        }  # fmt: skip
        if _is_plain(self._folder / outcomes):
            found[outcomes.as_posix()] = self._folder / outcomes
        return found

    def _parcel(self, name: str, path: Path) -> Parcel | None:
        try:
            look = _look_of(path)
            before = self._known.get(name)
            if look == before:
                return None
            is_growing = name in self._logs or name.endswith(STEPS)
            has_grown = before is not None and before[2] == look[2] and before[0] < look[0]
            start = before[0] if before and is_growing and has_grown else 0
            pieces = [self._held(piece) for piece in _pieces(path, start, look[0])]
        except OSError:  # it went meanwhile, or is not ours to read
            return None
        self._known[name] = look
        return Parcel(name, pieces, start, name in self._logs, look[1])

    def _held(self, piece: bytes) -> Any:
        return self._hold(piece) if len(piece) == PIECE else piece


def _is_plain(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _remove(path: Path, below: Path) -> None:
    """Remove a file and the folders below `below` that it leaves empty."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
        for folder in path.parents:
            if folder == below:
                break
            folder.rmdir()


def _look_of(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


def _pieces(path: Path, start: int, end: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        for at in range(start, end, PIECE):
            yield file.read(min(PIECE, end - at))


def _add(path: Path, pieces: Iterable[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.writelines(pieces)


def _write_at(path: Path, start: int, pieces: Iterable[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("r+b" if path.exists() else "wb") as file:
        file.seek(start)
        for piece in pieces:
            file.write(piece)
