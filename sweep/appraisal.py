"""What a study's best score is worth: without training anything again, and after doing so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % interval, in the metric's own unit."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """How far an end is from the middle."""
        return (self.high - self.low) / 2


@dataclass(frozen=True, slots=True)
class Appraisal:
    """The best score of a study, corrected for having been chosen.

    All values are in the metric's own unit and direction; a gain is positive if the search is
    better than the reference, whatever the direction.
    """

    best: float
    """The score as trained: best epoch of the best trial."""
    best_number: int
    corrected: Interval | None = None
    """What the chosen model would reach on new samples."""
    why_not: str = ""
    """Why `corrected` is None, in one sentence; "" if it is not."""
    reference: Interval | None = None
    """The same for the reference (trial 0, if it is the study's baseline)."""
    gain: Interval | None = None
    """Paired difference between the choice and the reference."""
    p_better: float | None = None
    """Probability that the choice is better than the reference."""
    n_samples: int = 0
    """Validation samples that the correction was computed from."""
    more: tuple[int, float] | None = None
    """(n, g): n more trials of the same kind would gain about g."""

    @property
    def is_evidence(self) -> bool | None:
        """Whether the search is shown to have helped; None: nothing can be said."""
        return None if self.gain is None else self.gain.low > 0


@dataclass(frozen=True, slots=True)
class Finalist:
    """A configuration in the race."""

    trial: int
    """Its number in the study."""
    name: str
    before: float
    """Its score in the search."""
    scores: tuple[float, ...]
    """Its scores on fresh seeds; NaN where it was not trained."""


@dataclass(frozen=True, slots=True)
class Confirmation:
    """The result of a race. Scores are in the metric's own unit and direction."""

    study: str
    metric: str
    direction: Literal["maximize", "minimize"]
    n_seeds: int
    finalists: tuple[Finalist, ...]
    winner: int
    """Number of the winner's trial in the study."""
    value: Interval
    """The winner's score on a new seed and split."""
    reference: Finalist | None = None
    gain: Interval | None = None
    """The winner against the reference on the same seeds; positive: better."""
    n_trained: int = 0
    n_known: int = 0
    """Completed trials of the study at that time."""
    test: Mapping[str, Interval] = field(default_factory=dict)
    """Metrics of the winner on the test split."""
    reference_test: Mapping[str, Interval] = field(default_factory=dict)
    why_not_tested: str = ""

    @property
    def winner_name(self) -> str:
        """The winner's name."""
        return next(one.name for one in self.finalists if one.trial == self.winner)
