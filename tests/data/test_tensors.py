"""Data as tensors: shapes, splits, digests, and who may see the test part."""

from __future__ import annotations

import gzip
import struct

import lightning
import numpy as np
import pytest
import torch

from sweep.data.catalog import IDX_FILES
from sweep.data.tensors import (
    Batches,
    Split,
    epoch_order,
    load_final_data,
    load_search_data,
)
from sweep.errors import ConfigError, DataError, SealedTestSplitError
from sweep.training.mlp import MLPClassifier

# Lightning's own use of torch's pytree, once per Trainer.
quiet_lightning = pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")

CUSTOM = """
import numpy as np, torch
x = np.arange(120, dtype=np.float64).reshape(40, 3)
y = torch.arange(40) % 4
def make(): return {"train": (x, y), "val": (x[:8], y[:8].numpy()), "test": (x[8:20], y[8:20])}
def small(): return {"train": (x, y)}
def lists(): return {"train": ([[0.1, 0.1]] * 20, [0, 1] * 10)}
def pair(): return x, y
def crash(): raise RuntimeError("no disk")
def lonely(): return {"train": x}
def uneven(): return {"train": (x, y[1:])}
def flat(): return {"train": (x[:, 0], y)}
def real(): return {"train": (x, x[:, 0])}
def negative(): return {"train": (x, -y)}
def endless(): return {"train": (x / 0.0, y)}
def one(): return {"train": (x[:1], y[:1])}
def other_shape(): return {"train": (x, y), "val": (x[:, :2], y)}
def words(): return {"train": (["a", "b"], y)}
"""


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    monkeypatch.delenv("SWEEP_DATA_DIR", raising=False)


@pytest.fixture
def custom(tmp_path, monkeypatch):
    (tmp_path / "own_data.py").write_text(CUSTOM)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.fixture
def small_set(tmp_path):
    """A folder with 120 training images in MNIST's format, and no test files."""
    pixels = np.random.default_rng(0).integers(0, 256, (120, 28, 28), np.uint8)
    classes = np.arange(120, dtype=np.uint8) % 10
    for file, array in zip(IDX_FILES["train"], (pixels, classes), strict=True):
        header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        (tmp_path / file).write_bytes(gzip.compress(header + array.tobytes()))
    return tmp_path


def rows(*splits: Split) -> list[tuple[float, ...]]:
    table = [torch.cat([s.x.flatten(1), s.y.unsqueeze(1)], dim=1) for s in splits]
    return sorted(map(tuple, torch.cat(table).tolist()))


# --- splits


def test_digits_have_the_documented_shapes_and_ranges():
    """Digits are (n, 1, 8, 8) float32 from 0 to 1, with int64 classes."""
    data = load_search_data("digits", None, 0)
    assert data.train.x.shape == (1347, 1, 8, 8)
    assert data.val.x.shape == (270, 1, 8, 8)
    assert (data.train.x.dtype, data.train.y.dtype) == (torch.float32, torch.int64)
    assert (float(data.train.x.min()), float(data.train.x.max())) == (0.0, 1.0)
    assert data.info.feature_shape == (1, 8, 8)
    assert (data.info.n_classes, data.info.n_train, data.info.n_val) == (10, 1347, 270)


def test_mean_and_std_are_of_the_training_values():
    """mean and std are those of the training pixels alone, computed in float64."""
    data = load_search_data("digits", None, 0)
    pixels = data.train.x.numpy().astype(np.float64)
    assert data.info.mean == pytest.approx(pixels.mean(), rel=1e-13)
    assert data.info.std == pytest.approx(pixels.std(), rel=1e-13)


def test_the_split_depends_on_the_seed_alone():
    """The same seed splits alike, another differently, and the digest tells them apart."""
    one, again, other = (load_search_data("digits", None, seed) for seed in (7, 7, 8))
    assert torch.equal(one.val.x, again.val.x)
    assert one.info == again.info
    assert not torch.equal(one.val.x, other.val.x)
    assert one.info.digest != other.info.digest
    assert len(one.info.digest) <= 36


