"""When a worker has taken too much memory, and when a new one in its place would not help."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sweep.trial import EpochReport, Report

ROOMY_EPOCHS = 2
"""A worker had room if its trials got so many epochs further before it was too large."""
MAX_CRAMPED = 2
"""Workers in a row without room after which the limit is left out."""


@dataclass(frozen=True)
class Finding:
    """What a look at a worker's memory came to."""

    is_too_large: bool = False
    message: str = ""
    """One line for the user, or nothing."""


class MemoryLimit:
    """The limit of `--worker-memory`, over all workers of a search.

    It is left out where it does no good: a worker that is too large from the start would be
    replaced for ever, and so would one whose trials cannot be kept and start over each time.

    Args:
        limit_gb: Resident memory that a worker process may take, in units of 1e9 bytes; None:
            any.
    """

    def __init__(self, limit_gb: float | None) -> None:
        self._limit_gb = limit_gb
        self._furthest: dict[int, int] = {}
        """Trial number -> the last epoch that any worker trained."""
        self._n_gained: dict[int, int] = {}
        """Process id of a worker -> epoch ends at which a trial got further than ever."""
        self._n_cramped = 0

    def check(self, pid: int, reports: Sequence[Report]) -> Finding:
        """Whether worker `pid` is to be replaced, by what it takes at an epoch's end."""
        trained = [r for r in reports if isinstance(r, EpochReport) and not r.is_replay]
        if self._limit_gb is None or not trained:
            return Finding()
        further = {r.number: r.epoch for r in trained if r.epoch > self._furthest.get(r.number, 0)}
        self._furthest |= further
        self._n_gained[pid] = self._n_gained.get(pid, 0) + bool(further)
        n_bytes = resident_bytes(pid)
        limit, name = self._limit_gb, f"--worker-memory {self._limit_gb:g}"
        if n_bytes is None:
            self._limit_gb = None
            unknown = "this system does not say what memory a process takes"
            return Finding(message=f"{unknown}: going on without {name}")
        if n_bytes <= limit * 1e9:
            return Finding()
        is_cramped = self._n_gained.pop(pid) < ROOMY_EPOCHS
        self._n_cramped = self._n_cramped + 1 if is_cramped else 0
        taken = f"{n_bytes / 1e9:.3g} GB"
        if self._n_cramped >= MAX_CRAMPED:
            self._limit_gb = None
            return Finding(message=f"a new worker takes {taken} at once: going on without {name}")
        over = f"a worker took {taken}, over {name}"
        return Finding(True, f"{over}: its trials go on in a new one")


def resident_bytes(pid: int) -> int | None:
    """Memory of a process that is in RAM now, with shared libraries; None where it is unknown."""
    try:
        n_pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return n_pages * os.sysconf("SC_PAGE_SIZE")
