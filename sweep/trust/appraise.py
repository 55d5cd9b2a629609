"""The appraisal of a study, from its trials' scores and outcomes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.appraisal import Appraisal, Interval
from sweep.files.outcomes import Outcomes, read_outcomes
from sweep.objective import Objective, Scored
from sweep.trial import TrialState
from sweep.trust.expected_best import gain_of_more
from sweep.trust.intervals import normal, probability_above_zero, wilson
from sweep.trust.selection import Draws, best_columns, draws, out_of_choice

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

MOST_TRIALS = 200
"""Trials to choose from, the best: those below have no chance, and each takes its memory."""
LEAST_UNITS = 20
"""Samples, or minibatches whose mean alone is known, from which a choice can be repeated."""


class _CannotSayError(Exception):
    """Why a score cannot be corrected, in one sentence."""


def appraise(
    trials: Iterable[Scored], objective: Objective, work_dir: str | Path, baseline: int | None
) -> Appraisal | None:
    """What can be said of the best score; None without a completed trial.

    Args:
        trials: Of the study; completed ones count.
        objective: Metric and direction.
        work_dir: The study's folder, with the trials' outcomes.
        baseline: Number of the trial that is the reference; None: there is none.
    """
    found = list(trials)
    best = objective.best(found)
    if best is None or best.value is None:
        return None
    done = [t for t in found if t.state is TrialState.COMPLETE and t.value is not None]
    more = gain_of_more([objective.goodness(trial.value) for trial in done])
    try:
        return _corrected(done, objective, work_dir, baseline, best, more)
    except _CannotSayError as error:
        return Appraisal(best.value, best.number, why_not=str(error), more=more)


def _corrected(
    done: Sequence[Scored], objective: Objective, work_dir: str | Path, baseline: int | None,
    best: Scored, more: tuple[int, float] | None,
) -> Appraisal:  # fmt: skip
    import numpy as np

    first = sorted(done, key=lambda t: (-objective.goodness(t.value), t.number))[:MOST_TRIALS]
    numbers = sorted({t.number for t in first} | {t.number for t in done if t.number == baseline})
    outcomes = _known(numbers, objective.metric, work_dir)
    by_trial, sizes = aligned(outcomes)
    if len(sizes) < LEAST_UNITS:
        raise _CannotSayError(
            f"{objective.metric} is known of {len(sizes)} groups of validation samples, too few "
            "to repeat the choice with: validate in smaller minibatches"
        )
    is_share = all(((one == 0) | (one == 1)).all() for one in by_trial)
    sign = 1.0 if objective.direction == "maximize" else -1.0
    drawn = draws(len(sizes))
    choice = _Choice(by_trial, sizes, sign, drawn)
    corrected = choice.corrected(is_share)
    assert best.value is not None
    found = Appraisal(best.value, best.number, corrected, n_samples=int(sizes.sum()), more=more)
    if baseline not in numbers or best.number == baseline:
        return found
    own = _Choice([by_trial[numbers.index(baseline)]], sizes, sign, drawn)
    mean = float(np.average(choice.fair.of_all - own.fair.of_all, weights=sizes))
    error = standard_error(choice.winner - own.winner, sizes)
    return Appraisal(
        best.value, best.number, corrected, "", own.corrected(is_share), normal(mean, error),
        probability_above_zero(mean, error), int(sizes.sum()), more,
    )  # fmt: skip


class _Choice:
    """The best column of some trials, and what it is worth.

    `winner` are its outcomes (U,), `fair` those of repeated choices; larger is better.
    """

    def __init__(self, by_trial: Sequence[Array], sizes: Array, sign: float, drawn: Draws) -> None:
        import numpy as np

        values = sign * np.concatenate(by_trial)
        values = values[best_columns(values, sizes)]
        self._sizes, self._sign = sizes, sign
        self.winner = values[int((values @ sizes).argmax())]
        self.fair = out_of_choice(values, sizes, drawn)

    def corrected(self, is_share: bool) -> Interval:
        """The corrected score; `is_share`: of the samples, each 0 or 1."""
        import numpy as np

        whole, half, raw = (
            float(np.average(of, weights=self._sizes))
            for of in (self.fair.of_all, self.fair.of_half, self.winner)
        )
        value, centre = self._sign * min(whole, raw), self._sign * half
        if is_share:
            around = wilson(centre, float(self._sizes.sum()))
        else:
            around = normal(centre, standard_error(self.winner, self._sizes))
        return Interval(value, min(around.low, value), max(around.high, value))


def standard_error(values: Array, sizes: Array) -> float:
    """Of the weighted mean of values (U,) with weights (U,), of independent units.

    s^2 = U / (U - 1) sum_u p_u^2 (x_u - mean)^2 with shares p_u; Cochran, "Sampling Techniques"
    (1977), section 6.4.
    """
    import numpy as np

    shares = sizes / sizes.sum()
    mean, n = float(shares @ values), len(values)
    return float(np.sqrt(n / (n - 1) * (shares**2 @ (values - mean) ** 2)))


def _known(numbers: Sequence[int], metric: str, work_dir: str | Path) -> list[Outcomes]:
    found = []
    for number in numbers:
        one = read_outcomes(work_dir, number)
        if one is None or one.why_not or not len(one.values):
            why = one.why_not if one is not None and one.why_not else "has no outcomes on the disk"
            raise _CannotSayError(f"{metric} {why} (trial {number})")
        found.append(one)
    return found


def aligned(outcomes: Sequence[Outcomes]) -> tuple[list[Array], Array]:
    """Outcomes (E, U) of each trial in units that all have, and the units' sizes (U,).

    Trials that validate in minibatches of 32 and 64 have those of 64 in common.

    Raises an error that says why, if they validate different numbers of samples.
    """
    import numpy as np

    ends = [np.cumsum(one.sizes.astype(np.int64)) for one in outcomes]
    if len({int(end[-1]) for end in ends}) > 1:
        raise _CannotSayError("the trials were validated with different numbers of samples")
    common = ends[0]
    for end in ends[1:]:
        if len(end) != len(common) or (end != common).any():
            common = np.intersect1d(common, end, assume_unique=True)
    sizes = np.diff(common, prepend=0)
    found = []
    for one, end in zip(outcomes, ends, strict=True):
        if len(end) == len(common):
            found.append(one.values)
        else:
            starts = np.concatenate([[0], np.searchsorted(end, common)[:-1] + 1])
            found.append(np.add.reduceat(one.values * one.sizes, starts, axis=1) / sizes)
    return found, sizes
