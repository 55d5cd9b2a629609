"""Data on the device: tensors, seeded splits, and minibatches without a DataLoader.

A small data set fits a device as a whole (MNIST: 188 MB as float32), so a minibatch is one
`index_select` there; a DataLoader's workers and per-sample Python cost more than the training
step of a small network.

`package.module:function` names a function of the user's. Called without arguments, it returns a
mapping with "train", and optionally "val" and "test", each a pair (x, y) of arrays or tensors:
x (n, *sample shape) numbers, used unchanged; y (n,) integer classes from 0. Without "val", a
stratified tenth of "train" is taken.

Axes: n samples, B samples of a minibatch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import SequentialSampler

from sweep.data import catalog as datasets
from sweep.errors import ConfigError, DataError, SealedTestSplitError
from sweep.loading import import_object, one_line, raised_by_user_code
from sweep.trial import DatasetInfo, derive_seed

CUSTOM_VAL_FRACTION = 0.1
"""Share of "train" used for validation if a user's function gives none."""
EVALUATION_BATCH = 4096
"""Samples of a validation or test minibatch: bounded memory; results do not depend on it."""


def epoch_order(seed: int, epoch: int, n: int) -> Tensor:
    """Order of the n samples in an epoch: (n,) int64 permutation, on the CPU.

    torch's `randperm` seeded with derive_seed(seed, "order", epoch): the same for every device.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
    return torch.randperm(n, generator=generator)


def share_of(order: Tensor, part: tuple[int, int]) -> Tensor:
    """The samples of one of several devices: each n-th of the order, (rank, n) in `part`.

    All shares are equally long: the first samples come twice if n does not divide their number.
    """
    rank, n = part
    return torch.cat([order, order[: -len(order) % n]])[rank::n]


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Samples and their classes."""

    x: Tensor
    """(n, *feature_shape) float32; images of the built-in sets are in [0, 1]."""
    y: Tensor
    """(n,) int64, from 0."""

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device | str) -> Split:
        """The same split on `device`; no copy if it is there already."""
        return Split(self.x.to(device), self.y.to(device))


@dataclass(frozen=True, slots=True, eq=False)
class TensorData:
    """A data set as tensors on one device; a `sweep.protocols.Data`."""

    train: Split
    val: Split | None
    """None: `train` includes the validation samples (in the final training)."""
    info: DatasetInfo
    seed: int = 0
    """Seed of the study: decides the order of minibatches."""
    test_split: Split | None = field(default=None, repr=False)
    """None: sealed. Read it as `test`."""

    @property
    def test(self) -> Split:
        """The test split. Raises SealedTestSplitError in a search."""
        if self.test_split is None:
            raise SealedTestSplitError(
                "a search sees train and validation only: "
                "the test split is opened by `sweep train`, after the choice"
            )
        return self.test_split

    @property
    def judged(self) -> Split:
        """The validation split; without one, a single training sample as a placeholder."""
        return self.val or Split(self.train.x[:1], self.train.y[:1])

    @property
    def n_features(self) -> int:
        """F, the values of one sample."""
        return math.prod(self.info.feature_shape)

    def widths(self, hidden: Sequence[int]) -> tuple[int, ...]:
        """Units of all layers of a network with these hidden ones: (F, *hidden, C)."""
        return (self.n_features, *hidden, self.info.n_classes)

    def order(self, epoch: int) -> Tensor:
        """Order of the training samples in population epoch `epoch`: (n,) int64, on the CPU."""
        return epoch_order(self.seed, epoch, len(self.train))

    def fit_arguments(self, batch_size: int, first_epoch: int = 0) -> dict[str, Any]:
        """Training and validation minibatches of a trial that began in epoch `first_epoch`."""
        train = Batches(self.train, batch_size, self.seed, first_epoch)
        val = Batches(self.val, EVALUATION_BATCH) if self.val else None
        return {"train_dataloaders": train, "val_dataloaders": val}

    def test_arguments(self) -> dict[str, Any]:
        """Test minibatches, in order. Raises SealedTestSplitError in a search."""
        return {"dataloaders": Batches(self.test, EVALUATION_BATCH)}

    def tensors(self) -> TensorData:
        """The data itself: its tensors are resident."""
        return self

    def to(self, device: torch.device | str) -> TensorData:
        """The same data on `device`; no copy if it is there already."""
        moved = [split and split.to(device) for split in (self.train, self.val, self.test_split)]
        return TensorData(moved[0] or self.train, moved[1], self.info, self.seed, moved[2])


