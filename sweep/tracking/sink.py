"""Where records go, and how often it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sweep.tracking.codec import Entry
from sweep.trial import EpochReport


@dataclass(frozen=True, slots=True)
class Pace:
    """How often the store is asked, in seconds, and how much may wait for it."""

    flush_s: float = 5.0
    """Epoch metrics are gathered for at least this long."""
    first_retry_s: float = 0.5
    """A store that did not answer is asked again after this long, then after twice this, ..."""
    retry_s: float = 5.0
    """... and at least this often."""
    grace_s: float = 10.0
    """At the end a store that does not answer is asked for this long."""
    spool_mb: int = 256
    """Size of the spool file beyond which epoch reports are dropped."""


class Sink(Protocol):
    """Where records go. Must stand the same record twice: a failed one is tried again."""

    def apply(self, entry: Entry, reports: Sequence[EpochReport]) -> None:
        """Take `entry`, and before it the `reports` of its trial that were gathered."""
        ...

    def log_epochs(self, number: int, reports: Sequence[EpochReport]) -> None:
        """Take reports of the trial `number`, oldest first."""
        ...

    def is_lasting(self, error: Exception) -> bool:
        """Whether the record itself is wrong, so that no store will ever take it."""
        ...

    def answers(self, number: int) -> bool:
        """Whether the store takes anything but the records of that trial just now."""
        ...
