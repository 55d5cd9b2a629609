"""Data that a user's function returns for a module of the user's: tensors of any form, Datasets
or loaders.

The function returns a mapping with "train", and optionally "val" and "test". Each is a tensor or
array, a tuple or dict of them with the same number of rows, a Dataset, or a loader. Values keep
their types, except that float64 becomes torch's default float type. Without "val", a tenth of
the rows of "train" is taken, chosen by the study's seed (stratified where the last part holds
classes); a loader is not divided.

Axes: n rows, B rows of a minibatch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    SequentialSampler,
    Subset,
)

from sweep.data.catalog import stratified_choice
from sweep.data.tensors import CUSTOM_VAL_FRACTION, EVALUATION_BATCH, epoch_order, share_of
from sweep.errors import ConfigError, SealedTestSplitError
from sweep.trial import DatasetInfo, derive_seed

Rows = Any
"""A tensor (n, ...), or a tuple, list or dict of such."""
Part = Any
"""Rows, a Dataset, a loader, or None."""


class GivenData:
    """The parts that a user's function returned; a `sweep.protocols.Data`.

    Args:
        train: What trials train on.
        val: What they are judged on; None: nothing.
        test: None: sealed, or not given.
        info: Name and size for MLflow.
        seed: Of the study: decides the order of minibatches.
    """

    def __init__(
        self, train: Part, val: Part, test: Part, info: DatasetInfo, seed: int = 0
    ) -> None:
        self.train, self.val, self.test = train, val, test
        self.info, self._seed = info, seed

    @classmethod
    def of(cls, name: str, given: Mapping[str, Any], seed: int, *, has_test: bool) -> GivenData:
        """The parts in `given`. Raises ConfigError for a missing or unusable one."""
        if given.get("train") is None:
            raise ConfigError(f'--data {name} gives no "train"')
        parts = {key: _part(name, key, given.get(key)) for key in ("train", "val", "test")}
        train, val = parts["train"], parts["val"]
        if val is None and not _is_loader(train):
            train, val = _divided(name, train, seed)
        info = _info(name, train, val)
        return cls(train, val, parts["test"] if has_test else None, info, seed)

    def fit_arguments(self, batch_size: int, first_epoch: int = 0) -> dict[str, Any]:
        """Training and validation loaders for `Trainer.fit`.

        Epoch e has the order of the study's epoch `first_epoch` + e, except in a user's loader.
        """
        train = _loader(self.train, batch_size, self._seed, first_epoch)
        val = None if self.val is None else _loader(self.val, EVALUATION_BATCH)
        return {"train_dataloaders": train, "val_dataloaders": val}

    def test_arguments(self) -> dict[str, Any]:
        """The test loader for `Trainer.test`. Raises SealedTestSplitError in a search."""
        if self.test is None:
            raise SealedTestSplitError("only `sweep train` opens a test split")
        return {"dataloaders": _loader(self.test, EVALUATION_BATCH)}

    def joined(self) -> GivenData:
        """Training and validation rows together, without validation; loaders stay as they are."""
        if self.val is None or _is_loader(self.train) or _is_loader(self.val):
            return self
        if isinstance(self.train, Dataset):
            both: Part = ConcatDataset([self.train, self.val])
        else:
            pairs = zip(_tensors(self.train), _tensors(self.val), strict=True)
            joined = map(torch.cat, pairs)
            both = _map(lambda _: next(joined), self.train)
        return GivenData(both, None, self.test, _info(self.info.name, both, None), self._seed)

    def tensors(self) -> None:
        """None: the engines for the built-in network need classes (see `sweep.data.tensors`)."""

    def to(self, device: torch.device | str) -> GivenData:
        """The same rows on `device`; a loader's batches are moved by Lightning."""
        train, val, test = (
            part
            if part is None or _is_loader(part) or isinstance(part, Dataset)
            else _map(lambda value: value.to(device), part)
            for part in (self.train, self.val, self.test)
        )
        return GivenData(train, val, test, self.info, self._seed)


class EpochOrder(Sampler[int]):
    """The order of n rows in each epoch: `epoch_order`, or as they are without a seed."""

    def __init__(self, n: int, seed: int, first_epoch: int) -> None:
        self._n, self._seed, self._first_epoch, self._epoch = n, seed, first_epoch, 0

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is epoch `epoch`, from 0. Lightning calls it."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._n

    def __iter__(self) -> Iterator[int]:
        # A generator: Lightning makes its iterator before it sets the epoch.
        yield from epoch_order(self._seed, self._first_epoch + self._epoch, self._n).tolist()


