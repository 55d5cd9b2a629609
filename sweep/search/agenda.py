"""What the driver has in hand: trials that run, trials that are to, and what was said."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sweep.errors import ConfigError
from sweep.trial import EpochReport, Failure, Stop, TrialSpec

if TYPE_CHECKING:
    from sweep.ledger.trials import LedgerTrial
    from sweep.search.proposals import Proposals


@dataclass
class Running:
    """What the driver knows of a trial that a worker trains."""

    spec: TrialSpec
    name: str
    began: float = field(default_factory=time.monotonic)
    reports: dict[int, EpochReport] = field(default_factory=dict)
    """By epoch."""
    told_ms: list[int] = field(default_factory=list)
    """Unix time of each epoch that was trained since it was handed out."""
    best_epoch: int = 0
    stop: Stop | None = None
    n_retries: int = 0
    start_epoch: int | None = None
    noted_start_epoch: int = 0
    """What the ledger has for it."""
    spent_s: float = 0.0
    """Time that it was trained for by workers that gave it back."""

    @property
    def metrics(self) -> dict[int, Mapping[str, float]]:
        """Metrics by epoch."""
        return {epoch: report.metrics for epoch, report in self.reports.items()}


@dataclass(frozen=True)
class Planned:
    """A configuration that is to be trained whatever the sampler would say."""

    hyperparameters: Mapping[str, Any]
    params: Mapping[str, Any] | None
    number: int | None = None
    """Set for a trial that already has one: it was interrupted."""
    start_epoch: int | None = None
    """Population epoch that it first started in, where it trained at all."""
    is_queued: bool = False
    """Whether another program gave it its number, by Optuna's `enqueue_trial`."""


def left_over(
    trials: Sequence[LedgerTrial], proposals: Proposals
) -> tuple[list[Planned], list[str]]:
    """Unfinished trials to train: interrupted ones, and those that other programs queued.

    Queued trials outside the space and other programs' running trials are left alone: the second
    item has one line for each.
    """
    planned, said = [], []
    for trial in trials:
        if trial.state.is_finished:
            continue
        number, why = trial.number, f"it is {trial.state}, and another program's"
        if not trial.is_foreign:
            params = trial.params or None
            planned.append(Planned(trial.hyperparameters, params, number, trial.start_epoch))
            continue
        if trial.queued:
            try:
                configuration, params = proposals.queued(number, trial.queued)
            except ConfigError as error:
                why = f"it was queued, but {error}"
            else:
                planned.append(Planned(configuration, params, number, is_queued=True))
                continue
        said.append(f"trial {number} is left alone: {why}")
    return planned, said


class Streak:
    """Identical failures in a row."""

    def __init__(self) -> None:
        self._what, self._n = "", 0

    def count(self, failure: Failure | None) -> int:
        """How many there are with the trial that just ended; some failures are no one's bug."""
        if failure is None or failure.kind in ("nan", "timeout"):
            self._what, self._n = "", 0
            return 0
        what = f"{failure.kind}: {failure.message}"
        self._n = self._n + 1 if what == self._what else 1
        self._what = what
        return self._n


class Greetings:
    """What workers said when they started."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def are_news(self, message: str) -> bool:
        """Whether no worker said this before."""
        is_known = message in self._known
        self._known.add(message)
        return not is_known