def test_a_split_loses_and_doubles_nothing():
    """Training and validation of two seeds hold the same samples, and none of the test split."""
    one, other = (load_search_data("digits", None, seed) for seed in (7, 8))
    final = load_final_data("digits", None, 7)
    assert rows(one.train, one.val) == rows(other.train, other.val) == rows(final.train)
    assert len(rows(one.train, one.val, final.test)) == 1797
    assert not set(rows(one.train, one.val)) & set(rows(final.test))


def test_validation_is_stratified():
    """Every class has its share of validation, to one sample."""
    data = load_search_data("digits", None, 3)
    of_val = torch.bincount(data.val.y)
    of_all = of_val + torch.bincount(data.train.y)
    assert float((of_val - of_all * 270 / 1617).abs().max()) < 1


def test_mnist_is_55000_5000_10000(mnist_dir):
    """Real MNIST: the sizes, the shapes, and the mean and std that every textbook gives."""
    data = load_search_data("mnist", str(mnist_dir), 0)
    assert data.train.x.shape == (55_000, 1, 28, 28)
    assert data.val.x.shape == (5_000, 1, 28, 28)
    assert (data.info.mean, data.info.std) == pytest.approx((0.1307, 0.3081), abs=2e-4)
    assert data.info.source == str(mnist_dir)
    final = load_final_data("mnist", str(mnist_dir), 0)
    assert (len(final.train), len(final.test)) == (60_000, 10_000)
    assert final.test.y[:5].tolist() == [7, 2, 1, 0, 4]
    assert torch.equal(final.train.x[:100], data.train.x[:100])


def test_packing_does_not_change_the_digest(small_set):
    """The same pixels, gzipped or not, have the same digest; one other pixel changes it."""
    packed = load_search_data("mnist", str(small_set), 0).info
    images, labels = (small_set / file for file in IDX_FILES["train"])
    for path in (images, labels):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert load_search_data("mnist", str(small_set), 0).info == packed
    content = bytearray(images.with_suffix("").read_bytes())
    content[5000] ^= 1
    images.with_suffix("").write_bytes(content)
    assert load_search_data("mnist", str(small_set), 0).info.digest != packed.digest


def test_a_search_needs_no_test_file(small_set):
    """A search loads from a folder without test files; the final training does not."""
    assert len(load_search_data("mnist", str(small_set), 0).val) == 10
    with pytest.raises(DataError, match="t10k-images"):
        load_final_data("mnist", str(small_set), 0)


def test_the_test_split_is_sealed():
    """Asking search data for the test split raises and says who may."""
    with pytest.raises(SealedTestSplitError, match="sweep train"):
        _ = load_search_data("digits", None, 0).test


def test_final_data_are_training_then_validation():
    """Final training data begin with the search's training samples and end with validation."""
    search, final = load_search_data("digits", None, 5), load_final_data("digits", None, 5)
    assert torch.equal(final.train.x, torch.cat([search.train.x, search.val.x]))
    assert torch.equal(final.train.y, torch.cat([search.train.y, search.val.y]))
    assert (final.info.n_train, final.info.n_val) == (1617, 0)
    assert final.info.digest != search.info.digest


def test_data_move_to_a_device():
    """`.to` moves every tensor and keeps the numbers beside them."""
    search = load_search_data("digits", None, 0).to("meta")
    final = load_final_data("digits", None, 0).to("meta")
    for split in (search.train, search.val, final.train, final.test):
        assert (split.x.device.type, split.y.device.type) == ("meta", "meta")
    assert search.info.mean == load_search_data("digits", None, 0).info.mean


def test_data_that_are_there_are_not_copied():
    """`.to` the device where the data lie keeps the same memory."""
    data = load_search_data("digits", None, 0)
    assert data.to("cpu").train.x.data_ptr() == data.train.x.data_ptr()


