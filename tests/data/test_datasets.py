"""Which data sets there are, where their files are found, and how they are downloaded."""

from __future__ import annotations

import gzip
import hashlib
import os
import pty
import resource
import shutil
import struct
import subprocess
import sys
import termios
import time
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest

from sweep.data import catalog as datasets
from sweep.data.catalog import IDX_FILES, fetch, load_arrays, prepare, status, stratified_choice
from sweep.data.download import download
from sweep.errors import ConfigError, DataError, DiskError

TRAIN_IMAGES, TRAIN_LABELS = IDX_FILES["train"]
TEST_IMAGES, TEST_LABELS = IDX_FILES["test"]
CONTENT = np.random.default_rng(0).bytes(200_000)
CONTENT_MD5 = hashlib.md5(CONTENT).hexdigest()
CLOSED = "http://127.0.0.1:9/"  # the discard port: nothing listens there


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("SWEEP_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def images(n: int, height: int = 28, width: int = 28) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, height, width))


def labels(n: int) -> np.ndarray:
    return np.arange(n) % 10


def write_set(folder: Path, n: int = 40) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for image_file, label_file in IDX_FILES.values():
        (folder / image_file).write_bytes(gzip.compress(idx(images(n))))
        (folder / label_file).write_bytes(gzip.compress(idx(labels(n))))
    return folder


class CutHandler(SimpleHTTPRequestHandler):
    """Promises a whole file and hangs up after half of it."""

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        content = Path(self.translate_path(self.path)).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])


class SilentHandler(CutHandler):
    """Takes the request and says nothing for a while."""

    def do_GET(self) -> None:
        time.sleep(1.5)


@pytest.fixture
def remote(tmp_path) -> Path:
    folder = tmp_path / "remote"
    folder.mkdir()
    (folder / "file.gz").write_bytes(CONTENT)
    return folder


# --- the catalog


def test_every_downloaded_set_has_two_mirrors_and_four_checksums():
    """Each set that is downloaded has at least two mirrors and an MD5 for each IDX file."""
    files = {file for pair in IDX_FILES.values() for file in pair}
    for spec in datasets.CATALOG.values():
        if not spec.is_bundled:
            assert len(spec.mirrors) >= 2
            assert all(mirror.endswith("/") for mirror in spec.mirrors)
            assert set(spec.md5) == files
            assert all(len(md5) == 32 for md5 in spec.md5.values())


def test_the_default_comes_first():
    """The names begin with digits, the set that needs no download."""
    assert datasets.dataset_names() == ("digits", "mnist", "fashion_mnist")


@pytest.mark.parametrize("call", [load_arrays, fetch, status, prepare, datasets.spec_of])
def test_an_unknown_name_gets_the_nearest_one(call):
    """An unknown data set is a ConfigError that names the nearest one."""
    with pytest.raises(ConfigError, match=r"data must be one of .* but got 'mnits' .*mean mnist"):
        call("mnits")


def test_names_are_free_of_heavy_imports():
    """Importing sweep.data.catalog loads neither numpy nor pooch nor torch nor scikit-learn."""
    heavy = "{'numpy', 'pooch', 'torch', 'sklearn'}"
    code = f"import sys, sweep.data.catalog; print({heavy} & {{*sys.modules}})"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "set()"


# --- digits


def test_digits_are_those_of_scikit_learn():
    """Train and test together are scikit-learn's digits, each of them once."""
    from sklearn.datasets import load_digits

    theirs = load_digits()
    rows = np.column_stack([theirs.data, theirs.target]).astype(int)
    parts = [load_arrays("digits", None, split) for split in ("train", "test")]
    ours = np.concatenate([np.column_stack([x.reshape(len(x), 64), y]) for x, y in parts])
    assert sorted(map(tuple, ours.tolist())) == sorted(map(tuple, rows.tolist()))


