"""Data and process of the tests of resumed trials."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import pytest
import torch

from sweep.data.tensors import Split, TensorData, load_search_data


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterable[None]:
    """Networks this small train faster on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data() -> TensorData:
    """A part of digits."""
    whole = load_search_data("digits", None, 0)
    train = Split(whole.train.x[:200], whole.train.y[:200])
    val = Split(whole.val.x[:60], whole.val.y[:60])
    return dataclasses.replace(whole, train=train, val=val)