def load_search_data(name: str, data_dir: str | None, seed: int) -> TensorData:
    """Training and validation samples of a data set, on the CPU; test files are not opened.

    Args:
        name: A name in `sweep.data.catalog.CATALOG`, or `package.module:function`.
        data_dir: Folder of the files; None: SWEEP_DATA_DIR, else the user's cache.
        seed: Of the study; the choice of validation samples depends on it alone.

    Raises:
        ConfigError: An unknown name, a function that cannot be imported, or unusable data of a
            user's function.
        DataError: The data cannot be fetched, or is damaged; the user's function raised.
        DiskError: The cache folder cannot be written.
    """
    train, val, _ = _splits(name, data_dir, seed)
    return TensorData(train, val, _info(name, data_dir, train, val, len(val)), seed)


def load_final_data(
    name: str, data_dir: str | None, seed: int, *, keeps_val: bool = False
) -> TensorData:
    """Training and validation samples together, and the test split: for `sweep train` alone.

    Arguments and errors are those of `load_search_data`; a user's function without "test" is a
    ConfigError. The digest of its info covers the test split, too, and n_val is 0. With
    `keeps_val` the two stay apart, as in the search.
    """
    train, val, test = _splits(name, data_dir, seed, has_test=True)
    if keeps_val:
        return TensorData(train, val, _info(name, data_dir, train, val, len(val)), seed, test)
    both = Split(torch.cat([train.x, val.x]), torch.cat([train.y, val.y]))
    return TensorData(both, None, _info(name, data_dir, both, test, 0), seed, test)


class Batches:
    """Minibatches (x, y) of a split, on its device: a Trainer takes it as a DataLoader.

    The last minibatch may be smaller. Lightning sets the epoch, also after a resume; another loop
    calls `set_epoch`.

    Args:
        split: The samples; minibatches are x (B, *feature_shape) and y (B,).
        batch_size: B.
        seed: Of the study: epoch e has the order epoch_order(seed, first_epoch + e, n).
            None: in order, every time; minibatches are then views.
        first_epoch: The population epoch that counts as epoch 0.
    """

    batch_sampler = None
    """Lightning reads it on loaders with a `sampler`."""

    def __init__(
        self, split: Split, batch_size: int, seed: int | None = None, first_epoch: int = 0
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, but got {batch_size}")
        self.split, self.batch_size = split, batch_size
        self.part = 0, 1
        """(rank, n): of n devices that share the samples."""
        self._seed, self._first_epoch, self._epoch = seed, first_epoch, 0

    @property
    def sampler(self) -> Batches | SequentialSampler:
        """Like a DataLoader's: Lightning calls its `set_epoch` as epochs begin."""
        return SequentialSampler(range(len(self.split))) if self._seed is None else self

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is epoch `epoch`, from 0."""
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.split) // (self.batch_size * self.part[1]))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # A generator: Lightning makes its iterator before it sets the epoch, and the order is
        # drawn only when the first minibatch is asked for.
        x, y = self.split.x, self.split.y
        if self._seed is None and self.part[1] == 1:
            for start in range(0, len(y), self.batch_size):
                yield x[start : start + self.batch_size], y[start : start + self.batch_size]
            return
        order = torch.arange(len(y))
        if self._seed is not None:
            order = epoch_order(self._seed, self._first_epoch + self._epoch, len(y))
        order = share_of(order, self.part).to(y.device)
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            yield x.index_select(0, chosen), y.index_select(0, chosen)


def _splits(
    name: str, data_dir: str | None, seed: int, *, has_test: bool = False
) -> tuple[Split, Split, Split]:
    """Training, validation and test samples; an empty test split unless `has_test`."""
    test = Split(torch.empty(0), torch.empty(0))
    if datasets.is_custom(name):
        given = _call(name)
        train = _custom_split(name, given, "train")
        test = _custom_split(name, given, "test") if has_test else test
        if given.get("val") is not None:
            return train, _custom_split(name, given, "val"), test
        rows = _train_val_rows(name, train.y.numpy(), CUSTOM_VAL_FRACTION, seed)
        train, val = (Split(train.x[chosen], train.y[chosen]) for chosen in rows)
        return train, val, test
    spec = datasets.CATALOG[name]
    images, labels = datasets.load_arrays(name, data_dir, "train")
    rows = _train_val_rows(name, labels, spec.val_fraction, seed)
    # Rows are chosen as bytes: as float32, training and validation would be held twice.
    train, val = (_image_split(images[chosen], labels[chosen], spec.max_value) for chosen in rows)
    if has_test:
        images, labels = datasets.load_arrays(name, data_dir, "test")
        test = _image_split(images.copy(), labels, spec.max_value)
    return train, val, test


def _image_split(images: Any, labels: Any, max_value: int) -> Split:
    """(n, H, W) and (n,) uint8 arrays as a Split of x (n, 1, H, W)."""
    x = torch.from_numpy(images).unsqueeze(1).float().div_(max_value)
    return Split(x, torch.from_numpy(labels.astype(np.int64)))


def _train_val_rows(name: str, labels: Any, fraction: float, seed: int) -> tuple[Any, Any]:
    n_val = max(1, round(len(labels) * fraction))
    if n_val >= len(labels):
        raise ConfigError(
            f"--data {name}: {len(labels)} samples are too few to split off validation"
        )
    val = datasets.stratified_choice(labels, n_val, derive_seed(seed, "split"))
    return np.delete(np.arange(len(labels)), val), val


def _call(name: str) -> Mapping[str, Any]:
    """The mapping from the user's function. Raises ConfigError, DataError."""
    function = import_object(name, "data")
    try:
        given = function()
    except BaseException as error:  # also sys.exit
        told = one_line(raised_by_user_code(error), name)
        raise DataError(f"{name} raised {told}") from error
    if not isinstance(given, Mapping):
        raise ConfigError(
            f'--data {name} must return a mapping with "train", and optionally "val" and "test", '
            f"each a pair (x, y) of arrays or tensors, but got {type(given).__name__}"
        )
    return given


def _custom_split(name: str, given: Mapping[str, Any], key: str) -> Split:
    try:
        x, y = (torch.as_tensor(part).cpu() for part in given[key])
    except KeyError:
        raise ConfigError(f'--data {name} gives no "{key}": a pair (x, y) is needed') from None
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f'--data {name}: "{key}" must be a pair (x, y) of arrays: {error}'
        ) from error
    if y.ndim != 1 or x.ndim < 2 or len(x) != len(y) or not len(y):
        shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise ConfigError(
            f'--data {name}: "{key}" must be x (n, ...) and y (n,), but got {shapes}'
        )
    if y.is_floating_point() or y.is_complex() or y.min() < 0:
        got = f"{str(y.dtype).removeprefix('torch.')} from {y.real.min():.6g}"
        raise ConfigError(
            f'--data {name}: y of "{key}" must be classes, integers from 0, but got {got}'
        )
    return Split(x.float().contiguous(), y.long().contiguous())


