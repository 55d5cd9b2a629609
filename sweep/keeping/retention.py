"""Which trials keep their files while a search runs: decided as each trial ends, in O(log n).

Ranks only ever fall: a trial that is not among the best K now never will be. So each is decided
once and nothing is scanned. One that does not make it among the best K of `--keep` hands MLflow
no checkpoint at all; one that another pushes out has its own dropped by a record that comes
behind its own on the way to MLflow (`CheckpointDropped`). `--disk-limit` counts a trial's files
from its end on, not once MLflow has them: what is to stay fits it, however far MLflow is behind.

A trial's folder goes when nothing can need it any more: the ledger has its final state (else a
kill would need its verdict), MLflow has its files or will not get any, and it is not among the
few whose files stay. So the disk holds the files of trials that are kept, that run, and that the
ledger or MLflow have not taken yet.
"""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
import math
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

from sweep.config.settings import RunConfig
from sweep.files.trial_folder import TrialFiles, folder_bytes
from sweep.ledger.trials import LedgerTrial
from sweep.objective import Objective
from sweep.tracking.disposal import DROPPED_TAG
from sweep.trial import CheckpointDropped, Direction, Record, TrialFinished, TrialState, now_ms

KEPT_IN_WORK_DIR = 5
"""Best trials whose files stay in the work folder; MLflow has copies of the others."""


class Retention(Protocol):
    """What the driver asks as trials end."""

    def finish(self, record: TrialFinished) -> tuple[TrialFinished, list[Record]]:
        """The record as it is to be told, and records that have to follow it."""
        ...

    def closed(self, number: int) -> None:
        """The ledger has the trial's final state. Called by the driver's recorder."""
        ...


class KeepEverything:
    """The null Retention."""

    def finish(self, record: TrialFinished) -> tuple[TrialFinished, list[Record]]:
        """The record as it is."""
        return record, []

    def closed(self, number: int) -> None:
        """Nothing goes."""


class KeepBest:
    """Keeps what `--keep` and `--disk-limit` say, and few files in the work folder.

    Three threads call: the driver's `finish`, the ledger's `closed`, the tracker's `stored`. The
    last two remove folders, so that training never waits for that.
    """

    def __init__(self, config: RunConfig) -> None:
        self._direction = config.resolved_direction
        self._is_bounded = config.keep is not None
        self._lock = threading.Lock()
        self._here = TopTrials(min(KEPT_IN_WORK_DIR, config.keep or KEPT_IN_WORK_DIR))
        self._wanted = TopTrials(config.keep)
        self._folders = _Folders(config.study_dir)
        limit = math.inf if config.disk_limit_gb is None else config.disk_limit_gb * 1e9
        self._budget = _Budget(limit)
        self._goodness: dict[int, float | None] = {}
        self._dropped: set[int] = set()

    def recall(
        self, trials: Sequence[LedgerTrial], stored: Mapping[int, int], *, is_delivered: bool
    ) -> None:
        """Take in what earlier runs finished, before the first trial of this one.

        Args:
            trials: The study's.
            stored: Trial number -> bytes of its files in MLflow, where that is known.
            is_delivered: Whether MLflow has the files of all of them.
        """
        with self._lock:
            finished = [t for t in trials if t.state.is_finished]
            for trial in finished:
                goodness = goodness_of(trial.state, trial.value, self._direction)
                self._wanted.add(goodness, trial.number)
                self._here.add(goodness, trial.number)
                if trial.number in stored:
                    self._budget.add(goodness, trial.number, stored[trial.number])
            for number in self._here.numbers:
                self._budget.add_here(number, self._folders.n_bytes(number))
            if is_delivered:
                return
            for trial in finished:
                goodness = goodness_of(trial.state, trial.value, self._direction)
                self._goodness[trial.number] = goodness
                self._folders.hold(trial.number, "MLflow")
                if trial.number not in self._here.numbers:
                    self._folders.leave(trial.number)

    def finish(self, record: TrialFinished) -> tuple[TrialFinished, list[Record]]:
        """The record, without files where they are not wanted, and what has to go for it."""
        number, drops = record.number, list[Record]()
        if not record.state.is_finished:
            return record, drops
        sizes = self._sizes(record) if self._budget.is_bounded else (0, 0)
        with self._lock:
            goodness = goodness_of(record.state, record.value, self._direction)
            self._folders.hold(number, "ledger")
            outdone = self._wanted.add(goodness, number)
            if outdone == number and self._is_bounded:
                record = self._without_files(record)
            elif outdone is not None and outdone != number:
                drops += self._drop(outdone)
            if (outdone := self._here.add(goodness, number)) is not None:
                self._leave(outdone)
            self._count(record, goodness, *sizes)
            for excess in self._budget.excess():
                if excess == number:
                    record = self._without_files(record)
                else:
                    drops += self._drop(excess)
                self._leave(excess)
            if has_files(record):
                self._folders.hold(number, "MLflow")
                self._goodness[number] = goodness
        return record, drops

    def closed(self, number: int) -> None:
        """The ledger has the trial's final state: its folder may go."""
        with self._lock:
            self._folders.release(number, "ledger")
            if number in self._here.numbers:
                self._budget.add_here(number, self._folders.n_bytes(number))
        self._remove_due()

    def stored(self, number: int, n_bytes: int) -> None:
        """MLflow has the trial's files, so many bytes: its folder may go."""
        with self._lock:
            self._folders.release(number, "MLflow")
            goodness = self._goodness.pop(number, None)
            if number not in self._dropped:
                self._budget.add(goodness, number, n_bytes)
        self._remove_due()

    def _sizes(self, record: TrialFinished) -> tuple[int, int]:
        """Bytes that MLflow will take, but for what it adds of its own, and of the folder."""
        is_logged = record.state is TrialState.COMPLETE
        files = [record.checkpoint, record.model_file if is_logged else None]
        return sum(map(_size, files)), self._folders.n_bytes(record.number)

    def _count(
        self, record: TrialFinished, goodness: float | None, n_stored: int, n_here: int
    ) -> None:
        """Trials may end faster than MLflow takes their files."""
        if has_files(record):
            self._budget.add(goodness, record.number, n_stored)
        if record.number in self._here.numbers:
            self._budget.add_here(record.number, n_here)

    def _without_files(self, record: TrialFinished) -> TrialFinished:
        if not has_files(record):
            return record
        self._dropped.add(record.number)
        self._budget.remove(record.number)
        tags = {**record.tags, DROPPED_TAG: "true"}
        return dataclasses.replace(record, checkpoint=None, model_file=None, tags=tags)

    def _drop(self, number: int) -> list[Record]:
        if number in self._dropped:
            return []
        self._dropped.add(number)
        self._budget.remove(number)
        return [CheckpointDropped(number, now_ms())]

    def _leave(self, number: int) -> None:
        self._here.discard(number)
        self._budget.add_here(number, 0)
        self._folders.leave(number)

    def _remove_due(self) -> None:
        with self._lock:
            due = self._folders.take_due()
        for folder in due:
            shutil.rmtree(folder, ignore_errors=True)


