"""torch.export archives of trials."""

from __future__ import annotations

import json
import os
import zipfile

import pytest
import torch

from sweep.cache import default_cache_dir
from sweep.options import ACTIVATIONS
from sweep.training import exports
from sweep.training.exports import export_model
from sweep.training.mlp import MLPClassifier
from sweep.training.templates import PROGRAM, Template, UnknownFormatError

SHAPE = (1, 8, 8)


def build(seed=0, hidden=(12, 9), **given):
    return MLPClassifier(
        64, 10, hidden=hidden, seed=seed, input_mean=0.3, input_std=0.4, **given
    ).eval()


def by_torch(path, model):
    """What `export_model` would write, traced and saved by torch for this model alone."""
    torch.export.save(exports._export(model, SHAPE), path)
    return path


def records(path):
    """An archive's records; JSON as values."""
    with zipfile.ZipFile(path) as archive:
        found = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    del found[".data/serialization_id"]  # a hash over the order in which records were written
    return {n: json.loads(c) if n.endswith(".json") else c for n, c in found.items()}


@pytest.mark.parametrize(
    ("hidden", "given"),
    [
        ((), {}),
        ((1,), {}),
        ((2, 8), {}),
        ((64, 10), {"activation": "gelu"}),
        ((101, 103, 107), {}),  # the widths that templates are made with
        ((40, 40, 40), {"dropout": 0.3}),
        ((9, 500, 3, 7), {"activation": "tanh", "dropout": 0.1}),
    ],
)
def test_archives_are_what_torch_writes(tmp_path, hidden, given):
    """Record for record, what tracing and saving the very model gives."""
    export_model(tmp_path / "other.pt2", build(5, [w + 4 for w in hidden], **given), SHAPE)
    model = build(1, hidden, **given)
    ours = records(export_model(tmp_path / "ours.pt2", model, SHAPE))
    torchs = records(by_torch(tmp_path / "torchs.pt2", model))
    # Not where it was traced: these lines name this test's helper and not export_model.
    for archive in (ours, torchs):
        for node in archive[PROGRAM]["graph_module"]["graph"]["nodes"]:
            node["metadata"].pop("stack_trace", None)
    assert ours == torchs


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_exported_models_of_one_structure(tmp_path, activation):
    """Archives made from one trace hold each model's own widths and weights, for any batch."""
    models = [
        build(seed, hidden, activation=activation, dropout=0.1 + 0.2 * seed)
        for seed, hidden in enumerate([(12, 9), (40, 3), (1, 2)])
    ]
    before = len(exports._templates)
    paths = [export_model(tmp_path / f"{k}.pt2", model, SHAPE) for k, model in enumerate(models)]
    assert len(exports._templates) == before + 1
    for model, path in zip(models, paths, strict=True):
        program = torch.export.load(path)
        for n in (1, 2, 5):
            x = torch.rand(n, *SHAPE)
            torch.testing.assert_close(program.module()(x), model(x))


def test_float64(tmp_path):
    """A model of another precision has a template of its own."""
    for model in (build(0), build(1).double(), build(2)):
        program = torch.export.load(export_model(tmp_path / "a.pt2", model, SHAPE))
        x = torch.rand(3, *SHAPE, dtype=next(model.parameters()).dtype)
        torch.testing.assert_close(program.module()(x), model(x))


def test_a_network_of_one_s_own(tmp_path):
    """A subclass that computes something else is traced itself."""

    class Doubled(MLPClassifier):
        def forward(self, x):
            return 2.0 * super().forward(x)

    export_model(tmp_path / "plain.pt2", build(), SHAPE)
    model = Doubled(64, 10, hidden=(12, 9)).eval()
    program = torch.export.load(export_model(tmp_path / "own.pt2", model, SHAPE))
    x = torch.rand(3, *SHAPE)
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("shape", [SHAPE, (64,), (8, 8)])
@pytest.mark.parametrize("n", [0, 1, 7])
def test_samples_of_other_types_and_shapes(exported, dtype, shape, n):
    """Any float type is taken, and any shape with one sample's values a row."""
    model, program = exported
    x = torch.rand(n, *shape).to(dtype)
    torch.testing.assert_close(program(x), model(x.float().reshape(n, *SHAPE)))