def _mean_std(name: str, x: Tensor) -> tuple[float, float]:
    # In float64, by pieces that stay in a CPU's cache: the whole of MNIST would take 345 MB.
    values, length = x.flatten(), 2**18
    pieces = [values[start : start + length] for start in range(0, len(values), length)]
    mean = sum(float(piece.double().sum()) for piece in pieces) / len(values)
    squares = sum(float(piece.double().sub_(mean).square_().sum()) for piece in pieces)
    std = math.sqrt(squares / len(values)) if math.isfinite(squares) else math.nan
    if not math.isfinite(std):
        raise ConfigError(f"--data {name}: x must be finite, but holds NaN or infinite values")
    return mean, 1.0 if values.min() == values.max() else std


def _info(name: str, data_dir: str | None, train: Split, other: Split, n_val: int) -> DatasetInfo:
    if train.x.shape[1:] != other.x.shape[1:]:
        shapes = f"{tuple(train.x.shape[1:])} and {tuple(other.x.shape[1:])}"
        raise ConfigError(f"--data {name}: samples of different shapes, {shapes}")
    mean, std = _mean_std(name, train.x)
    digest = hashlib.blake2b(digest_size=16)
    for tensor in (train.x, train.y, other.x, other.y):
        digest.update(tensor.numpy().data)
    if datasets.is_custom(name):
        source, n_classes = name, int(max(train.y.max(), other.y.max())) + 1
    else:
        spec = datasets.CATALOG[name]
        folder = None if spec.is_bundled else datasets.resolve_data_dir(data_dir)
        source, n_classes = str(folder or spec.source), spec.n_classes
    return DatasetInfo(
        name, source, digest.hexdigest(), tuple(train.x.shape[1:]), n_classes, len(train), n_val,
        mean=mean, std=std,
    )  # fmt: skip
