"""torch.export archives of trials."""

from __future__ import annotations

import json
import zipfile

import pytest
import torch

from sweep.hyperparameters import ACTIVATIONS
from sweep.training import exports
from sweep.training.exports import Example, export_model
from sweep.training.mlp import MLPClassifier

SHAPE = (1, 8, 8)
PROGRAM = "models/model.json"


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
        ((101, 103, 107), {}),  # the widths that structures are traced with
        ((40, 40, 40), {"dropout": 0.3}),
        ((9, 500, 3, 7), {"activation": "tanh", "dropout": 0.1}),
    ],
)
def test_archives_are_what_torch_writes(tmp_path, hidden, given):
    """Record for record, what tracing and saving the very model gives."""
    export_model(
        tmp_path / "other.pt2", build(5, [w + 4 for w in hidden], **given), Example(SHAPE)
    )
    model = build(1, hidden, **given)
    ours = records(export_model(tmp_path / "ours.pt2", model, Example(SHAPE)))
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
    exports._structures.clear()
    paths = [
        export_model(tmp_path / f"{k}.pt2", model, Example(SHAPE))
        for k, model in enumerate(models)
    ]
    assert len(exports._structures) == 1
    for model, path in zip(models, paths, strict=True):
        program = torch.export.load(path)
        for n in (1, 2, 5):
            x = torch.rand(n, *SHAPE)
            torch.testing.assert_close(program.module()(x), model(x))


def test_float64(tmp_path):
    """A model of another precision has a graph of its own."""
    for model in (build(0), build(1).double(), build(2)):
        program = torch.export.load(export_model(tmp_path / "a.pt2", model, Example(SHAPE)))
        x = torch.rand(3, *SHAPE, dtype=next(model.parameters()).dtype)
        torch.testing.assert_close(program.module()(x), model(x))


def test_a_network_of_one_s_own(tmp_path):
    """A subclass that computes something else is traced itself."""

    class Doubled(MLPClassifier):
        def forward(self, x):
            return 2.0 * super().forward(x)

    export_model(tmp_path / "plain.pt2", build(), Example(SHAPE))
    model = Doubled(64, 10, hidden=(12, 9)).eval()
    program = torch.export.load(export_model(tmp_path / "own.pt2", model, Example(SHAPE)))
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
    path = export_model(tmp_path_factory.mktemp("exported") / "a.pt2", model, Example(SHAPE))
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
    path = export_model(tmp_path / "a.pt2", model, Example((2, 4)))
    program = torch.export.load(path).module()
    x = torch.rand(2, 2, 4, dtype=torch.float64)
    torch.testing.assert_close(program(x), model(x.float()))
    with pytest.raises(AssertionError, match="Guard failed"):
        program(x.reshape(2, 8))


def test_exporting_leaves_an_earlier_file_alone(tmp_path):
    """A later export with other weights does not change an archive on the disk."""
    path = export_model(tmp_path / "a.pt2", build(0), Example((64,)))
    before = (tmp_path / "a.pt2").read_bytes()
    export_model(tmp_path / "b.pt2", build(1), Example((64,)))
    assert (tmp_path / "a.pt2").read_bytes() == before
    x = torch.rand(3, 64)
    torch.testing.assert_close(torch.export.load(path).module()(x), build(0)(x))
