"""The score by which a study's model is judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sweep.ledger.confirmation import confirmation_in
from sweep.repair.records import StudyRecords
from sweep.reuse.best import Best, opened

ScoreKind = Literal["confirmed", "corrected", "best"]
MEANING: dict[ScoreKind, str] = {
    "confirmed": "on fresh seeds and splits (`sweep confirm`)",
    "corrected": "corrected for having been chosen",
    "best": "as trained; the best of many looks better than it is",
}
"""Each kind of score, for people; the most trustworthy first."""


@dataclass(frozen=True)
class Score:
    """A score and how it was found."""

    value: float
    kind: ScoreKind
    low: float | None = None
    high: float | None = None
    """The 95 % interval, if it is known."""

    def __str__(self) -> str:
        """The value, with its interval."""
        interval = "" if self.low is None else f" (95 %: {self.low:.6g} to {self.high:.6g})"
        return f"{self.value:.6g}{interval}"


def score_of(best: Best) -> Score:
    """The most trustworthy score of a trial: confirmed, else corrected, else as trained.

    Only the study's best trial is corrected for having been chosen: others were not.
    """
    with opened(best.study, best.where) as (ledger, config):
        confirmed = confirmation_in(ledger.tags)
        if confirmed is not None and confirmed.winner == best.trial:
            found = confirmed.value
            return Score(found.value, "confirmed", found.low, found.high)
        appraisal = StudyRecords(config, ledger).end().appraisal
    if appraisal is None or appraisal.corrected is None or appraisal.best_number != best.trial:
        return Score(best.score, "best")
    corrected = appraisal.corrected
    return Score(corrected.value, "corrected", corrected.low, corrected.high)
