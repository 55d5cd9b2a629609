"""What can be said of a study's best score without training anything again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % interval, in the metric's own unit."""

    value: float
    low: float
    high: float


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