# --- data of the user's


def test_a_function_of_the_users_is_data(custom):
    """`module:function` gives training, validation and test samples, used as they are."""
    data = load_search_data("own_data:make", None, 0)
    assert data.train.x[1].tolist() == [3.0, 4.0, 5.0]
    assert (data.train.x.dtype, data.train.y.dtype) == (torch.float32, torch.int64)
    assert (len(data.train), len(data.val)) == (40, 8)
    assert (data.info.source, data.info.n_classes) == ("own_data:make", 4)
    assert data.info.mean == pytest.approx(59.5)
    final = load_final_data("own_data:make", None, 0)
    assert (len(final.train), len(final.test)) == (48, 12)


def test_validation_is_split_off_where_none_is_given(custom):
    """Without "val", a tenth of every class of "train" becomes validation, by seed."""
    one, other = (load_search_data("own_data:small", None, seed) for seed in (0, 1))
    assert torch.bincount(one.val.y).tolist() == [1, 1, 1, 1]
    assert rows(one.train, one.val) == rows(other.train, other.val)
    assert rows(one.val) != rows(other.val)


def test_lists_will_do(custom):
    """Plain lists are arrays too, and values that are all equal have a std that divides."""
    data = load_search_data("own_data:lists", None, 0)
    assert data.train.x.shape == (18, 2)
    assert data.info.std == 1.0


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("no_such_module:make", ConfigError, "cannot be imported: No module named"),
        ("own_data:none", ConfigError, "module own_data has no 'none'"),
        (":make", ConfigError, "cannot be imported"),
        (
            "own_data:pair",
            ConfigError,
            r'mapping with "train".* each a pair \(x, y\) .* but got tuple',
        ),
        ("own_data:crash", DataError, "raised RuntimeError: no disk"),
        ("own_data:lonely", ConfigError, r'"train" must be a pair \(x, y\)'),
        ("own_data:words", ConfigError, r'"train" must be a pair \(x, y\)'),
        (
            "own_data:uneven",
            ConfigError,
            r"x \(n, ...\) and y \(n,\), but got \(40, 3\) and \(39,\)",
        ),
        ("own_data:flat", ConfigError, r"but got \(40,\) and \(40,\)"),
        ("own_data:real", ConfigError, "integers from 0, but got"),
        ("own_data:negative", ConfigError, "integers from 0, but got"),
        ("own_data:endless", ConfigError, "NaN or infinite"),
        ("own_data:one", ConfigError, "1 samples are too few"),
        ("own_data:other_shape", ConfigError, r"different shapes, \(3,\) and \(2,\)"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_faults_of_the_users_function_are_one_line(custom, name, error, message):
    """What a function of the user's does wrong is said in one line that names it."""
    with pytest.raises(error, match=message) as caught:
        load_search_data(name, None, 0)
    assert name in str(caught.value)


def test_final_training_needs_the_users_test_split(custom):
    """Without "test" a search works and the final training says what is missing."""
    with pytest.raises(ConfigError, match='own_data:small gives no "test"'):
        load_final_data("own_data:small", None, 0)


# --- minibatches


def test_an_order_is_a_permutation_of_its_seed_and_epoch():
    """epoch_order is a permutation that (seed, epoch) decides."""
    order = epoch_order(3, 4, 1000)
    assert order.dtype == torch.int64
    assert torch.equal(order.sort().values, torch.arange(1000))
    assert torch.equal(order, epoch_order(3, 4, 1000))
    assert not torch.equal(order, epoch_order(3, 5, 1000))
    assert not torch.equal(order, epoch_order(4, 4, 1000))


def test_an_order_leaves_the_global_generator_alone():
    """Drawing an order does not move torch's global random state."""
    before = torch.get_rng_state()
    epoch_order(0, 0, 10)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("n", "batch_size", "sizes"), [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 9, [3])]
)
@pytest.mark.parametrize("seed", [None, 0])
def test_batches_cover_every_sample_once(n, batch_size, sizes, seed):
    """Minibatches hold each sample once; the last holds what is left; len() counts them."""
    split = Split(torch.arange(n * 2.0).reshape(n, 2), torch.arange(n))
    batches = Batches(split, batch_size, seed)
    got = list(batches)
    assert [len(y) for _, y in got] == sizes
    assert len(batches) == len(sizes)
    y = torch.cat([y for _, y in got])
    x = torch.cat([x for x, _ in got])
    order = torch.arange(n) if seed is None else epoch_order(seed, 0, n)
    assert torch.equal(y, order)
    assert torch.equal(x, split.x[order])


