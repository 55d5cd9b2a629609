"""Projects of one's own, from the command line, a LightningCLI file, and Python."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import mlflow
import numpy as np
import optuna
import pytest
import torch
import yaml
from mlflow import MlflowClient
from searches import as_if_alone, inline, python, script

import sweep as library
from sweep.files.trial_files import TrialFiles

pytestmark = pytest.mark.usefixtures("ready_store")

MODEL = """
import lightning
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset


class Points(lightning.LightningDataModule):
    def __init__(self, batch_size: int = 16, noise: float = 0.1):
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage=None):
        x = torch.rand(60, 4, generator=torch.Generator().manual_seed(0))
        self.set = TensorDataset(x, x.sum(1) * (1 + self.hparams.noise))

    def train_dataloader(self):
        return DataLoader(self.set, self.hparams.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.set, 60)


class Net(lightning.LightningModule):
    def __init__(self, lr: float = 0.01):
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Linear(4, 1)

    def forward(self, x):
        return self.net(x).squeeze(1)

    def training_step(self, batch, batch_idx):
        return functional.mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", functional.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


class Logging(Net):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        self.logger.experiment.add_scalar("inner/size", self.net.weight.norm(), batch_idx)
        return loss

    def on_validation_epoch_end(self):
        self.logger.experiment.add_text("a note", f"epoch {self.current_epoch}", 3)
"""
CONFIG = {
    "seed_everything": 3,
    "trainer": {
        "max_epochs": 2, "log_every_n_steps": 1,
        "callbacks": [{
            "class_path": "lightning.pytorch.callbacks.EarlyStopping",
            "init_args": {"monitor": "val_loss"},
        }],
    },
    "model": {"class_path": "mine.Net", "init_args": {"lr": 0.02}},
    "data": {"class_path": "mine.Points", "init_args": {"noise": 0.3}},
}  # fmt: skip
CLI = "from lightning.pytorch.cli import LightningCLI\nLightningCLI()\n"
SCRIPT = """
import sweep
from mine import Net, Points


class Scaled(Net):
    def __init__(self, lr: float = 0.01, scale: float = 1.0):
        super().__init__(lr)
        self.scale = scale

    def training_step(self, batch, batch_idx):
        return self.scale * super().training_step(batch, batch_idx)


outcome = sweep.run(
    module=Scaled, data=Points, vary={"lr": sweep.floats(0.001, 0.1), "scale": [1.0, 2.0]},
    trainer={"gradient_clip_val": 0.5}, metric="val_loss", trials=2, epochs=1, study="script",
)
print(outcome.end.reason, type(sweep.best("script").load()).__name__)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A project's folder, the current one; nothing of it is loaded in the next test."""
    (tmp_path / "mine.py").write_text(MODEL)
    (tmp_path / "cli.yaml").write_text(yaml.safe_dump(CONFIG))
    with as_if_alone(tmp_path):
        yield tmp_path


def trials_of(folder: Path, study: str) -> list[Mapping[str, Any]]:
    """The parameters of each trial."""
    storage = f"sqlite:///{folder}/mlruns/optuna.db"
    return [t.params for t in optuna.load_study(study_name=study, storage=storage).trials]


def test_a_lightning_cli_project_is_searched_and_goes_back(folder: Path) -> None:
    """Its file is the search's input, and the best configuration is a file for its own program;
    the same command goes on without a flag."""
    done = inline(folder, "run", "--lightning", "cli.yaml", "--vary", "model.lr=0.001..0.1:log",
                  "--metric", "val_loss", "--trials", "2", "--study", "c",
                  "--log-models", "none")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "epochs=2" in done.stdout
    assert [[*params] for params in trials_of(folder, "c")] == [["model.lr"]] * 2
    again = inline(folder, "run", "--study", "c", "--trials", "3")
    assert again.returncode == 0, again.stderr

    best = inline(folder, "best", "c", "--format", "lightning-cli").stdout
    config = yaml.safe_load(best)
    assert config["trainer"]["callbacks"] == CONFIG["trainer"]["callbacks"]  # type: ignore[index]
    assert config["data"] == CONFIG["data"]
    assert config["seed_everything"] == 3
    (folder / "best.yaml").write_text(best)
    (folder / "train.py").write_text(CLI)
    quiet = ("--trainer.logger", "false", "--trainer.enable_progress_bar", "false")
    script(folder, "train.py", "fit", "--config", "best.yaml", *quiet)


def test_what_the_logger_got_is_in_the_trials_run(folder: Path) -> None:
    """Values by step and texts; an epoch's metrics are there once an epoch."""
    done = inline(
        folder, "run", "--module", "mine.py:Logging", "--data", "mine.py:Points", "--vary",
        "lr=0.01,0.02", "--set", "trainer.log_every_n_steps=1", "--metric", "val_loss", "--trials",
        "1", "--epochs", "2", "--study", "logged", "--callback",
        "lightning.pytorch.callbacks:LearningRateMonitor",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("logged")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], "tags.`sweep.role` = 'trial'")

    def steps(key: str) -> list[int]:
        return [m.step for m in client.get_metric_history(run.info.run_id, key)]

    assert steps("val_loss") == steps("train_loss") == [1, 2]
    assert steps("train_loss_step") == [*range(8)]
    assert steps("inner/size") == [0, 1, 2, 3]
    assert steps("lr-SGD_step") == [*range(8)]
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.name == "mine.py:Points"
    files = [one.path for one in client.list_artifacts(run.info.run_id, "logged")]
    assert files == ["logged/a_note-3.txt"]


