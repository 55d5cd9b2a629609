"""Checkpoints of trials."""

from __future__ import annotations

import pytest
import torch

from sweep.training.checkpoints import write_checkpoint
from sweep.training.mlp import MLPClassifier


def build(seed, hidden=(12, 9), **given):
    return MLPClassifier(
        64, 10, hidden=hidden, seed=seed, input_mean=0.3, input_std=0.4, **given
    ).eval()


def test_checkpoint_opens_in_lightning(tmp_path):
    """load_from_checkpoint with weights_only rebuilds model and hyperparameters."""
    model = build(4, optimizer="RMSprop", alpha=0.9, clip_norm=1.0)
    path = write_checkpoint(tmp_path / "deep" / "best.ckpt", model, {}, 2, 90)
    loaded = MLPClassifier.load_from_checkpoint(path, weights_only=True).eval()
    x = torch.rand(3, 64)
    assert torch.equal(loaded(x), model(x))
    assert dict(loaded.hparams) == dict(model.hparams)
    checkpoint = torch.load(path, weights_only=True)
    assert (checkpoint["epoch"], checkpoint["global_step"]) == (2, 90)
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["best.ckpt"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    """What cannot be written leaves the earlier checkpoint whole and nothing aside."""
    path = tmp_path / "best.ckpt"
    write_checkpoint(path, build(0), {}, 0, 1)
    before = path.read_bytes()
    with pytest.raises(Exception, match="pickle"):
        write_checkpoint(path, build(1), {"bad": lambda: None}, 0, 1)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["best.ckpt"]
