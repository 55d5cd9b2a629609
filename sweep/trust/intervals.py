"""95 % intervals of means.

Shares: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22
(1927), 209-212. Other means: the normal interval, mean +- 1.96 s / sqrt(n).
"""

from __future__ import annotations

import math

from sweep.appraisal import Interval

Z = 1.959964
"""97.5 % quantile of the standard normal distribution."""


def wilson(share: float, n: float) -> Interval:
    """The interval of a share of n samples; `share` need not be a multiple of 1 / n.

    >>> one = wilson(0.9, 100)
    >>> round(one.low, 4), round(one.high, 4)
    (0.8256, 0.9448)
    """
    z2 = Z * Z / n
    centre = (share + z2 / 2) / (1 + z2)
    half = Z / (1 + z2) * math.sqrt(max(0.0, share * (1 - share) / n) + z2 / (4 * n))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def normal(mean: float, standard_error: float) -> Interval:
    """mean +- 1.96 standard errors."""
    return Interval(mean, mean - Z * standard_error, mean + Z * standard_error)


def probability_above_zero(mean: float, standard_error: float) -> float:
    """Of a normal variable, that it is above 0.

    >>> probability_above_zero(0.0, 1.0)
    0.5
    """
    if standard_error == 0.0:
        return 0.5 if mean == 0.0 else float(mean > 0.0)
    return 0.5 * (1.0 + math.erf(mean / standard_error / math.sqrt(2.0)))
