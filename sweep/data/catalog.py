"""Data sets by name: their sources, the cache, and their files as arrays (no torch).

`digits` is a file of scikit-learn; `mnist` and `fashion_mnist` are four IDX files each, fetched
once into the user's cache folder, or read from a folder of the user (`--data-dir`,
`SWEEP_DATA_DIR`). numpy is imported late (0.15 s): `sweep --help` only needs the data sets' names.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from sweep.data.download import download
from sweep.data.idx import damaged, read_bytes, read_idx
from sweep.errors import ConfigError, DataError, must_be_one_of
from sweep.files.cache import default_cache_dir
from sweep.trial import derive_seed

if TYPE_CHECKING:
    from numpy import int64, uint8
    from numpy.typing import NDArray

SplitName = Literal["train", "test"]
DATA_DIR_VARIABLE = "SWEEP_DATA_DIR"
TIMEOUT_S = 30.0
"""Seconds without an answer after which the next mirror is tried."""

IDX_FILES: Mapping[SplitName, tuple[str, str]] = MappingProxyType(
    {
        "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
        "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
    }
)
"""Images and labels of each split. MNIST and its successors share these names."""


@dataclass(frozen=True, slots=True)
class DatasetSpec:
    """Description of a data set, independent of its files."""

    name: str
    title: str
    """One line for people."""
    source: str
    """Its home page, a URL."""
    license: str
    image_shape: tuple[int, int]
    """Height and width in pixels."""
    max_value: int
    """The value of a fully inked pixel; 0 is none."""
    n_classes: int
    val_fraction: float
    """Share of the training part used for validation."""
    mirrors: tuple[str, ...] = ()
    """URLs with a final slash, tried in this order; none: the data set is bundled."""
    md5: Mapping[str, str] = field(default_factory=dict)
    """File name -> MD5 of the published file."""

    @property
    def is_bundled(self) -> bool:
        """Whether it lies inside an installed package and is never downloaded."""
        return not self.mirrors


@dataclass(frozen=True, slots=True)
class DatasetStatus:
    """The files of a data set on this machine."""

    name: str
    title: str
    is_ready: bool
    """Whether every file exists; contents are verified on use."""
    location: str
    """The bundled file, or the folder for the files."""
    n_bytes: int
    """Size of the present files, in bytes."""
    missing: tuple[str, ...]
    """Names of the missing files."""


_DIGITS_TEST_FRACTION = 0.1
# 75/15/10: all trials of a search compete on validation, so it gets more than the test part. With
# 270 samples one is 0.37 points of accuracy (0.56 with 80/10/10).
_DIGITS_TEST_SEED = 0
# Not the study's seed: one study would train on samples in another's sealed test part.


def _images_28(name: str, title: str, license: str, md5: str, *urls: str) -> DatasetSpec:
    """MNIST or a successor: 60,000 + 10,000 images in four files; `md5` in their order."""
    files = (file for split in IDX_FILES.values() for file in split)
    source, *mirrors = urls
    return DatasetSpec(
        name, title, source, license, (28, 28), max_value=255, n_classes=10, val_fraction=1 / 12,
        mirrors=tuple(mirrors), md5=dict(zip(files, md5.split(), strict=True)),
    )  # fmt: skip


_SPECS = (
    DatasetSpec(
        "digits", "1,797 handwritten digits of 8x8 pixels, bundled with scikit-learn",
        "https://archive.ics.uci.edu/dataset/80", "CC BY 4.0", (8, 8), max_value=16, n_classes=10,
        val_fraction=1 / 6,
    ),
    _images_28(
        "mnist", "70,000 handwritten digits of 28x28 pixels (LeCun, Cortes, Burges)",
        "CC BY-SA 3.0",
        "f68b3c2dcbeaaa9fbdd348bbdeb94873 d53e105ee54ea40749a09fcbcd1e9432 "
        "9fb629c4189551a2d022fa330f9573f3 ec29112dd5afa0611ce80d1b7f02629c",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    _images_28(
        "fashion_mnist", "70,000 articles of clothing of 28x28 pixels (Zalando Research)", "MIT",
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d 25c81989df183df01b3e8a0aad5dffbe "
        "bef4ecab320f06d8554ea6380940ec79 bb300cfdad3c16e7a12a480ee83cd310",
        "https://github.com/zalandoresearch/fashion-mnist",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    ),
)  # fmt: skip
CATALOG: Mapping[str, DatasetSpec] = MappingProxyType({spec.name: spec for spec in _SPECS})
"""Data sets by name; the first is the default."""


MODULES_OWN = "module"
"""`--data` of a study whose module brings its own loaders."""


def dataset_names() -> tuple[str, ...]:
    """Names of the built-in data sets, the default first."""
    return tuple(CATALOG)


def is_custom(name: str) -> bool:
    """Whether `name` is a function or class of the user's, `package.module:name`."""
    return ":" in name