def test_set_epoch_counts_from_the_first_epoch():
    """Epoch e of a trial that started in population epoch s has the order of s + e, each time."""
    split = Split(torch.zeros(50, 1), torch.arange(50))
    batches = Batches(split, 50, seed=1, first_epoch=6)
    batches.set_epoch(2)
    for _ in range(2):
        ((_, y),) = batches
        assert torch.equal(y, epoch_order(1, 8, 50))


def test_batches_in_order_copy_nothing():
    """Without a seed minibatches are views."""
    split = Split(torch.zeros(50, 1), torch.arange(50))
    first, second = Batches(split, 25)
    assert first[0].data_ptr() == split.x.data_ptr()
    assert second[1].data_ptr() == split.y[25:].data_ptr()


def test_a_batch_of_none_is_refused():
    """batch_size 0 is a ValueError that names it."""
    with pytest.raises(ValueError, match="batch_size must be at least 1, but got 0"):
        Batches(Split(torch.zeros(5, 1), torch.arange(5)), 0)


class Recording(MLPClassifier):
    """Notes the classes of the minibatches that it was trained on, by epoch."""

    def training_step(self, batch, batch_idx):
        self.seen = getattr(self, "seen", {})
        self.seen.setdefault(self.current_epoch, []).append(batch[1])
        return super().training_step(batch, batch_idx)


def trainer(folder, max_epochs):
    return lightning.Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
    )


@quiet_lightning
def test_a_trainer_takes_batches_and_sets_their_epoch(tmp_path):
    """A Trainer trains on Batches as they are, in the order of each epoch, also after a resume."""
    data = load_search_data("digits", None, 0)
    val = Batches(data.val, 128)

    def fit(epochs, resume_from=None):
        batches = Batches(data.train, 64, seed=9, first_epoch=2)
        model = Recording(
            64, hidden=[32], lr=0.1, input_mean=data.info.mean, input_std=data.info.std
        )
        loop = trainer(tmp_path, epochs)
        loop.fit(model, batches, val, ckpt_path=resume_from)
        assert loop.train_dataloader is batches
        return loop, model.seen

    first, seen = fit(2)
    first.save_checkpoint(tmp_path / "two.ckpt")
    last, seen_later = fit(3, tmp_path / "two.ckpt")
    assert sorted(seen) == [0, 1]
    assert sorted(seen_later) == [2]
    for epoch, classes in (seen | seen_later).items():
        order = epoch_order(9, 2 + epoch, len(data.train))
        assert torch.equal(torch.cat(classes), data.train.y[order])
    assert last.callback_metrics["val_acc"] > 0.6


@quiet_lightning
def test_a_trainer_tests_on_batches(tmp_path):
    """Trainer.test sees every sample of the test split once, in order."""
    data = load_final_data("digits", None, 0)
    model = MLPClassifier(64, hidden=[])
    (metrics,) = trainer(tmp_path, 1).test(model, Batches(data.test, 100), verbose=False)
    accuracy = (model(data.test.x).argmax(1) == data.test.y).float().mean()
    assert metrics["test_acc"] == pytest.approx(float(accuracy))
