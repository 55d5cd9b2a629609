"""One rule for kept checkpoints, applied by a running search as its trials end.

Two places hold a trial's files: the study's work folder, for the best few, and MLflow, for every
trial's checkpoint and model unless `--keep` or `--disk-limit` says
otherwise. Parameters and metrics are never deleted.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import math
import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from sweep.config.settings import RunConfig
from sweep.files.trial_files import TrialFiles, folder_bytes
from sweep.ledger.trials import LedgerTrial
from sweep.objective import Objective
from sweep.tracking.keys import DROPPED_TAG
from sweep.trial import TrialFinished, TrialState

KEPT_IN_WORK_DIR = 5
"""Best trials whose files stay in the work folder; MLflow has copies of the others."""


def which_go(
    worst_first: Sequence[int], here: Mapping[int, int], stored: Mapping[int, int],
    keep: int | None, limit: float = math.inf,
) -> tuple[set[int], set[int]]:  # fmt: skip
    """Trials whose files go from the work folder, and those whose files go from MLflow.

    Args:
        worst_first: Numbers of completed trials with a score; all others are worse.
        here: Trial -> bytes of its files in the work folder.
        stored: Trial -> bytes of its files in MLflow.
        keep: `--keep`: best trials with files in MLflow; None: all trials.
        limit: `--disk-limit`: most bytes of both places. The best trial stays whatever the limit.
    """
    top = {*worst_first[-min(KEPT_IN_WORK_DIR, keep or KEPT_IN_WORK_DIR) :]}
    left_here = {number: size for number, size in here.items() if number in top}
    left = dict(stored)
    if keep is not None:
        left = {number: stored[number] for number in worst_first[-keep:] if number in stored}
    excess = sum(left_here.values()) + sum(left.values()) - limit
    if excess > 0:
        ranked = {*worst_first}
        for number in [*(n for n in stored if n not in ranked), *worst_first[:-1]]:
            if excess <= 0:
                break
            excess -= left_here.pop(number, 0) + left.pop(number, 0)
    return here.keys() - left_here.keys(), stored.keys() - left.keys()


def goodness_of(config: RunConfig, trial: LedgerTrial | TrialFinished) -> tuple[float, int] | None:
    """A larger pair for a better trial, the earlier of equals; None for one without a score."""
    goodness = Objective("", config.resolved_direction).goodness(trial.value)
    if trial.state is not TrialState.COMPLETE or goodness == -math.inf:
        return None
    return goodness, -trial.number


def limit_of(config: RunConfig) -> float:
    """`--disk-limit` in bytes."""
    return math.inf if config.disk_limit_gb is None else config.disk_limit_gb * 1e9


class KeepBest:
    """Applies `which_go` as trials end, and removes unneeded folders.

    A trial outside the best K of `--keep` hands MLflow no checkpoint at all; a trial outdone later
    has its files dropped once MLflow has them (see `stored`). `--disk-limit` counts a
    trial's files from its end on, however far MLflow is behind.

    Three threads call: the driver's `finish`, the ledger's `closed`, the tracker's `stored`. The
    last two remove folders: training never waits for the disk.
    """

    def __init__(self, config: RunConfig) -> None:
        self._config, self._limit = config, limit_of(config)
        self._is_bounded = config.keep is not None or self._limit < math.inf
        self._lock = threading.Lock()
        self._scores: list[tuple[float, int]] = []
        self._worst_first: list[int] = []
        """The trials of `_scores`, less those whose files are gone for good: ranks only fall."""
        self._here: dict[int, int] = {}
        self._stored: dict[int, int] = {}
        self._needed_by: dict[int, set[str]] = {}
        """Trial -> who still needs its folder: a kill would need its verdict, MLflow its files."""
        self._leaving: set[int] = set()
        self._outdone: dict[int, set[int]] = {}
        """Trial -> those that it outdid: their files go once it is stored itself."""
        self._to_drop: set[int] = set()

    def recall(
        self, trials: Sequence[LedgerTrial], stored: Mapping[int, int], *, is_delivered: bool
    ) -> None:
        """Take in the finished trials of earlier runs, before the first trial of this one.

        Args:
            trials: The study's.
            stored: Trial number -> bytes of its files in MLflow, if known.
            is_delivered: Whether MLflow has the files of all of them.
        """
        with self._lock:
            for trial in trials:
                if not trial.state.is_finished:
                    continue
                self._rank(trial)
                self._here[trial.number] = self._folder_bytes(trial.number)
                if not is_delivered:
                    self._needed_by[trial.number] = {"MLflow"}
            if self._is_bounded:
                self._stored = dict(stored) if is_delivered else {**self._here, **stored}
            self._let_go()

    def finish(self, record: TrialFinished) -> TrialFinished:
        """The record, without its files if they are not wanted."""
        number = record.number
        if not record.state.is_finished:
            return record
        n_here = self._folder_bytes(number) if self._limit < math.inf else 0
        has_files = record.checkpoint is not None or record.model_file is not None
        with self._lock:
            self._rank(record)
            self._here[number], self._needed_by[number] = n_here, {"ledger"}
            if self._is_bounded and has_files:
                self._stored[number] = self._bytes_to_store(record)
            gone = self._let_go()
            if number in gone:
                tags = {**record.tags, DROPPED_TAG: "true"}
                record = dataclasses.replace(record, checkpoint=None, model_file=None, tags=tags)
            if record.has_logged or (has_files and number not in gone):
                self._needed_by[number].add("MLflow")
            self._outdone[number] = gone - {number}
        return record

    def closed(self, number: int) -> None:
        """The ledger has the trial's final state: its folder may go."""
        self._release(number, "ledger")

    def stored(self, number: int) -> list[int]:
        """MLflow has the trial's files: its folder may go.

        Returns the trials whose files MLflow is to drop now: they were outdone.
        """
        self._release(number, "MLflow")
        with self._lock:
            self._to_drop |= self._outdone.pop(number, set())
            needed = {n for n in self._to_drop if "MLflow" in self._needed_by.get(n, ())}
            due, self._to_drop = self._to_drop - needed, needed
        return sorted(due)

    def _rank(self, trial: LedgerTrial | TrialFinished) -> None:
        score = goodness_of(self._config, trial)
        if score is not None:
            at = bisect.bisect(self._scores, score)
            self._scores.insert(at, score)
            self._worst_first.insert(at, trial.number)

    def _let_go(self) -> set[int]:
        """Let files go; returns the trials whose files go from MLflow."""
        gone_here, gone = which_go(
            self._worst_first, self._here, self._stored, self._config.keep, self._limit
        )
        for number in gone_here:
            del self._here[number]
        self._leaving |= gone_here
        for number in gone:
            del self._stored[number]
        # Those among the best keep their rank: they may have gone for want of room.
        below = gone - {*self._worst_first[-(self._config.keep or 1) :]}
        if below:
            self._scores = [score for score in self._scores if -score[1] not in below]
            self._worst_first = [-number for _, number in self._scores]
        return gone

    def _release(self, number: int, who: Literal["ledger", "MLflow"]) -> None:
        with self._lock:
            self._needed_by.get(number, set()).discard(who)
            if not self._needed_by.get(number):
                self._needed_by.pop(number, None)
            due = [n for n in self._leaving if n not in self._needed_by]
            self._leaving.difference_update(due)
        for number in due:
            shutil.rmtree(TrialFiles(self._config.study_dir, number).folder, ignore_errors=True)

    def _folder_bytes(self, number: int) -> int:
        return folder_bytes(TrialFiles(self._config.study_dir, number).folder)

    def _bytes_to_store(self, record: TrialFinished) -> int:
        """Bytes for MLflow, without the few kilobytes added to each model."""
        is_logged = record.state is TrialState.COMPLETE
        n_bytes = 0
        for file in (record.checkpoint, record.model_file if is_logged else None):
            with contextlib.suppress(OSError):
                n_bytes += Path(file).stat().st_size if file is not None else 0
        return n_bytes
