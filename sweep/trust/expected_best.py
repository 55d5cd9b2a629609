"""How good the best of n trials is on average, and what more trials would bring.

The mean of the best over all subsets of n of N scores, without replacement: with the scores in
ascending order,

    V(n) = sum_k  C(k - 1, n - 1) / C(N, n) * score_(k),        k = n, ..., N

It is unbiased, which the plug-in estimate with replacement is not.

Source: Tang, Lee, Xin, Liu, Yu, Lin, "Showing your work doesn't always work", ACL 2020, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

LEAST = 8
"""Trials from which a trend can be told."""


def expected_best(scores: Sequence[float], n: int) -> float:
    """V(n) of these scores, larger is better.

    >>> expected_best([1.0, 2.0, 3.0], 2)  # the mean of 2, 3 and 3
    2.6666666666666665
    """
    ordered, total = sorted(scores), 0.0
    weight = n / len(ordered)  # C(N-1, n-1) / C(N, n), the largest score's
    for k in range(len(ordered), n - 1, -1):
        total += weight * ordered[k - 1]
        weight *= (k - n) / (k - 1) if k > 1 else 0.0
    return total


def gain_of_more(scores: Sequence[float]) -> tuple[int, float] | None:
    """(n, g): as many trials again would gain about g; None: too few to tell.

    The gain shrinks from one doubling to the next: the next one's is the last one's gain,
    V(N) - V(N/2), times the ratio to the one before it, at most 1. A sampler that learns can do
    better than this, trials whose differences are noise will do worse.
    """
    n, finite = len(scores), [score for score in scores if math.isfinite(score)]
    if len(finite) < LEAST:
        return None
    values = [expected_best(finite, max(1, len(finite) // part)) for part in (1, 2, 4)]
    last, before = values[0] - values[1], values[1] - values[2]
    ratio = min(1.0, last / before) if before > 0 else 0.0
    return n, last * ratio
