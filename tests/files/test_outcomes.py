"""The file of a trial's outcomes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sweep.files.outcomes import (
    MOST_BYTES,
    OutcomesInMemory,
    outcomes_in,
    outcomes_path,
    read_outcomes,
    write_outcomes,
)


def kept(rows: np.ndarray, sizes: np.ndarray | None = None) -> OutcomesInMemory:
    """Outcomes of a trial with these rows (E, U), whose metric is their mean."""
    found = OutcomesInMemory(len(rows))
    for row in rows:
        found.add(float(np.average(row, weights=sizes)), row, sizes)
    return found


def test_hits_are_kept_as_bits(tmp_path: Path) -> None:
    """5,000 samples of 20 epochs: 12.5 kB, and the same again from the disk."""
    rows = np.random.default_rng(0).random((20, 5000)) < 0.9
    write_outcomes(tmp_path, 7, kept(rows))
    found = read_outcomes(tmp_path, 7)
    assert found is not None
    assert np.array_equal(found.values, rows)
    assert outcomes_path(tmp_path, 7).stat().st_size < 14_000


def test_losses_are_kept_as_float16(tmp_path: Path) -> None:
    """With a thousandth of their value as rounding."""
    rows = np.random.default_rng(0).exponential(1.0, (3, 100))
    write_outcomes(tmp_path, 0, kept(rows))
    found = read_outcomes(tmp_path, 0)
    assert found is not None
    assert found.values == pytest.approx(rows, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("scale", [1e9, 1e-9])
def test_values_beyond_float16_are_kept_as_they_are(scale: float) -> None:
    """Squared errors of house prices, and of what is measured in nanometres; also after a
    resumption."""
    rows = scale * np.random.default_rng(0).exponential(1.0, (4, 100))
    again = OutcomesInMemory(4)
    again.restore(kept(rows[:2]).content, 2)
    for row in rows[2:]:
        again.add(float(row.mean()), row, None)
    found = outcomes_in(again.content)
    assert found is not None
    assert found.values == pytest.approx(rows, rel=1e-5)


@pytest.mark.parametrize("dtype", [bool, float])
def test_many_samples_are_kept_as_means_of_neighbours(dtype: type) -> None:
    """Never more than MOST_BYTES, and the mean stays."""
    rows = (np.random.default_rng(0).random((40, 300_001)) < 0.7).astype(dtype)
    content = kept(rows).content
    found = outcomes_in(content)
    assert found is not None
    assert len(content) < MOST_BYTES + 100_000  # the sizes come to it
    assert found.sizes.sum() == rows.shape[1]
    means = np.average(found.values, axis=1, weights=found.sizes)
    assert means == pytest.approx(rows.mean(1), abs=1e-3)


def test_values_that_are_not_the_metric_are_not_kept() -> None:
    """The reason is; later values do not matter."""
    found = OutcomesInMemory(2)
    found.add(0.5, np.array([True, True, True, False]), None)
    found.add(0.75, np.array([True, True, True, False]), None)
    outcomes = outcomes_in(found.content)
    assert outcomes is not None
    assert "is not the mean" in outcomes.why_not
    assert not len(outcomes.values)


def test_other_samples_in_another_epoch_are_refused() -> None:
    """A validation set that changes is none to compare with."""
    found = OutcomesInMemory(2)
    found.add(0.5, np.array([0.5, 0.5]), np.array([10, 10]))
    found.add(0.5, np.array([0.5, 0.5]), np.array([10, 11]))
    assert "different samples" in found.why_not


def test_a_resumed_trial_goes_on() -> None:
    """With the rows that its resume file has, and no others."""
    rows = np.random.default_rng(0).random((5, 50)) < 0.5
    first, again = kept(rows[:3]), OutcomesInMemory(5)
    again.restore(first.content, 3)
    for row in rows[3:]:
        again.add(float(row.mean()), row, None)
    found = outcomes_in(again.content)
    assert found is not None
    assert np.array_equal(found.values, rows)
    for content, n in ((first.content, 2), (None, 3), (b"torn", 3)):
        other = OutcomesInMemory(5)
        other.restore(content, n)
        assert other.why_not


def test_a_damaged_file_is_none(tmp_path: Path) -> None:
    """Torn by a crash of the machine, of another kind, or not there."""
    content = kept(np.ones((2, 100), bool)).content
    for torn in (b"", content[:60], content[:-30], b"PK\x03\x04 and no more"):
        assert outcomes_in(torn) is None
    assert read_outcomes(tmp_path, 3) is None
