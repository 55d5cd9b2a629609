"""Intervals cover the truth as often as they say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from sweep.trust.intervals import normal, probability_above_zero, wilson


@pytest.mark.parametrize("share", [0.5, 0.9, 0.98])
def test_wilson_covers(share: float) -> None:
    """Over all outcomes of 270 samples, 93 to 97 % of the probability is covered."""
    hits = np.arange(271)
    covers = [one.low <= share <= one.high for one in (wilson(k / 270, 270) for k in hits)]
    assert 0.93 < stats.binom.pmf(hits, 270, share)[covers].sum() < 0.97


def test_wilson_stays_within_shares() -> None:
    """Also where all samples are hits, unlike the normal interval."""
    one = wilson(1.0, 100)
    assert one.high == 1.0
    assert one.low == pytest.approx(0.963, abs=1e-3)


def test_the_normal_interval_is_that_of_scipy() -> None:
    """Mean 3, standard error 2."""
    one = normal(3.0, 2.0)
    assert (one.low, one.high) == pytest.approx(stats.norm.interval(0.95, 3.0, 2.0), abs=1e-5)


def test_the_probability_is_that_of_scipy() -> None:
    """Of N(1, 2) above 0; certain without an error."""
    assert probability_above_zero(1.0, 2.0) == pytest.approx(stats.norm.sf(0.0, 1.0, 2.0))
    assert probability_above_zero(-1.0, 0.0) == 0.0
