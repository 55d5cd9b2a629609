"""Epochs that take minutes: orders, resume files and values reach a trial within them."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow import MlflowClient
from searches import children_of, inline, is_alive, start_sweep, wait_for_line
from waiting import PATIENCE_S, wait_until

from sweep.files.trial_files import RESUME_STATE, TrialFiles

pytestmark = pytest.mark.usefixtures("ready_store")

MODULE = """
import pathlib
import time

import lightning
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset


class Points(lightning.LightningDataModule):
    def setup(self, stage=None):
        x = torch.rand(400, 4, generator=torch.Generator().manual_seed(0))
        self.set = TensorDataset(x, x.sum(1))

    def train_dataloader(self):
        return DataLoader(self.set, 4, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.set, 400)


class Long(lightning.LightningModule):
    def __init__(self, lr: float = 0.01):
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        # An epoch of twenty seconds, as long as nobody is in a hurry.
        time.sleep(0.0 if pathlib.Path("hurry").exists() else 0.2)
        loss = functional.mse_loss(self.net(batch[0]).squeeze(1), batch[1])
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", functional.mse_loss(self.net(batch[0]).squeeze(1), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)
"""
COMMAND = (
    "run", "--module", "long.py:Long", "--data", "long.py:Points", "--vary", "lr=0.01,0.02",
    "--metric", "val_loss", "--trials", "1", "--epochs", "1", "--study", "long",
    "--checkpoint-interval", "1", "--set", "trainer.log_every_n_steps=1",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project's folder."""
    (tmp_path / "long.py").write_text(MODULE)
    return tmp_path


def files_of(folder: Path) -> TrialFiles:
    return TrialFiles(folder / "mlruns" / ".sweep" / "long", 0)


def n_values(folder: Path) -> int:
    """Values by step in MLflow."""
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("long")
    if experiment is None:
        return 0
    runs = client.search_runs([experiment.experiment_id], "tags.`sweep.role` = 'trial'")
    return len(client.get_metric_history(runs[0].info.run_id, "train_loss_step")) if runs else 0


def left(folder: Path, process: Any, workers: list[int]) -> str:
    """Wait for all processes; what was said. The trial is RUNNING or WAITING, with its file."""
    out, _ = process.communicate(timeout=PATIENCE_S)
    wait_until(lambda: not any(map(is_alive, workers)), "a worker is left")
    (trial,) = optuna.load_study(
        study_name="long", storage=f"sqlite:///{folder}/mlruns/optuna.db"
    ).trials
    assert not trial.state.is_finished()
    assert files_of(folder).size(RESUME_STATE) > 0
    return str(out)


def test_a_long_epoch_is_interrupted_killed_and_finished(folder: Path) -> None:
    """Values by step are in MLflow while the first epoch runs. Ctrl-C ends it between two steps, a
    kill loses a second; the same command goes on within it, and gives the whole curve."""
    process = start_sweep(folder, *COMMAND)
    wait_for_line(process, "study=")
    wait_until(files_of(folder).path(RESUME_STATE).exists)  # a look at MLflow takes far more
    wait_until(lambda: n_values(folder) >= 3, "no values by step")
    workers = children_of(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    said = left(folder, process, workers)
    assert process.returncode == 130
    assert "a worker was ended" not in said
    assert "trains its last" not in said

    process = start_sweep(folder, *COMMAND)
    n_before = files_of(folder).path(RESUME_STATE).stat().st_mtime_ns
    wait_until(lambda: files_of(folder).path(RESUME_STATE).stat().st_mtime_ns > n_before)
    workers = children_of(process.pid)
    process.kill()
    left(folder, process, workers)

    (folder / "hurry").touch()
    done = inline(folder, *COMMAND)
    assert done.returncode == 0, done.stderr
    assert "goes on within an epoch" in done.stdout
    assert "state=COMPLETE" in done.stdout
    assert n_values(folder) == 100
