"""Trials whose runs may lack something, and how often the store is asked for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sweep.trial import EpochReport, TrialFinished, TrialHistory, TrialStarted


@dataclass(frozen=True, slots=True)
class Pace:
    """How often the store is asked, in seconds."""

    flush_s: float = 5.0
    """The curves of running trials are gathered for at least this long."""
    first_retry_s: float = 0.5
    """A store that did not answer is asked again after this long, then after twice this, ..."""
    retry_s: float = 5.0
    """... and at least this often."""
    grace_s: float = 10.0
    """At the end a store that does not answer is asked for this long."""


@dataclass
class Pending:
    """A trial whose run may lack something."""

    started: TrialStarted
    reports: list[EpochReport] = field(default_factory=list)
    finished: TrialFinished | None = None
    n_changes: int = 0
    """Counts what came in, so that what comes during a call is not taken for synced."""
    n_synced: int = 0
    is_urgent: bool = True
    """Its run begins or ends: not only new points, which can wait for a flush."""
    n_tries: int = 0
    retry_at: float = 0.0
    is_let_go: bool = False
    """The user deleted its run in MLflow."""

    @property
    def is_behind(self) -> bool:
        """Whether its run lacks something."""
        return self.n_synced < self.n_changes and not self.is_let_go

    @property
    def is_final(self) -> bool:
        """Whether nothing more will come of it."""
        return self.finished is not None and self.finished.state.is_finished

    def history(self) -> TrialHistory:
        """What is known now."""
        return TrialHistory(self.started, tuple(self.reports), self.finished)


def named(numbers: Sequence[int]) -> str:
    """At most five numbers, and how many more there are.

    >>> named([3]), named([1, 2, 3, 4, 5, 6, 7])
    ('trial 3', 'trials 1, 2, 3, 4, 5 (and 2 more)')
    """
    if len(numbers) == 1:
        return f"trial {numbers[0]}"
    more = f" (and {len(numbers) - 5} more)" if len(numbers) > 5 else ""
    return f"trials {', '.join(map(str, numbers[:5]))}{more}"
