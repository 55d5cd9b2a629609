"""Objects that hold the same have the same fingerprint, and no others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from sweep.training.likeness import fingerprint


def test_arrays_in_a_file_are_told_apart_by_place_and_content(tmp_path: Path) -> None:
    """A view of a file is known by its place; what was made of it, by what it holds."""
    file = tmp_path / "rows.npy"
    np.save(file, np.arange(12, dtype=np.float32).reshape(6, 2))
    rows, again = (np.load(file, mmap_mode="r") for _ in range(2))
    assert fingerprint(rows[:3]) == fingerprint(again[:3])
    others = [rows, rows[:3], rows[3:], rows[::2], rows.astype("float64"), rows + 1]
    assert len({fingerprint(other) for other in others}) == len(others)
    private = np.load(file, mmap_mode="c")
    before = fingerprint(private)
    private -= 1
    assert fingerprint(private) != before


def test_changed_tensors_are_other_tensors() -> None:
    """Small ones are looked at each time."""
    tensor = torch.arange(6.0)
    before = fingerprint([tensor])
    assert fingerprint([tensor.clone()]) == before
    tensor += 1
    assert fingerprint([tensor]) != before