def goodness_of(state: TrialState, value: float | None, direction: Direction) -> float | None:
    """A number that is larger for a better trial; None: no candidate, its files go first."""
    if state is not TrialState.COMPLETE:
        return None
    goodness = Objective("", direction).goodness(value)
    return goodness if math.isfinite(goodness) else None


def _size(file: str | None) -> int:
    """Bytes of a file; 0 where there is none."""
    with contextlib.suppress(OSError):
        return Path(file).stat().st_size if file is not None else 0
    return 0


def has_files(record: TrialFinished) -> bool:
    """Whether the tracker has files to store for it."""
    return record.checkpoint is not None or record.model_file is not None


class TopTrials:
    """The best `n` trials of those added (None: all of them)."""

    def __init__(self, n: int | None) -> None:
        self._n = n
        self._heap: list[tuple[float, int]] = []
        self.numbers: set[int] = set()

    def add(self, goodness: float | None, number: int) -> int | None:
        """Take in a trial; returns the one that is not among the best any more, or None.

        Of equals the earlier number is the better one; no goodness is never among the best.
        """
        if goodness is None:
            return number
        heapq.heappush(self._heap, (goodness, -number))
        self.numbers.add(number)
        if self._n is None or len(self._heap) <= self._n:
            return None
        outdone = -heapq.heappop(self._heap)[1]
        self.numbers.discard(outdone)
        return outdone

    def discard(self, number: int) -> None:
        """Forget a trial. Costs as much as there are."""
        if number in self.numbers:
            self.numbers.discard(number)
            self._heap = [entry for entry in self._heap if entry[1] != -number]
            heapq.heapify(self._heap)


class _Folders:
    """Trials' folders on their way out: each goes once nobody needs it any more."""

    def __init__(self, study_dir: Path) -> None:
        self._study_dir = study_dir
        self._needed_by: dict[int, set[str]] = {}
        self._leaving: set[int] = set()
        self._due: list[Path] = []

    def n_bytes(self, number: int) -> int:
        """What the folder holds now."""
        return folder_bytes(TrialFiles(self._study_dir, number).folder)

    def hold(self, number: int, who: Literal["ledger", "MLflow"]) -> None:
        """It must not go before `who` has what it needs."""
        self._needed_by.setdefault(number, set()).add(who)

    def release(self, number: int, who: Literal["ledger", "MLflow"]) -> None:
        """`who` has what it needs."""
        left = self._needed_by.get(number, set())
        left.discard(who)
        if not left:
            self._needed_by.pop(number, None)
            if number in self._leaving:
                self.leave(number)

    def leave(self, number: int) -> None:
        """It is not wanted any more."""
        if number in self._needed_by:
            self._leaving.add(number)
            return
        self._leaving.discard(number)
        self._due.append(TrialFiles(self._study_dir, number).folder)

    def take_due(self) -> list[Path]:
        """Folders that may go now."""
        due, self._due = self._due, []
        return due


class _Budget:
    """Bytes that trials' files take, and which are too many."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self.is_bounded = limit < math.inf
        self._stored: dict[int, int] = {}
        self._here: dict[int, int] = {}
        self._n_bytes = 0
        self._worst_first: list[tuple[float, int]] = []

    def add(self, goodness: float | None, number: int, n_bytes: int) -> None:
        """MLflow holds so many bytes of a trial, or soon will."""
        if number not in self._stored:
            rank = -math.inf if goodness is None else goodness
            heapq.heappush(self._worst_first, (rank, -number))
        self._n_bytes += n_bytes - self._stored.get(number, 0)
        self._stored[number] = n_bytes

    def add_here(self, number: int, n_bytes: int) -> None:
        """The work folder holds so many bytes of a trial that stays there."""
        self._n_bytes += n_bytes - self._here.pop(number, 0)
        if n_bytes:
            self._here[number] = n_bytes

    def remove(self, number: int) -> None:
        """MLflow holds nothing of a trial any more."""
        self._n_bytes -= self._stored.pop(number, 0)

    def excess(self) -> Iterator[int]:
        """Trials that have to go, worst first, while there are too many bytes; never the best.

        Whoever asks takes each off the account before the next one.
        """
        while self._n_bytes > self._limit and len(self._stored) > 1:
            number = -heapq.heappop(self._worst_first)[1]
            if number in self._stored:
                yield number