def test_the_test_digits_are_a_fair_and_fixed_part():
    """The test part of digits holds 10 % of every class, to one sample, and never changes."""
    _, train = load_arrays("digits", None, "train")
    x, test = load_arrays("digits", None, "test")
    of_class = np.bincount(train) + np.bincount(test)
    assert len(test) == 180
    assert np.abs(np.bincount(test) - of_class * 180 / 1797).max() < 1
    assert hashlib.md5(x.tobytes()).hexdigest() == "889a267f55acead5c6b12fb5ec2e10e7"


def test_a_stratified_choice_is_seeded():
    """The same seed chooses the same samples, another seed others."""
    y = np.repeat(np.arange(7), 31)
    assert np.array_equal(stratified_choice(y, 50, 2**62 + 1), stratified_choice(y, 50, 2**62 + 1))
    assert not np.array_equal(stratified_choice(y, 50, 1), stratified_choice(y, 50, 2))


@pytest.mark.parametrize("n_chosen", [1, 6, 50, 216])
def test_a_stratified_choice_has_the_size_asked_for(n_chosen):
    """n distinct indices come out, in ascending order, each class within one of its share."""
    y = np.repeat(np.arange(7), 31)
    chosen = stratified_choice(y, n_chosen, 0)
    assert len(chosen) == n_chosen
    assert (np.diff(chosen) > 0).all()
    assert np.abs(np.bincount(y[chosen], minlength=7) - n_chosen / 7).max() < 1


# --- files in a folder of the user's


def test_the_real_mnist_is_read(mnist_dir):
    """The four original files give 60,000 and 10,000 images whose first labels are known."""
    x, y = load_arrays("mnist", mnist_dir)
    assert (x.shape, x.dtype, y.dtype) == ((60_000, 28, 28), np.uint8, np.uint8)
    assert y[:5].tolist() == [5, 0, 4, 1, 9]
    x, y = load_arrays("mnist", mnist_dir, "test")
    assert x.shape == (10_000, 28, 28)
    assert y[:5].tolist() == [7, 2, 1, 0, 4]


@pytest.mark.parametrize("inside", [".", "fashion_mnist"])
@pytest.mark.parametrize("is_packed", [True, False])
def test_files_are_found_in_the_folder_or_one_below_packed_or_not(tmp_path, inside, is_packed):
    """DIR/file.gz, DIR/file, DIR/<set>/file.gz and DIR/<set>/file are all found."""
    folder = write_set(tmp_path / inside)
    if not is_packed:
        for path in folder.glob("*.gz"):
            path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
            path.unlink()
    x, y = load_arrays("fashion_mnist", tmp_path)
    assert np.array_equal(x, images(40))
    assert np.array_equal(y, labels(40))


def test_train_needs_no_test_file(tmp_path):
    """A folder without any t10k file is enough for the training split."""
    folder = write_set(tmp_path)
    (folder / TEST_IMAGES).unlink()
    (folder / TEST_LABELS).unlink()
    assert len(load_arrays("mnist", folder)[1]) == 40
    with pytest.raises(DataError, match="holds no t10k-images"):
        load_arrays("mnist", folder, "test")


def test_the_environment_names_the_folder_too(tmp_path, monkeypatch):
    """SWEEP_DATA_DIR stands in for --data-dir, which wins over it."""
    monkeypatch.setenv("SWEEP_DATA_DIR", str(write_set(tmp_path / "small", 20)))
    assert len(load_arrays("mnist")[1]) == 20
    assert len(load_arrays("mnist", write_set(tmp_path / "other", 30))[1]) == 30
    prepare("mnist")


def test_a_folder_without_the_files_is_an_error(tmp_path):
    """A folder that holds nothing is named in an error, and nothing is downloaded into it."""
    for call in (load_arrays, prepare):
        with pytest.raises(DataError, match=rf"{tmp_path} holds no train-images.*--data-dir"):
            call("mnist", tmp_path)
    assert not any(tmp_path.iterdir())


def test_the_wrong_set_is_noticed(mnist_dir):
    """MNIST's files are refused as Fashion-MNIST, although they have the same names."""
    with pytest.raises(DataError, match="belongs to mnist, not fashion_mnist"):
        load_arrays("fashion_mnist", mnist_dir)