def spec_of(name: str) -> DatasetSpec:
    """The entry of CATALOG. Raises ConfigError with the nearest name for an unknown one."""
    if name not in CATALOG:
        fault = must_be_one_of("data", name, CATALOG)
        raise ConfigError(f"{fault}; a function of your own is package.module:function")
    return CATALOG[name]


def resolve_data_dir(data_dir: str | os.PathLike[str] | None) -> Path | None:
    """`data_dir`, else SWEEP_DATA_DIR, else None (the user's cache)."""
    chosen = data_dir or os.environ.get(DATA_DIR_VARIABLE)
    return Path(chosen).expanduser() if chosen else None


def status(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
) -> DatasetStatus:
    """The files of data set `name` on this machine; opens none. Raises ConfigError."""
    spec = spec_of(name)
    missing: tuple[str, ...] = ()
    if spec.is_bundled:
        found = [_digits_file()]
        location = str(_digits_file())
    else:
        folder = resolve_data_dir(data_dir) or _cache_folder(spec, cache_dir)
        paths = {file: _find(folder, spec, file) for file in spec.md5}
        found = [path for path in paths.values() if path]
        missing = tuple(file for file, path in paths.items() if path is None)
        location = str(found[0].parent if found else folder)
    n_bytes = sum(path.stat().st_size for path in found)
    return DatasetStatus(name, spec.title, not missing, location, n_bytes, missing)


def prepare(name: str, data_dir: str | os.PathLike[str] | None = None) -> None:
    """Make the files of `name` ready for workers.

    Downloads missing files into the user's cache, never into a folder of the user. Raises
    ConfigError, DataError or DiskError.
    """
    if is_custom(name) or name == MODULES_OWN or spec_of(name).is_bundled:
        return
    if folder := resolve_data_dir(data_dir):
        for file in CATALOG[name].md5:
            _find_or_raise(folder, CATALOG[name], file)
    else:
        fetch(name)


def fetch(
    name: str,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    mirrors: Sequence[str] | None = None,
    timeout_s: float = TIMEOUT_S,
    check: Sequence[SplitName] = ("train", "test"),
) -> Path:
    """Fetch missing or damaged files into the cache, and return their folder.

    Args:
        name: A data set of CATALOG.
        cache_dir: Cache folder; None: the user's.
        mirrors: URLs with a final slash, instead of the catalog's.
        timeout_s: Seconds without an answer after which the next mirror is tried.
        check: Splits whose cached files are verified (11 MB: 20 ms). Missing files of other
            splits are fetched, present ones are not opened.

    Raises:
        ConfigError: An unknown name.
        DataError: No mirror delivers a file.
        DiskError: The cache folder cannot be written.
    """
    spec = spec_of(name)
    if spec.is_bundled:
        return _digits_file().parent
    folder = _cache_folder(spec, cache_dir)
    order = list(spec.mirrors if mirrors is None else mirrors)
    to_check = {file for split in check for file in IDX_FILES[split]}
    for file, md5 in spec.md5.items():
        path = folder / file
        if path.is_file() and (file not in to_check or _md5(path) == md5):
            continue
        good = download(path, md5, order, timeout_s)
        # The next file starts at the mirror that answered: a dead one costs its timeout once.
        order = [good, *(mirror for mirror in order if mirror != good)]
    return folder


