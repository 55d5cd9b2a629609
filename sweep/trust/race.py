"""A race of finalists over fresh seeds: who trains on, who has won, and what the winner is worth.

Each round trains the finalists that are left on one more seed, the same for all (a block). Then
half of them drop out, down to two (sequential halving; Karnin, Koren, Somekh, ICML 2013). They are
ranked by the mean of their fresh scores and, with weight 1/2, the score of the search: that was of
one more seed, but chosen.

The winner's mean over the fresh seeds is too good again, because those chose it. So the choice is
repeated without each seed in turn, among the finalists that have all seeds, and the chosen one's
score on the seed left out counts:

    value = mean_s x[c(-s), s],    c(-s) = argmax_k (sum_{r != s} x[k, r] + x0[k] / 2)

Its interval is Student's, value +- t(S - 1) s / sqrt(S), with s^2 the mean over the finalists of
their variances over seeds (at least three each): few seeds of one are a bad estimate.

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
"""Of a finalist whose variance counts."""


@dataclass(frozen=True, slots=True)
class RaceResult:
    """Who has won, and what it is worth."""

    winner: int
    """Index of the finalist."""
    value: Interval
    """The winner's score on new seeds."""
    chosen: tuple[float, ...]
    """x[c(-s), s], whose mean is the value; pairs with another's scores on the same seeds."""


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
    for seed in range(n_seeds):
        others = _ranks(np.delete(own, seed, 1), before[left])
        chosen.append(float(own[others.argmax(), seed]))
    variances = [
        row[~np.isnan(row)].var(ddof=1)
        for row in scores if (~np.isnan(row)).sum() >= min(LEAST_SEEDS, n_seeds)
    ]  # fmt: skip
    error = float(np.sqrt(np.mean(variances) / n_seeds))
    return RaceResult(winner, student(float(np.mean(chosen)), error, n_seeds), tuple(chosen))


def student(mean: float, standard_error: float, n: int) -> Interval:
    """mean +- t(n - 1) standard errors; the standard error is of n values (Student, 1908)."""
    from scipy import special

    half = float(special.stdtrit(n - 1, 0.975)) * standard_error
    return Interval(mean, mean - half, mean + half)
