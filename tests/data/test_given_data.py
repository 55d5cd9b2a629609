"""What a user's data function may return for a module of the user's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from sweep.data.rows import GivenData
from sweep.errors import ConfigError, SealedTestSplitError

X = torch.arange(40.0).reshape(20, 2)


def data(train: Any, seed: int = 0, *, has_test: bool = False, **others: Any) -> GivenData:
    """The data of a function that gives this."""
    return GivenData.of("own:f", {"train": train, **others}, seed, has_test=has_test)


def first(given: GivenData, part: str = "train") -> Any:
    """The first minibatch of four."""
    return next(iter(given.fit_arguments(4)[f"{part}_dataloaders"]))


@pytest.mark.parametrize(
    "rows",
    [
        X,
        (X, X.mean(1)),
        (X.long(), X[:, 0].long()),
        {"a": X, "b": (X, X.bool())},
        (X.numpy(), X[:, 0].numpy()),
        [X, X],
    ],
)
def test_minibatches_have_the_form_of_the_rows(rows: Any) -> None:
    """Each tensor in its place, of its type, and the same rows of all."""
    batch = first(data(rows))

    def check(got: Any, given: Any) -> None:
        if isinstance(given, dict):
            assert got.keys() == given.keys()
            for key in given:
                check(got[key], given[key])
        elif isinstance(given, list | tuple):
            for one, other in zip(got, given, strict=True):
                check(one, other)
        else:
            assert got.shape == (4, *given.shape[1:])
            assert got.dtype == torch.as_tensor(given).dtype

    check(batch, rows)


def test_the_order_of_an_epoch_is_the_seeds() -> None:
    """Each epoch another one, the same for the same seed; a Dataset's is that of tensors."""
    tensors, dataset = data((X, X), val=X), data(TensorDataset(X, X), val=X)
    orders = []
    for given in (tensors, dataset):
        loader = given.fit_arguments(20, first_epoch=1)["train_dataloaders"]
        epochs = []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            epochs.append(next(iter(loader))[0][:, 0].tolist())
        orders.append(epochs)
    assert orders[0] == orders[1]
    assert orders[0][0] != orders[0][1]
    later = tensors.fit_arguments(20, first_epoch=2)["train_dataloaders"]
    assert next(iter(later))[0][:, 0].tolist() == orders[0][1]


def test_a_tenth_is_for_validation() -> None:
    """Rows that are not trained on; a loader's data are not divided."""
    given = data((X, X))
    assert (given.info.n_train, given.info.n_val) == (18, 2)
    train = {tuple(row) for row in given.train[0].tolist()}
    assert train.isdisjoint({tuple(row) for row in given.val[0].tolist()})
    assert len(data(TensorDataset(X)).val) == 2
    assert data(DataLoader(TensorDataset(X), 4)).val is None


def test_streams_are_taken_as_they_are() -> None:
    """Order and size are the user's."""

    class Stream(IterableDataset[int]):
        def __iter__(self) -> Any:
            return iter(range(6))

    assert first(data(Stream(), val=None)).tolist() == [0, 1, 2, 3]
    loader = DataLoader(TensorDataset(X), 5)
    assert data(loader).fit_arguments(4)["train_dataloaders"] is loader


def test_the_test_part_is_sealed_in_a_search() -> None:
    """It is opened after the choice, where train and validation are one."""
    with pytest.raises(SealedTestSplitError):
        data((X, X), test=(X, X)).test_arguments()
    final = data((X, X), test=(X, X), has_test=True).joined()
    assert (len(final.train[0]), final.val) == (20, None)
    assert len(final.test_arguments()["dataloaders"]) == 1
    assert len(data(TensorDataset(X), has_test=True).joined().train) == 20


def test_double_numbers_become_the_default_type() -> None:
    """numpy's default is not torch's."""
    assert first(data(np.ones((20, 2)))).dtype == torch.float32


@pytest.mark.parametrize(
    ("train", "part"),
    [
        (None, 'gives no "train"'),
        ("text", "must be tensors or arrays"),
        ((X, X[:3]), "the same number of rows"),
        (3.0, "a single number has no rows"),
        (X[:0], "at least one"),
        (X[:1], "too few"),
    ],
)
def test_other_data_are_refused_in_one_line(train: Any, part: str) -> None:
    """The line says what may be given."""
    with pytest.raises(ConfigError) as caught:
        data(train)
    assert part in str(caught.value)
