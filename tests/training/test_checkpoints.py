"""Checkpoints and torch.export archives of trials."""

from __future__ import annotations

import pytest
import torch

from sweep.options import ACTIVATIONS
from sweep.training.checkpoints import export_model, write_checkpoint
from sweep.training.mlp import MLPClassifier


def build(seed, hidden=(12, 9), **given):
    return MLPClassifier(
        64, 10, hidden=hidden, seed=seed, input_mean=0.3, input_std=0.4, **given
    ).eval()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_exported_models_of_one_structure(tmp_path, activation):
    """Archives made from one trace hold each model's own widths and weights, for any batch."""
    models = [
        build(seed, hidden, activation=activation, dropout=0.2)
        for seed, hidden in enumerate([(12, 9), (40, 3), (1, 2)])
    ]
    paths = [
        export_model(tmp_path / f"{k}.pt2", model, (1, 8, 8)) for k, model in enumerate(models)
    ]
    for model, path in zip(models, paths, strict=True):
        program = torch.export.load(path)
        for n in (1, 2, 5):
            x = torch.rand(n, 1, 8, 8)
            torch.testing.assert_close(program.module()(x), model(x))


def test_exporting_leaves_an_earlier_file_alone(tmp_path):
    """A later export with other weights does not change an archive on the disk."""
    path = export_model(tmp_path / "a.pt2", build(0), (64,))
    before = (tmp_path / "a.pt2").read_bytes()
    export_model(tmp_path / "b.pt2", build(1), (64,))
    assert (tmp_path / "a.pt2").read_bytes() == before
    x = torch.rand(3, 64)
    torch.testing.assert_close(torch.export.load(path).module()(x), build(0)(x))


def test_checkpoint_opens_in_lightning(tmp_path):
    """load_from_checkpoint with weights_only rebuilds model and hyperparameters."""
    model = build(4, optimizer="RMSprop", alpha=0.9, clip_norm=1.0)
    path = write_checkpoint(tmp_path / "deep" / "best.ckpt", model, 2, 90, {"mine": [1.0]})
    loaded = MLPClassifier.load_from_checkpoint(path, weights_only=True).eval()
    x = torch.rand(3, 64)
    assert torch.equal(loaded(x), model(x))
    assert dict(loaded.hparams) == dict(model.hparams)
    checkpoint = torch.load(path, weights_only=True)
    assert (checkpoint["epoch"], checkpoint["global_step"]) == (2, 90)
    assert checkpoint["mine"] == [1.0]
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["best.ckpt"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    """What cannot be written leaves the earlier checkpoint whole and nothing aside."""
    path = tmp_path / "best.ckpt"
    write_checkpoint(path, build(0), 0, 1)
    before = path.read_bytes()
    with pytest.raises(Exception, match="pickle"):
        write_checkpoint(path, build(1), 0, 1, {"bad": lambda: None})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["best.ckpt"]
