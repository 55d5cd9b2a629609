"""Races of finalists: who drops out, who wins, what the winner is worth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from sweep.trust.race import result, runners, student


def test_half_of_them_drop_out_down_to_two() -> None:
    """Ten finalists: 10, 5, 3, 2, 2; the best by their means go on."""
    before = np.linspace(1.0, 0.1, 10)
    seen, counts = np.zeros((10, 0)), []
    for _ in range(5):
        alive = runners(seen, before)
        counts.append(len(alive))
        column = np.full(10, np.nan)
        column[alive] = before[alive]
        seen = np.column_stack([seen, column])
    assert counts == [10, 5, 3, 2, 2]
    assert alive.tolist() == [0, 1]


def test_the_score_of_the_search_counts_half() -> None:
    """A fresh lead of 0.2 does not outweigh 0.5 of the search, one of 0.3 does."""
    before = np.array([1.0, 0.5, 0.0, 0.0])
    assert 0 in runners(np.array([[0.5], [0.7], [0.7], [0.7]]), before)
    assert 0 not in runners(np.array([[0.1], [0.7], [0.7], [0.7]]), before)


def test_a_failed_finalist_drops_out() -> None:
    """It has no score on the last seed."""
    scores = np.array([[0.9], [np.nan], [0.7]])
    assert runners(scores, np.array([0.9, 0.9, 0.8])).tolist() == [0, 2]


def test_the_value_is_of_seeds_that_did_not_choose() -> None:
    """By hand: without the second seed the other finalist leads."""
    scores = np.array([[0.5, 1.0, 0.5], [0.6, 0.6, 0.6]])
    found = result(scores, np.array([0.6, 0.6]))
    assert found is not None
    assert found.winner == 0
    assert found.chosen == (0.5, 0.6, 0.5)
    assert found.value.value == pytest.approx(np.mean(found.chosen))


def test_bias_and_coverage_against_known_truths() -> None:
    """Over 600 races the value is off by less than a tenth of the noise, where the winner's own
    mean is off by more than twice that; the interval covers in 92 to 98 %."""
    random, errors, raw, covered = np.random.default_rng(0), [], [], []
    for _ in range(600):
        truth = random.normal(0.0, 0.5, 5)
        before, seen = truth + random.normal(0.0, 1.0, 5), np.zeros((5, 0))
        for _ in range(5):
            alive, column = runners(seen, before), np.full(5, np.nan)
            column[alive] = (
                truth[alive] + random.normal(0.0, 1.0) + random.normal(0, 1, len(alive))
            )
            seen = np.column_stack([seen, column])
        found = result(seen, before)
        assert found is not None
        errors.append(found.value.value - truth[found.winner])
        raw.append(seen[found.winner].mean() - truth[found.winner])
        covered.append(found.value.low <= truth[found.winner] <= found.value.high)
    assert abs(np.mean(errors)) < 0.1
    assert np.mean(raw) > 0.15
    assert 0.92 < np.mean(covered) < 0.98


def test_too_little_is_no_result() -> None:
    """One seed, or no finalist with all seeds."""
    assert result(np.array([[0.5], [0.6]]), np.array([0.5, 0.5])) is None
    scores = np.array([[0.5, np.nan], [np.nan, 0.6]])
    assert result(scores, np.array([0.5, 0.5])) is None


def test_students_interval_is_that_of_scipy() -> None:
    """Five values, standard error 2."""
    one = student(3.0, 2.0, 4)
    assert (one.low, one.high) == pytest.approx(stats.t.interval(0.95, 4, 3.0, 2.0))
