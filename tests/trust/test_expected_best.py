"""The expected best of n trials, against all subsets."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sweep.trust.expected_best import expected_best, gain_of_more


@pytest.mark.parametrize("n", range(1, 8))
def test_it_is_the_mean_over_all_subsets(n: int) -> None:
    """Of seven scores, without replacement."""
    scores = np.random.default_rng(0).random(7).tolist()
    best = [max(subset) for subset in itertools.combinations(scores, n)]
    assert expected_best(scores, n) == pytest.approx(np.mean(best))


def test_many_trials_do_not_overflow() -> None:
    """Binomial coefficients of 1,000 trials have 300 digits."""
    scores = np.linspace(0.0, 1.0, 1000)
    assert expected_best(scores.tolist(), 500) == pytest.approx(500 / 501, abs=1e-3)


def test_the_gain_of_more_is_what_a_doubling_brings() -> None:
    """Of uniform scores the best of n is n / (n + 1): 64 more than 64 gain 0.0076."""
    gains = []
    for seed in range(300):
        found = gain_of_more(np.random.default_rng(seed).random(64).tolist())
        assert found is not None
        assert found[0] == 64
        gains.append(found[1])
    assert np.mean(gains) == pytest.approx(128 / 129 - 64 / 65, abs=0.002)


def test_few_trials_tell_nothing() -> None:
    """No number is invented; infinities do not count."""
    assert gain_of_more([0.1] * 7) is None
    assert gain_of_more([0.1] * 7 + [float("-inf")]) is None


def test_equal_trials_gain_nothing() -> None:
    """All scores alike."""
    assert gain_of_more([0.5] * 20) == (20, 0.0)
