"""The limit of `--worker-memory`: when to replace a worker, and when that does no good."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

from sweep.trial import EpochReport, Report

ROOMY_EPOCHS = 2
"""A worker had room if its trials got so many epochs further before it was too large."""
MAX_CRAMPED = 2
"""Workers in a row without room after which the limit is dropped."""


class MemoryLimit:
    """The memory limit of all workers of a search.

    The limit is dropped if replacing workers does not help: a worker may be too large from its
    start, or its trials may not be resumable and start over each time.

    Args:
        limit_gb: Resident memory of a worker process at most, in 1e9 bytes; None: no limit.
    """

    def __init__(self, limit_gb: float | None) -> None:
        self._limit_gb = limit_gb
        self._furthest: dict[int, int] = {}
        """Trial number -> the last epoch that any worker trained."""
        self._n_gained: dict[Hashable, int] = {}
        """Worker -> epoch ends at which a trial got further than ever."""
        self._n_cramped = 0

    def check(
        self, worker: Hashable, measure: Callable[[], int | None], reports: Sequence[Report]
    ) -> tuple[bool, str]:
        """Whether `worker` must be replaced after these reports, and a line for the user.

        `measure` says its resident memory in bytes, None if unknown.
        """
        trained = [r for r in reports if isinstance(r, EpochReport) and not r.is_replay]
        if self._limit_gb is None or not trained:
            return False, ""
        further = {r.number: r.epoch for r in trained if r.epoch > self._furthest.get(r.number, 0)}
        self._furthest |= further
        self._n_gained[worker] = self._n_gained.get(worker, 0) + bool(further)
        n_bytes = measure()
        limit, name = self._limit_gb, f"--worker-memory {self._limit_gb:g}"
        if n_bytes is None:
            self._limit_gb = None
            unknown = "this system does not say what memory a process takes"
            return False, f"{unknown}: going on without {name}"
        if n_bytes <= limit * 1e9:
            return False, ""
        is_cramped = self._n_gained.pop(worker) < ROOMY_EPOCHS
        self._n_cramped = self._n_cramped + 1 if is_cramped else 0
        taken = f"{n_bytes / 1e9:.3g} GB"
        if self._n_cramped >= MAX_CRAMPED:
            self._limit_gb = None
            return False, f"a new worker takes {taken} at once: going on without {name}"
        return True, f"a worker took {taken}, over {name}: its trials go on in a new one"


def resident_bytes(pid: int) -> int | None:
    """A process's resident memory in bytes, shared libraries included; None if unknown."""
    try:
        n_pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return n_pages * os.sysconf("SC_PAGE_SIZE")


def peak_bytes(pid: int) -> int | None:
    """The largest resident memory that a process ever had, in bytes; None if unknown."""
    try:
        fields = Path(f"/proc/{pid}/status").read_text().split()
        return 1024 * int(fields[fields.index("VmHWM:") + 1])
    except (OSError, ValueError, IndexError):
        return None