def load_arrays(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    split: SplitName = "train",
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    mirrors: Sequence[str] | None = None,
) -> tuple[NDArray[uint8], NDArray[uint8]]:
    """Images (n, height, width) and labels (n,) of one split, both uint8, as they are stored.

    Opens the files of `split` alone: "train" never reads a byte of the test files.

    Raises:
        ConfigError: An unknown name.
        DataError: A file is missing, damaged or of the wrong shape; the message names it.
        DiskError: The cache folder cannot be written.
    """
    spec = spec_of(name)
    if spec.is_bundled:
        return _load_digits(split)
    folder = resolve_data_dir(data_dir)
    if folder is None:
        folder = fetch(name, cache_dir=cache_dir, mirrors=mirrors, check=(split,))
    images_path, labels_path = (_find_or_raise(folder, spec, file) for file in IDX_FILES[split])
    _refuse_other_set(spec, labels_path)
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if images.shape[1:] != spec.image_shape:
        raise damaged(images_path, f"images must be {spec.image_shape}, got {images.shape[1:]}")
    if len(images) != len(labels) or not len(labels):
        raise damaged(labels_path, f"{len(labels)} labels for {len(images)} images")
    if labels.max() >= spec.n_classes:
        raise damaged(labels_path, f"label {labels.max()} where 0 to {spec.n_classes - 1} are")
    return images, labels


def stratified_choice(labels: NDArray[Any], n_chosen: int, seed: int) -> NDArray[int64]:
    """Ascending indices (n_chosen,) of samples, each class in proportion (largest remainder).

    Depends on (labels, n_chosen, seed) alone: NumPy guarantees a fixed stream for RandomState, but
    not for its newer generators (NEP 19).
    """
    import numpy as np

    random = np.random.RandomState([seed & 0xFFFFFFFF, seed >> 32])
    classes, counts = np.unique(labels, return_counts=True)
    quotas = counts * (n_chosen / len(labels))
    n_of_class = np.floor(quotas).astype(np.int64)
    n_left = n_chosen - int(n_of_class.sum())
    n_of_class[np.argsort(n_of_class - quotas, kind="stable")[:n_left]] += 1
    chosen = [
        random.permutation(np.flatnonzero(labels == label))[:n]
        for label, n in zip(classes, n_of_class, strict=True)
    ]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def _load_digits(split: SplitName) -> tuple[NDArray[uint8], NDArray[uint8]]:
    import numpy as np

    path = _digits_file()
    table = np.loadtxt(read_bytes(path).decode().splitlines(), np.uint8, delimiter=",")
    images, labels = table[:, :64].reshape(-1, 8, 8), table[:, 64]
    n_test = round(len(labels) * _DIGITS_TEST_FRACTION)
    is_test = np.zeros(len(labels), bool)
    is_test[stratified_choice(labels, n_test, derive_seed(_DIGITS_TEST_SEED, "test"))] = True
    rows = is_test if split == "test" else ~is_test
    return images[rows], labels[rows]


def _digits_file() -> Path:
    # Straight from the package's folder: 10 ms. `from sklearn.datasets import load_digits` reads
    # the same file and costs 1 to 1.7 s of imports, in every worker.
    package = importlib.util.find_spec("sklearn")
    folders = (package and package.submodule_search_locations) or ()
    for folder in folders:
        path = Path(folder, "datasets", "data", "digits.csv.gz")
        if path.is_file():
            return path
    raise DataError("digits is not where scikit-learn keeps it: reinstall scikit-learn")


def _cache_folder(spec: DatasetSpec, cache_dir: str | os.PathLike[str] | None) -> Path:
    return (Path(cache_dir) if cache_dir else default_cache_dir()) / spec.name


def _find(folder: Path, spec: DatasetSpec, file: str) -> Path | None:
    names = (file, file.removesuffix(".gz"))
    candidates = (inside / name for inside in (folder / spec.name, folder) for name in names)
    return next((path for path in candidates if path.is_file()), None)


def _find_or_raise(folder: Path, spec: DatasetSpec, file: str) -> Path:
    if path := _find(folder, spec, file):
        return path
    raise DataError(
        f"{folder} holds no {file} (nor {file.removesuffix('.gz')}, nor a folder {spec.name} "
        f"with it): name another folder with --data-dir, or none to download {spec.name}"
    )


def _refuse_other_set(spec: DatasetSpec, path: Path) -> None:
    """MNIST and Fashion-MNIST share file names: a mixed-up folder would train without a word."""
    digest = _md5(path)
    for other in CATALOG.values():
        if other is not spec and digest in other.md5.values():
            raise DataError(f"{path} belongs to {other.name}, not {spec.name}: see --data-dir")


def _md5(path: Path) -> str:
    try:
        return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