@pytest.mark.parametrize("shape", [(64,), (8, 8), (2, 65), (2, 128), (1, 2, 64), (128, 32)])
def test_samples_of_another_size(exported, shape):
    """What is not one sample's values a row is refused, also where the total would fit."""
    with pytest.raises((RuntimeError, IndexError)):
        exported[1](torch.rand(shape))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model, and its archive loaded as MLflow loads it."""
    model = build()
    path = export_model(tmp_path_factory.mktemp("exported") / "a.pt2", model, SHAPE)
    return model, torch.export.load(path).module()


def test_a_user_s_module_that_needs_its_number_of_samples(tmp_path):
    """A module that cannot be traced for rows of any shape is exported for its own shape."""

    class Choosy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(8, 3)

        def forward(self, x):
            return self.layer(x.flatten(1)) * (1.0 if x.shape[0] == 0 else 2.0)

    model = Choosy().eval()
    path = export_model(tmp_path / "a.pt2", model, (2, 4))
    program = torch.export.load(path).module()
    x = torch.rand(2, 2, 4, dtype=torch.float64)
    torch.testing.assert_close(program(x), model(x.float()))
    with pytest.raises(AssertionError, match="Guard failed"):
        program(x.reshape(2, 8))


@pytest.mark.parametrize("numbers", [(23, 1), (23, 99991), (23, 19, 0.123456)])
def test_numbers_that_are_not_where_they_should_be(tmp_path, numbers):
    """One that is also something else's, or nowhere, makes no template: it would be wrong."""
    archive = by_torch(tmp_path / "a.pt2", build(0, (23, 19))).read_bytes()
    Template.of(archive, (23, 19), "model.")
    with pytest.raises(UnknownFormatError):
        Template.of(archive, numbers, "model.")


def test_what_is_no_archive(tmp_path):
    """Nor is a damaged one a template."""
    whole = by_torch(tmp_path / "a.pt2", build(0)).read_bytes()
    for archive in (b"", b"something else", whole[: len(whole) // 2]):
        with pytest.raises(UnknownFormatError):
            Template.of(archive, (23, 19), "model.")


def test_a_template_takes_no_more_room_with_many_features(tmp_path, cache):
    """It is made with narrow layers, and its weights are not kept."""
    model = MLPClassifier(20_000, 3_001, hidden=(4,)).eval()
    program = torch.export.load(export_model(tmp_path / "a.pt2", model, (20_000,)))
    x = torch.rand(2, 20_000)
    torch.testing.assert_close(program.module()(x), model(x))
    (file,) = cache.iterdir()
    assert file.stat().st_size < 500_000


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The user's cache, empty, and a process that remembers nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    exports._templates.clear()
    return tmp_path / "cache" / "sweep" / "templates"


def test_a_template_is_kept_for_the_next_search(tmp_path, cache):
    """It serves networks of any widths and data; a damaged or a missing file is made again."""
    export_model(tmp_path / "first.pt2", build(0), SHAPE)
    (file,) = cache.iterdir()
    assert (cache.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)
    whole = file.read_bytes()
    for content in (whole, whole[: len(whole) // 2], whole.replace(b"linear", b"nilear"), b""):
        file.write_bytes(content)
        written_ns = file.stat().st_mtime_ns
        exports._templates.clear()
        model = MLPClassifier(64, 10, hidden=(3, 40), input_mean=0.1, input_std=0.9).eval()
        ours = export_model(tmp_path / "later.pt2", model, SHAPE)
        x = torch.rand(3, *SHAPE)
        torch.testing.assert_close(torch.export.load(ours).module()(x), model(x))
        assert list(cache.iterdir()) == [file]
        assert (file.stat().st_mtime_ns == written_ns) is (content == whole)
        assert Template.kept(file)


@pytest.mark.parametrize("what", ["a file in its place", "no home"])
def test_a_cache_that_cannot_be_written_is_no_matter(tmp_path, cache, monkeypatch, what):
    """The template is made anew, then."""
    if what == "no home":
        for name in ("XDG_CACHE_HOME", "HOME"):
            monkeypatch.delenv(name)
        monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)  # as in a container
        with pytest.raises(RuntimeError):
            default_cache_dir()
    else:
        cache.parent.mkdir(parents=True)
        cache.write_text("a file where the folder should be")
    program = torch.export.load(export_model(tmp_path / "a.pt2", build(), SHAPE))
    x = torch.rand(3, *SHAPE)
    torch.testing.assert_close(program.module()(x), build()(x))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_somebody_else_s_template_is_not_taken(tmp_path, cache):
    """What it says would end up in the user's models."""
    export_model(tmp_path / "first.pt2", build(), SHAPE)
    (file,) = cache.iterdir()
    assert Template.kept(file)
    os.chown(file, 12345, 12345)
    assert Template.kept(file) is None


def test_exporting_leaves_an_earlier_file_alone(tmp_path):
    """A later export with other weights does not change an archive on the disk."""
    path = export_model(tmp_path / "a.pt2", build(0), (64,))
    before = (tmp_path / "a.pt2").read_bytes()
    export_model(tmp_path / "b.pt2", build(1), (64,))
    assert (tmp_path / "a.pt2").read_bytes() == before
    x = torch.rand(3, 64)
    torch.testing.assert_close(torch.export.load(path).module()(x), build(0)(x))
