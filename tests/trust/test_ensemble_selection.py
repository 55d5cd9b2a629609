"""Greedy selection with replacement, against choices that are known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sweep.trust.ensemble import Array, select

TRUTH = np.linspace(-2.0, 2.0, 50)


def goodness(prediction: Array) -> float:
    """Minus the mean squared error."""
    return -float(((prediction - TRUTH) ** 2).mean())


def of_errors(*errors: float) -> Array:
    """A model for each error: the truth and so much more, everywhere."""
    return np.stack([TRUTH + error for error in errors])


def test_it_chooses_what_is_computed_by_hand() -> None:
    """With errors e_i the mean of a choice has the mean of its errors: of 2.9 and -1 the sums
    -1, 1.9, 0.9, -0.1 over 1, 2, 3, 4 are each round's best. So -1 is chosen three times."""
    order, scores = select(of_errors(2.9, -1.0, 4.0), goodness, 4)
    assert order == [1, 0, 1, 1]
    assert scores == pytest.approx([-1.0, -(0.95**2), -(0.3**2), -(0.025**2)])


def test_the_best_prefix_counts() -> None:
    """What only makes it worse is not in it, and of equals the shorter is taken."""
    assert select(of_errors(0.1, 3.0), goodness, 5) == ([0], [pytest.approx(-0.01)])


def test_it_is_greedy_by_its_definition() -> None:
    """Each round's model is the best of all, found by brute force over all continuations."""
    rng = np.random.default_rng(3)
    predictions = TRUTH + rng.normal(size=(6, len(TRUTH)))
    order, scores = select(predictions, goodness, 8)
    for k in range(1, len(order)):
        mean = [predictions[[*order[:k], i]].mean(0) for i in range(6)]
        assert order[k] == int(np.argmax([goodness(m) for m in mean]))
    assert scores == pytest.approx(
        [goodness(predictions[order[:k]].mean(0)) for k in range(1, len(order) + 1)]
    )
    assert scores[-1] >= max(goodness(one) for one in predictions)
    pairs = itertools.combinations_with_replacement(range(6), 2)
    assert scores[-1] >= max(goodness(predictions[[a, b]].mean(0)) for a, b in pairs) - 0.05


def test_a_model_that_is_not_finite_is_never_chosen() -> None:
    """Its score is NaN, which is worse than any."""
    predictions = np.stack([np.full_like(TRUTH, np.nan), TRUTH + 1, TRUTH - 1.5])
    assert select(predictions, goodness, 6)[0] == [1, 2, 1, 2, 1]
