"""What of a study's folder travels with a message between machines: files, as far as they changed.

A worker on another machine has a folder of its own for the study, with the same names in it. What
changed there since the last message goes along with the next one and is put in the same place of
the driver's folder, before the driver hears the message; a trial's files go the other way as it is
handed out. So nobody opens another machine's path.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sweep.errors import StoreError
from sweep.files.trial_files import STEPS, TrialFiles, replace_file

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


class Luggage:
    """The files below a study's folder that have changed since they were last packed.

    Args:
        folder: The study's folder.
        growing: Names that only grow: their new ends travel. Those of trials' STEPS are known.
        hold: Makes of a large piece what travels in its place.
    """

    def __init__(
        self, folder: str | Path, growing: Sequence[str] = (), hold: Callable[[bytes], Any] = bytes
    ) -> None:
        self._folder, self._growing, self._hold = Path(folder), growing, hold
        self._known: dict[str, tuple[int, int, int]] = {}
        """Name -> size, time of change and number of the file, as packed or unpacked last."""

    def packed(self, numbers: Iterable[int]) -> list[Parcel]:
        """What is new among the files of these trials, and in what grows."""
        found = {name: self._folder / name for name in self._growing}
        for number in numbers:
            found |= self._files_of(number)
        parcels = [self._parcel(name, path) for name, path in found.items()]
        below = tuple(self._prefix(number) for number in numbers)
        gone = [name for name in self._known if name.startswith(below) and name not in found]
        for name in gone:
            del self._known[name]
        return [*(p for p in parcels if p is not None), *(Parcel(name, None) for name in gone)]

    def unpack(self, parcels: Iterable[Parcel], fetch: Callable[[Any], bytes] = bytes) -> None:
        """Write files where they belong. Raises DiskError; StoreError for a name elsewhere."""
        for parcel in parcels:
            where = PurePosixPath(parcel.name)
            if where.is_absolute() or ".." in where.parts:
                raise StoreError(f"a worker sent a file called {parcel.name}")
            path = self._folder / where
            if parcel.pieces is None:
                path.unlink(missing_ok=True)
                self._known.pop(parcel.name, None)
                continue
            pieces = (fetch(piece) for piece in parcel.pieces)
            if parcel.start:
                _write_at(path, parcel.start, pieces)
            else:
                replace_file(path, pieces)
            self._known[parcel.name] = _look_of(path)

    def forget(self, number: int) -> None:
        """The trial's files here are nobody's any more: remove them."""
        for name, path in self._files_of(number).items():
            path.unlink(missing_ok=True)
            self._known.pop(name, None)

    def _prefix(self, number: int) -> str:
        return TrialFiles("", number).folder.as_posix() + "/"

    def _files_of(self, number: int) -> dict[str, Path]:
        """Relative name -> path; writes that have not ended, or were broken off, are left out."""
        folder = TrialFiles(self._folder, number).folder
        return {
            path.relative_to(self._folder).as_posix(): path
            for path in (Path(top, name) for top, _, names in os.walk(folder) for name in names)
            if not path.name.startswith(".")
        }

    def _parcel(self, name: str, path: Path) -> Parcel | None:
        try:
            look = _look_of(path)
            before = self._known.get(name)
            if look == before:
                return None
            is_growing = name in self._growing or name.endswith(STEPS)
            has_grown = before is not None and before[2] == look[2] and before[0] < look[0]
            start = before[0] if before and is_growing and has_grown else 0
            pieces = [self._held(piece) for piece in _pieces(path, start, look[0])]
        except FileNotFoundError:
            return None
        self._known[name] = look
        return Parcel(name, pieces, start)

    def _held(self, piece: bytes) -> Any:
        return self._hold(piece) if len(piece) == PIECE else piece


def _look_of(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


def _pieces(path: Path, start: int, end: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        for at in range(start, end, PIECE):
            yield file.read(min(PIECE, end - at))


def _write_at(path: Path, start: int, pieces: Iterable[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("r+b" if path.exists() else "wb") as file:
        file.seek(start)
        for piece in pieces:
            file.write(piece)
