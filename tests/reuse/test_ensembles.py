"""Several models as one, chosen on validation from what is stored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from searches import INLINE, Call

import sweep
from sweep.data.tensors import load_search_data
from sweep.errors import ConfigError, NotFoundError
from sweep.files.trial_files import BEST, TrialFiles


def mean_of(study: str, members: Mapping[int, int], x: torch.Tensor) -> torch.Tensor:
    """The members' mean probabilities, from their checkpoints."""
    total = torch.zeros(len(x), 10)
    with torch.no_grad():
        for trial, n in members.items():
            total += n * sweep.best(study, trial=trial).load()(x).softmax(1)
    return total / sum(members.values())


def test_an_ensemble_is_one_model_with_its_members_mean(
    six: Path, call: Call, tmp_path: Path
) -> None:
    """Its score is that of validation, no worse than the best single model's, and said to be
    chosen there; the exported file gives the mean of the checkpoints for 1, 7 and 1,000 rows."""
    made = sweep.ensemble("six", n=8, folder=tmp_path / "mean")
    assert made.exported is not None
    assert made.n_candidates == 6
    members = dict(made.members)
    assert 1 <= sum(members.values()) <= 8
    model = torch.export.load(made.exported.file).module()
    for n in (1, 7, 1000):
        x = torch.rand(n, 1, 8, 8)
        with torch.no_grad():
            torch.testing.assert_close(model(x), mean_of("six", members, x), rtol=0, atol=1e-6)
    val = load_search_data("digits", None, 0).val
    assert val is not None
    with torch.no_grad():
        accuracy = (model(val.x).argmax(1) == val.y).float().mean().item()
    assert made.metric == "val_acc"
    assert made.score == pytest.approx(accuracy, abs=1e-6)
    assert made.best == pytest.approx(sweep.best("six").score, abs=1e-6)
    assert made.score >= made.best
    about = json.loads((tmp_path / "mean" / "export.json").read_text())
    assert about["members"] == {f"trial {trial}": n for trial, n in members.items()}
    assert "looks better than it is" in (tmp_path / "mean" / "README.md").read_text()
    code, out, errors = call("best", "six", "--ensemble", 8)
    assert (code, errors) == (0, [])
    assert f"val_acc {made.score:.6g} on 270 validation samples" in out
    assert "looks better than it is" in out
    assert (six / "mlruns" / ".sweep" / "six" / "ensemble" / "model.pt2").is_file()


def test_checkpoints_that_are_gone_are_left_out(six: Path) -> None:
    """And counted; without two of them there is nothing to choose from."""
    for trial in range(6):
        (path,) = [*six.glob(f"mlruns/*/{sweep.best('six', trial=trial).run_id}/**/best.ckpt")]
        path.unlink()
    work_dir = six / "mlruns" / ".sweep" / "six"
    kept = [n for n in range(6) if TrialFiles(work_dir, n).size(BEST)]
    for trial in kept[2:]:
        TrialFiles(work_dir, trial).remove(BEST)
    made = sweep.ensemble("six", folder=six / "two")
    assert {trial for trial, _ in made.members} <= {*kept[:2]}
    assert made.n_candidates == 2
    assert "4 trials have no checkpoint any more" in made.notes
    TrialFiles(work_dir, kept[0]).remove(BEST)
    with pytest.raises(NotFoundError, match="needs two checkpoints, but six has 1 left"):
        sweep.ensemble("six", folder=six / "one")


REGRESSION = """
import lightning, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

X = torch.randn(500, 3, generator=torch.Generator().manual_seed(1))
Y = (X[:, :1] * X[:, 1:2]).tanh() + X[:, 2:]

class Net(lightning.LightningModule):
    def __init__(self, width: int = 4, lr: float = 0.01):
        super().__init__()
        self.lr, self.net = lr, nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_rmse", nn.functional.mse_loss(self(batch[0]), batch[1]).sqrt())
        self.log("val_odd", self(batch[0]).abs().max())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)

class Data(lightning.LightningDataModule):
    def setup(self, stage):
        rows = TensorDataset(X, Y)
        self.parts = torch.utils.data.random_split(rows, [400, 100])

    def train_dataloader(self):
        return DataLoader(self.parts[0], 50, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.parts[1], 100)

"""
GIVEN: dict[str, Any] = INLINE | {
    "population": None, "module": "regression.py:Net", "data": "regression.py:Data", "trials": 3,
    "epochs": 2, "sampler": "random", "vary": ["lr=1e-3..1e-1:log", "width=2,4,8"],
}  # fmt: skip


@pytest.mark.usefixtures("ready_store", "call")
def test_outputs_of_numbers_are_averaged(tmp_path: Path) -> None:
    """On the split of the search, by the study's own metric where predictions tell it."""
    (tmp_path / "regression.py").write_text(REGRESSION)
    sweep.run(study="r", metric="val_rmse", **GIVEN)
    made = sweep.ensemble("r", folder=tmp_path / "mean")
    assert (made.metric, made.n_samples) == ("val_rmse", 100)
    assert made.best == pytest.approx(sweep.best("r").score, abs=1e-5)
    assert made.score <= made.best
    assert made.exported is not None
    model, x = torch.export.load(made.exported.file).module(), torch.randn(7, 3)
    weight = sum(n for _, n in made.members)
    expected = sum(n * sweep.best("r", trial=t).load()(x) for t, n in made.members) / weight
    np.testing.assert_allclose(model(x).detach(), expected.detach(), atol=1e-6)  # type: ignore


@pytest.mark.usefixtures("ready_store", "call")
def test_another_metric_is_said(tmp_path: Path) -> None:
    """Where predictions do not tell the study's metric, what judged instead has its name."""
    (tmp_path / "regression.py").write_text(REGRESSION)
    sweep.run(study="odd", metric="val_odd", direction="minimize", **GIVEN)
    made = sweep.ensemble("odd", folder=tmp_path / "mean")
    assert made.metric == "mean squared error"
    assert any("judged by mean squared error here: val_odd is" in note for note in made.notes)
    with pytest.raises(ConfigError, match="n must be"):
        sweep.ensemble("odd", n=0)
