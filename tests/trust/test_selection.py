"""The corrected best score, against worlds whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from sweep.trust.selection import best_columns, draws, out_of_choice

N_UNITS = 300


def world(seed: int, truth: np.ndarray) -> np.ndarray:
    """(C, U) hits of models with these true shares; half of the luck is shared by all."""
    random = np.random.default_rng(seed)
    shared = random.random(N_UNITS)
    own = random.random((len(truth), N_UNITS))
    luck = np.where(random.random((len(truth), N_UNITS)) < 0.5, shared, own)
    return (luck < truth[:, None]).astype(np.float32)


@pytest.mark.parametrize("spread", [0.0, 0.05])
def test_the_corrected_score_has_no_bias(spread: float) -> None:
    """The raw best is 3 points and more too good, the corrected one less than 0.6 off."""
    sizes, raw, corrected = np.ones(N_UNITS), [], []
    for seed in range(60):
        truth = 0.8 - spread * np.random.default_rng(seed).random(60)
        values = world(seed, truth)
        chosen = int(values.mean(1).argmax())
        raw.append(values[chosen].mean() - truth[chosen])
        corrected.append(
            out_of_choice(values, sizes, draws(N_UNITS, 200)).of_all.mean() - truth[chosen]
        )
    assert np.mean(raw) > 0.03
    assert abs(np.mean(corrected)) < 0.006


def test_one_column_needs_no_correction() -> None:
    """Without a choice the corrected score is the score, unit by unit."""
    values = world(0, np.array([0.8]))
    assert np.array_equal(
        out_of_choice(values, np.ones(N_UNITS), draws(N_UNITS)).of_all, values[0]
    )


def test_units_count_by_their_samples() -> None:
    """A column that wins on the large units is chosen, whatever the many small ones say."""
    small, large = np.ones(100), np.full(100, 50.0)
    values = np.stack([np.repeat([1.0, 0.0], 100), np.repeat([0.0, 1.0], 100)])
    fair = out_of_choice(values, np.concatenate([small, large]), draws(200, 100)).of_half
    assert np.array_equal(fair, values[1])


def test_the_same_study_has_the_same_result() -> None:
    """Draws are seeded: a report has the same bytes each time."""
    values = world(1, np.full(20, 0.8))
    first, second = (
        out_of_choice(values, np.ones(N_UNITS), draws(N_UNITS)).of_all for _ in range(2)
    )
    assert np.array_equal(first, second)


def test_columns_without_a_chance_are_left_out() -> None:
    """The best columns stay, in their order, so that the earliest of equals is chosen."""
    values = np.repeat([[0.2], [0.9], [0.9], [0.1], [0.5]], 10, axis=1)
    assert best_columns(values, np.ones(10), 3).tolist() == [1, 2, 4]