PACKED = gzip.compress(idx(images(40)))
DAMAGE = {
    "truncated": (TRAIN_IMAGES, PACKED[: len(PACKED) // 2], "compressed data ends too early"),
    "flipped checksum": (TRAIN_IMAGES, PACKED[:-8] + bytes(4) + PACKED[-4:], "not decompressible"),
    "flipped data": (TRAIN_IMAGES, PACKED[:500] + bytes(50) + PACKED[550:], "not decompressible"),
    "empty": (TRAIN_IMAGES, b"", "not IDX: it must begin with 00 00 08 03, got nothing"),
    "a web page": (TRAIN_LABELS, b"<!doctype html>", "not IDX: .* 00 00 08 01, got 3c 21 64 6f"),
    "header only": (TRAIN_LABELS, idx(labels(40))[:6], "not IDX"),
    "labels for images": (TRAIN_IMAGES, idx(labels(40)), "not IDX"),
    "too short": (TRAIN_IMAGES, idx(images(40))[:-1], "31359 bytes where .* needs 31360"),
    "too long": (TRAIN_LABELS, idx(labels(40)) + b"!", "41 bytes where .* needs 40"),
    "other shape": (TRAIN_IMAGES, idx(images(40, 27)), r"must be \(28, 28\), got \(27, 28\)"),
    "other number": (TRAIN_LABELS, idx(labels(39)), "39 labels for 40 images"),
    "wild label": (TRAIN_LABELS, idx(labels(40) + 2), "label 11 where 0 to 9"),
}


@pytest.mark.parametrize(("file", "content", "fault"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path, file, content, fault):
    """Each kind of damage is a DataError of one line: file, fault, what to do."""
    folder = write_set(tmp_path)
    (folder / file).write_bytes(content)
    with pytest.raises(DataError, match=rf"{file} is damaged: .*{fault}.*; delete it") as caught:
        load_arrays("mnist", folder)
    assert "\n" not in str(caught.value)


def test_no_samples_at_all_are_an_error(tmp_path):
    """Whole files without a sample are damaged too."""
    with pytest.raises(DataError, match="0 labels for 0 images"):
        load_arrays("mnist", write_set(tmp_path, 0))


# --- one download


def test_a_cut_download_goes_on_with_the_next_mirror(tmp_path, remote, http_folder):
    """After a mirror that hangs up half-way the next delivers, and no half file is left."""
    path = tmp_path / "cache" / "file.gz"
    good = http_folder(remote)
    assert download(path, CONTENT_MD5, [http_folder(remote, CutHandler), good], 5) == good
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["file.gz"]


def test_a_failed_download_leaves_nothing_and_says_why(tmp_path, remote, http_folder):
    """Where no mirror delivers, one line names each with its reason and says what else to do."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "file.gz").write_bytes(CONTENT[::-1])
    empty = tmp_path / "empty"
    empty.mkdir()
    mirrors = [
        CLOSED,
        cut := http_folder(remote, CutHandler),
        wrong := http_folder(other),
        lost := http_folder(empty),
        silent := http_folder(remote, SilentHandler),
    ]
    path = tmp_path / "cache" / "file.gz"
    with pytest.raises(DataError) as caught:
        download(path, CONTENT_MD5, mirrors, 0.5)
    message = str(caught.value)
    assert f"{CLOSED} (no connection)" in message
    assert f"{cut} (the connection was cut)" in message
    assert f"{wrong} (wrong checksum)" in message
    assert f"{lost} (HTTP 404)" in message
    assert f"{silent} (no answer in time)" in message
    assert "--data digits" in message
    assert "--data-dir" in message
    assert "\n" not in message
    assert not any(path.parent.iterdir())


def test_a_cache_that_cannot_be_written_is_a_disk_error(tmp_path, remote, http_folder):
    """A file where the cache folder belongs is a DiskError that names the folder."""
    (tmp_path / "cache").write_text("")
    with pytest.raises(DiskError, match=f"{tmp_path}/cache/mnist cannot be written: Not a dir"):
        fetch("mnist", cache_dir=tmp_path / "cache", mirrors=[http_folder(remote)])


def test_a_full_disk_is_a_disk_error(tmp_path, remote, http_folder):
    """A write that the system refuses half-way is a DiskError, and no half file is left."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / "cache" / "file.gz"
    url = http_folder(remote)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(DiskError, match="cannot be written: File too large"):
            download(path, CONTENT_MD5, [url], 5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not any(path.parent.iterdir())


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_progress_bar_shows_on_a_terminal_only(tmp_path, remote, http_folder, is_terminal):
    """A terminal sees a bar run to 100%; anything else sees nothing at all."""
    call = f"download(Path({str(tmp_path / 'file.gz')!r}), {CONTENT_MD5!r}, [sys.argv[1]], 5)"
    code = (
        f"import sys; from pathlib import Path; from sweep.data.download import download; {call}"
    )
    ours, theirs = pty.openpty() if is_terminal else os.pipe()
    if is_terminal:
        termios.tcsetwinsize(theirs, (24, 80))
    subprocess.run([sys.executable, "-c", code, http_folder(remote)], stderr=theirs, check=True)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:  # Linux: the other end of a terminal is closed
        pass
    os.close(ours)
    assert (b"100%" in shown) == is_terminal
    assert is_terminal or not shown


# --- the cache


def test_a_set_is_fetched_once(tmp_path, mnist_dir, http_folder):
    """All four files come from the mirror, and the second time no mirror is needed."""
    folder = fetch("mnist", cache_dir=tmp_path, mirrors=[CLOSED, http_folder(mnist_dir)])
    assert folder == tmp_path / "mnist"
    assert sorted(p.name for p in folder.iterdir()) == sorted(datasets.CATALOG["mnist"].md5)
    assert fetch("mnist", cache_dir=tmp_path, mirrors=[CLOSED]) == folder
    state = status("mnist", cache_dir=tmp_path)
    assert (state.is_ready, state.n_bytes, state.missing) == (True, 11_594_722, ())


def test_a_damaged_file_in_the_cache_is_fetched_again(tmp_path, mnist_dir, http_folder):
    """Damage in the cache is repaired from a mirror; without one, the error mentions it."""
    shutil.copytree(mnist_dir, tmp_path / "mnist", copy_function=shutil.copyfile)
    (tmp_path / "mnist").chmod(0o755)
    damaged = tmp_path / "mnist" / TRAIN_LABELS
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    with pytest.raises(DataError, match="the copy in the cache is damaged"):
        load_arrays("mnist", cache_dir=tmp_path, mirrors=[CLOSED])
    mirrors = [http_folder(mnist_dir)]
    assert len(load_arrays("mnist", cache_dir=tmp_path, mirrors=mirrors)[1]) == 60_000
    assert damaged.read_bytes() == (mnist_dir / TRAIN_LABELS).read_bytes()


def test_train_from_the_cache_opens_no_test_file(tmp_path, mnist_dir):
    """Test files that would be found damaged stay as they are while the training split loads."""
    shutil.copytree(mnist_dir, tmp_path / "mnist", copy_function=shutil.copyfile)
    (tmp_path / "mnist").chmod(0o755)
    for file in (TEST_IMAGES, TEST_LABELS):
        (tmp_path / "mnist" / file).write_bytes(b"sealed")
    assert len(load_arrays("mnist", cache_dir=tmp_path, mirrors=[CLOSED])[1]) == 60_000
    with pytest.raises(DataError, match=r"t10k-images.*could not be downloaded"):
        load_arrays("mnist", None, "test", cache_dir=tmp_path, mirrors=[CLOSED])


def test_status_tells_what_is_missing(tmp_path):
    """Status counts the bytes that are there and names the files that are not."""
    state = status("mnist", cache_dir=tmp_path)
    assert (state.is_ready, state.n_bytes, len(state.missing)) == (False, 0, 4)
    assert state.location == str(tmp_path / "mnist")
    write_set(tmp_path)
    (tmp_path / TEST_LABELS).unlink()
    assert status("mnist", tmp_path).missing == (TEST_LABELS,)
    assert status("digits").is_ready
    assert status("digits").n_bytes == Path(status("digits").location).stat().st_size