def test_a_script_needs_no_guard_and_a_cell_no_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Classes of the script itself; what a notebook defines trains in its process."""
    (folder / "script.py").write_text(SCRIPT)
    assert python(folder, "script.py") == "done Scaled\n"
    notebook, said = ModuleType("__main__"), io.StringIO()
    monkeypatch.setitem(sys.modules, "__main__", notebook)
    monkeypatch.syspath_prepend(folder)
    with contextlib.redirect_stdout(said):
        exec(SCRIPT.replace('"script"', '"cell"'), vars(notebook))
    assert said.getvalue() == "done Scaled\n"


def test_a_resume_file_that_cannot_be_plain_is_said(folder: Path) -> None:
    """As it is due for the first time; what the module added is named."""
    (folder / "odd.py").write_text(
        "import pathlib\nfrom mine import Net as Base, Points\n\n"
        "class Net(Base):\n    def on_save_checkpoint(self, checkpoint):\n"
        "        checkpoint['where'] = pathlib.Path('x')\n"
    )
    done = inline(
        folder, "run", "--module", "odd:Net", "--data", "odd:Points", "--vary", "lr=0.01,0.02",
        "--metric", "val_loss", "--trials", "1", "--epochs", "3", "--study", "odd",
        "--checkpoint-interval", "0.001",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("puts under where are no plain values") == 1


def test_values_fit_a_loaded_module(folder: Path) -> None:
    """`load_from_checkpoint` and `sweep.best(...).load()` give the same weights."""
    inline(folder, "run", "--module", "mine:Net", "--data", "mine:Points", "--vary",
           "lr=0.01,0.02", "--metric", "val_loss", "--trials", "1", "--epochs", "1", "--study",
           "l")  # fmt: skip
    loaded = library.best("l").load()
    kept = TrialFiles(folder / "mlruns/.sweep/l", 0).path("best.ckpt")
    theirs = type(loaded).load_from_checkpoint(kept, weights_only=True)
    for ours, other in zip(loaded.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(ours, other)


@pytest.mark.filterwarnings("ignore")
def test_a_logged_model_has_the_modules_own_signature(folder: Path) -> None:
    """What its minibatches hold and what its forward gives; MLflow serves it."""
    done = inline(folder, "run", "--module", "mine:Net", "--data", "mine:Points", "--vary",
                 "lr=0.01,0.02", "--metric", "val_loss", "--trials", "1", "--epochs", "1",
                 "--study", "m", "--log-models", "all")  # fmt: skip
    assert done.returncode == 0, done.stderr
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    model = mlflow.pyfunc.load_model(str(library.best("m").model_uri))
    assert model.predict(np.ones((5, 4), dtype="float32")).shape == (5,)
    assert str(model.metadata.signature.outputs) == "[Tensor('float32', (-1,))]"
    assert model.input_example.shape == (2, 4)


def test_a_model_is_logged_later_on(folder: Path) -> None:
    """A minibatch of the DataModule tells what goes in."""
    done = inline(folder, "run", "--module", "mine:Net", "--data", "mine:Points", "--vary",
                 "lr=0.01,0.02", "--metric", "val_loss", "--trials", "1", "--epochs", "1",
                 "--study", "later", "--log-models", "none")  # fmt: skip
    assert done.returncode == 0, done.stderr
    logged = inline(folder, "best", "later", "--trial", "0", "--log-model")
    assert logged.returncode == 0, logged.stderr
    assert logged.stderr.startswith("models:/m-")


def test_a_changed_source_file_is_said(folder: Path) -> None:
    """In one line as the study goes on; each trial's run tells which file it had."""
    command = ("run", "--module", "mine:Net", "--data", "mine:Points", "--vary", "lr=0.01..0.1",
               "--metric", "val_loss", "--epochs", "1", "--study", "c")  # fmt: skip
    assert "has changed" not in inline(folder, *command, "--trials", "1").stdout
    assert "has changed" not in inline(folder, *command, "--trials", "2").stdout
    (folder / "mine.py").write_text(MODEL + "\n# Another line.\n")
    said = inline(folder, *command, "--trials", "3").stdout
    assert said.count("mine.py has changed since the study's last search") == 1
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("c")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`sweep.role` = 'trial'")
    assert len({run.data.tags["sweep.source.module"] for run in runs}) == 2


SPACE = """
parameters:
  model.lr: {float: [0.02, 0.1]}
  data.batch_size: {choices: [8, 16, 32]}
first: defaults
"""


def test_the_constructors_defaults_are_the_baseline(folder: Path) -> None:
    """Trial 0 has them, also outside the space; later trials are compared with it. A parameter
    without a plain default is named."""
    (folder / "space.yaml").write_text(SPACE)
    run = ("run", "--module", "mine.py:Net", "--data", "mine.py:Points", "--metric", "val_loss",
           "--trials", "3", "--epochs", "1", "--space", "space.yaml")  # fmt: skip
    done = inline(folder, *run, "--study", "d")
    assert done.returncode == 0, done.stderr
    first = library.best("d", trial=0)
    assert first.config == {"model.lr": 0.01, "data.batch_size": 16}
    assert "than trial 0, the baseline" in done.stdout
    data = first.data()
    assert (type(data).__name__, data.hparams.batch_size) == ("Points", 16)
    (folder / "space.yaml").write_text(SPACE.replace("model.lr", "model.width"))
    refused = inline(folder, *run, "--study", "e")
    assert refused.returncode == 2
    assert "model.width has no plain default" in refused.stderr