class RowBatches:
    """Minibatches of resident rows, each one `index_select`; a Trainer takes it as a DataLoader.

    Args:
        rows: Tensors (n, ...), in any structure; minibatches have the same structure.
        batch_size: B.
        order: Of each epoch; None: as they are.
    """

    batch_sampler = None
    """Lightning reads it on loaders with a `sampler`."""

    def __init__(self, rows: Rows, batch_size: int, order: EpochOrder | None = None) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, but got {batch_size}")
        self.rows, self.batch_size, self._order = rows, batch_size, order
        self.part = 0, 1
        """(rank, n): of n devices that share the rows."""

    @property
    def sampler(self) -> Sampler[int]:
        """Lightning calls its `set_epoch` as epochs begin."""
        return self._order or SequentialSampler(range(_n_rows(self.rows)))

    def __len__(self) -> int:
        return -(-_n_rows(self.rows) // (self.batch_size * self.part[1]))

    def __iter__(self) -> Iterator[Rows]:
        n = _n_rows(self.rows)
        order = torch.tensor([*self._order] if self._order else range(n))
        order = share_of(order, self.part)
        for start in range(0, len(order), self.batch_size):
            yield _map(partial(_selected, order[start : start + self.batch_size]), self.rows)


def _selected(rows: Tensor, value: Tensor) -> Tensor:
    return value.index_select(0, rows.to(value.device))


def _loader(part: Part, batch_size: int, seed: int | None = None, first_epoch: int = 0) -> Any:
    """A loader; without a seed it keeps the order."""
    if isinstance(part, IterableDataset):
        return DataLoader(part, batch_size)
    if _is_loader(part):
        return part
    n = _n_rows(part)
    order = None if seed is None else EpochOrder(n, seed, first_epoch)
    if isinstance(part, Dataset):
        return DataLoader(part, batch_size, sampler=order)
    return RowBatches(part, batch_size, order)


def _part(name: str, key: str, value: Any) -> Part:
    """A part in a usable form. Raises ConfigError."""
    if value is None or isinstance(value, Dataset) or _is_loader(value):
        return value
    try:
        rows = _map(_tensor, value)
        counts = {len(tensor) for tensor in _tensors(rows)}
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f'--data {name}: "{key}" must be tensors or arrays (one, a tuple or a dict of them), '
            f"a Dataset or a DataLoader, but: {error}"
        ) from error
    if len(counts) != 1 or counts == {0}:
        raise ConfigError(
            f'--data {name}: all parts of "{key}" must have the same number of rows, at least '
            f"one, but got {sorted(counts)}"
        )
    return rows


def _tensor(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        value = torch.as_tensor(np.asarray(value))
    if value.ndim == 0:
        raise ValueError("a single number has no rows")
    is_double = value.dtype == torch.float64
    return value.to(torch.get_default_dtype()) if is_double else value  # type: ignore[no-any-return]


def _is_loader(part: Part) -> bool:
    """Whether it decides itself over order and size: a loader or an IterableDataset."""
    if isinstance(part, Dataset):
        return isinstance(part, IterableDataset)
    is_rows = isinstance(part, Tensor | np.ndarray | Mapping | list | tuple | str | bytes)
    return not is_rows and hasattr(part, "__iter__")


def _map(function: Callable[[Any], Any], rows: Rows) -> Rows:
    """`function` of each tensor, in the same structure."""
    if isinstance(rows, Mapping):
        return {key: _map(function, value) for key, value in rows.items()}
    if isinstance(rows, list | tuple):
        return tuple(_map(function, value) for value in rows)
    return function(rows)


def _tensors(rows: Rows) -> list[Tensor]:
    found: list[Tensor] = []
    _map(found.append, rows)
    return found


def _n_rows(part: Part) -> int:
    """Rows, or samples of a Dataset."""
    sized: Any = part if isinstance(part, Dataset) else _tensors(part)[0]
    return len(sized)


def _divided(name: str, train: Part, seed: int) -> tuple[Part, Part]:
    """A tenth of the rows for validation."""
    is_dataset = isinstance(train, Dataset)
    n = _n_rows(train)
    n_val = max(1, round(n * CUSTOM_VAL_FRACTION))
    if n_val >= n:
        raise ConfigError(f"--data {name}: {n} samples are too few to split off validation")
    labels = np.zeros(n, dtype=np.int64) if is_dataset else _labels(train)
    val = stratified_choice(labels, n_val, derive_seed(seed, "split"))
    rest = np.delete(np.arange(n), val)
    if is_dataset:
        return Subset(train, rest.tolist()), Subset(train, val.tolist())
    return (
        _map(lambda value: value[torch.from_numpy(rest)], train),
        _map(lambda value: value[torch.from_numpy(np.asarray(val))], train),
    )


def _labels(rows: Rows) -> Any:
    """The classes to stratify by: the last tensor, if it holds a few whole numbers."""
    last = _tensors(rows)[-1]
    is_classes = last.ndim == 1 and not last.is_floating_point() and not last.is_complex()
    values = last.long().cpu().numpy() if is_classes else np.zeros(len(last), dtype=np.int64)
    return values if len(np.unique(values)) <= len(values) // 20 else np.zeros_like(values)


def _info(name: str, train: Part, val: Part) -> DatasetInfo:
    """Name, size and digest; loaders and Datasets are told by their class and length."""
    digest = hashlib.blake2b(name.encode(), digest_size=16)
    shape: tuple[int, ...] = ()
    counts = []
    for part in (train, val):
        if part is None or _is_loader(part) or isinstance(part, Dataset):
            is_sized = hasattr(part, "__len__") and not isinstance(part, IterableDataset)
            n = len(part) if is_sized else 0
            digest.update(f"{type(part).__name__} {n}".encode())
            counts.append(n)
            continue
        for tensor in _tensors(part):
            digest.update(str(tensor.dtype).encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        counts.append(_n_rows(part))
        shape = tuple(_tensors(part)[0].shape[1:])
    return DatasetInfo(name, name, digest.hexdigest(), shape, 0, counts[0], counts[1])
