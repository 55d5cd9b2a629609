"""A race of finalists over fresh seeds: who trains on, who has won, and what the winner is worth.

Each round trains the finalists that are left on one more seed, the same for all (a block). Then
half of them drop out, down to two (in the manner of sequential halving; Karnin, Koren, Somekh,
ICML 2013). They are ranked by the mean of their fresh scores and, with weight 1/2, the score of
the search: that was of one more seed, but chosen.

The winner's mean over the fresh seeds is too good again, because those chose it. So only seeds
count after the last of the others dropped out (at least the last three), and the choice among
those left is repeated without each such seed in turn; the chosen one's score on the seed left out
counts:

    value = mean_s x[c(-s), s],    c(-s) = argmax_k (sum_{r != s} x[k, r] + x0[k] / 2)

Its interval is Student's, value +- t s / sqrt(n) for n such seeds, with s^2 the mean of the
variances over seeds of all finalists with three or more, and their degrees of freedom together.

Axes: K finalists, S seeds; a score that was not trained is NaN. Larger scores are better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sweep.appraisal import Interval

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

WEIGHT_OF_SEARCH = 0.5
LEAST_LEFT = 2
LEAST_SEEDS = 3
"""Of a finalist whose variance counts, and of a value."""


@dataclass(frozen=True, slots=True)
class RaceResult:
    """Who has won, and what it is worth."""

    winner: int
    """Index of the finalist."""
    value: Interval
    """The winner's score on new seeds."""
    chosen: tuple[float, ...]
    """x[c(-s), s] of the last seeds, whose mean is the value."""


def runners(scores: Array, before: Array) -> Array:
    """Indices of the finalists that train on the next seed, in their order.

    Args:
        scores: (K, S) fresh scores so far; S may be 0.
        before: (K,) scores of the search.
    """
    import numpy as np

    n, n_rounds = scores.shape
    alive = np.arange(n)
    for done in range(1, n_rounds + 1):
        ranked = alive[np.argsort(-_ranks(scores[alive, :done], before[alive]), kind="stable")]
        alive = np.sort(ranked[: max(LEAST_LEFT, -(-n // 2**done))])
        alive = alive[~np.isnan(scores[alive, :done]).any(1)]  # a failed one has dropped out
    return alive


def _ranks(scores: Array, before: Array) -> Array:
    import numpy as np

    n = scores.shape[1]
    found = (scores.sum(1) + WEIGHT_OF_SEARCH * before) / (n + WEIGHT_OF_SEARCH)
    return np.where(np.isnan(found), -np.inf, found)


def result(scores: Array, before: Array) -> RaceResult | None:
    """The result of a race; None if no finalist has all seeds, or there are fewer than two."""
    import numpy as np

    n_seeds = scores.shape[1]
    left = np.flatnonzero(~np.isnan(scores).any(1))
    if not len(left) or n_seeds < 2:
        return None
    own = scores[left]
    winner = int(left[_ranks(own, before[left]).argmax()])
    chosen = []
    for seed in range(_first_that_counts(scores), n_seeds):
        others = _ranks(np.delete(own, seed, 1), before[left])
        chosen.append(float(own[others.argmax(), seed]))
    trained = [row[~np.isnan(row)] for row in scores]
    known = [row for row in trained if len(row) >= min(LEAST_SEEDS, n_seeds)]
    error = float(np.sqrt(np.mean([row.var(ddof=1) for row in known]) / len(chosen)))
    n_free = sum(len(row) - 1 for row in known)
    value = student(float(np.mean(chosen)), error, n_free)
    return RaceResult(winner, value, tuple(chosen))


def _first_that_counts(scores: Array) -> int:
    """The first seed after the last finalist dropped out; with two more behind it, if possible."""
    import numpy as np

    n_seeds, is_left = scores.shape[1], ~np.isnan(scores)
    first = int(np.argmax((is_left == is_left[:, -1:]).all(0)))
    return int(max(0, min(first, n_seeds - LEAST_SEEDS)))


def student(mean: float, standard_error: float, n_free: int) -> Interval:
    """mean +- t standard errors, t with `n_free` degrees of freedom (Student, 1908)."""
    from scipy import special

    half = float(special.stdtrit(n_free, 0.975)) * standard_error
    return Interval(mean, mean - half, mean + half)
