"""Records that MLflow refused again and again: set aside, so that the others pass.

    refused.jsonl    the records, as a spool has them (spool.py), those of a trial in order

A trial whose records are here gets its later ones here too. The next delivery of what earlier
runs left (`deliver_pending`: at the start of a search, by `sweep doctor --fix`) tries them again.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

from sweep.tracking.codec import DamagedLineError, Entry, from_line
from sweep.tracking.spool import SPOOL, Spool
from sweep.trial import CheckpointDropped, EpochReport, StudyInfo, TrialFinished, TrialStarted

REFUSED = "refused.jsonl"
STUDY = -1
"""Stands for the study's own records where a trial's number is asked for."""


def number_of(entry: Entry) -> int:
    """The trial that a record is of, or STUDY."""
    if isinstance(entry, EpochReport | TrialStarted | TrialFinished | CheckpointDropped):
        return entry.number
    return STUDY


class Aside:
    """What is set aside in a study's folder; the file exists only while there is something.

    Args:
        folder: The study's work folder, whose owner holds the study's lock.
        limit_bytes: As for Spool.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.file = folder / REFUSED
        self._folder, self._limit = folder, limit_bytes
        self._spool: Spool | None = None
        self.before: list[Entry] = []
        """What was here when this was opened and is not delivered."""
        if self.file.is_file() and self.file.stat().st_size:
            spool = self._open()
            while spool.n_untaken:
                self.before += spool.take()
        self.numbers = {number_of(entry) for entry in self.before}
        """Trials whose records have to go here."""
        self._is_retried = False

    @property
    def n_dropped(self) -> int:
        """Records that there was no room for, or that were found damaged."""
        return self._spool.n_dropped if self._spool else 0

    def retry(self) -> list[Entry]:
        """All that is here, to be delivered now; what is refused again comes back with `add`."""
        self._is_retried, self.numbers = True, set()
        return list(self.before)

    def add(self, number: int, entries: Sequence[Entry]) -> None:
        """Keep records of a trial."""
        self._open().append(entries)
        self.numbers.add(number)

    def settle(self) -> None:
        """Forget what `retry` gave out: it is delivered, or was added again."""
        if self._is_retried and self.before:
            self.before = []
            self._open().settle()

    def close(self) -> int:
        """Let go of the file, and of an empty one for good; returns how many records wait."""
        if self._spool is None:
            return 0
        n_waiting = len(self.before) + self._spool.n_untaken
        n_homeless = self._spool.close()
        self._spool.n_dropped += n_homeless
        with contextlib.suppress(OSError):
            if not self.file.stat().st_size:
                self.file.unlink()
        return n_waiting - n_homeless

    def _open(self) -> Spool:
        if self._spool is None:
            self._spool = Spool(self._folder, self._limit, REFUSED)
        return self._spool


def waiting(study_dir: Path) -> dict[Path, list[Entry]]:
    """What waits for MLflow in a study's folder, by file; reads only, beside a live writer too."""
    found = {path: _left_in(path) for path in (study_dir / REFUSED, study_dir / SPOOL)}
    return {path: entries for path, entries in found.items() if entries}


def waiting_numbers(study_dir: Path) -> set[int]:
    """Trials (and STUDY) with records that wait for MLflow."""
    return {number_of(e) for entries in waiting(study_dir).values() for e in entries}


def _left_in(path: Path) -> list[Entry]:
    """The records of a spool's file behind its cursor."""
    try:
        data = path.read_bytes()
    except OSError:
        return []
    begin = 0
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        cursor = json.loads(path.with_suffix(".cursor").read_bytes())
        if from_line(data.split(b"\n", 1)[0])["spool"] == cursor["spool"]:
            begin = int(cursor["delivered"])
    entries = []
    for line in data[begin:].split(b"\n"):
        with contextlib.suppress(DamagedLineError):
            entry = from_line(line)
            if not isinstance(entry, dict) and not isinstance(entry, StudyInfo):
                entries.append(entry)
    return entries
