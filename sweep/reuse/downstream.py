"""`sweep train`: one configuration on train + validation, tested once at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch

from sweep.config import RunConfig
from sweep.provenance import provenance
from sweep.reuse.recipe import Recipe
from sweep.tracking import TrainingInfo, TrainingOutcome, TrainingRun
from sweep.training.checkpoints import write_checkpoint
from sweep.training.data import Batches, FinalData, load_final_data
from sweep.training.devices import lightning_devices
from sweep.training.exports import export_model
from sweep.training.modules import build_module
from sweep.training.quiet import hush_lightning, quiet_trainer
from sweep.training.single import EVALUATION_BATCH
from sweep.trial import TrialState, derive_seed

EpochHook = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True)
class Trained:
    """What a downstream training came to."""

    metrics: Mapping[str, float]
    """test_loss and test_acc for MLPClassifier."""
    checkpoint: Path
    run_id: str
    n_epochs: int


def train(
    recipe: Recipe, config: RunConfig, output: Path, on_epoch: EpochHook | None = None
) -> Trained:
    """Train `recipe` on train + validation; the test split is read once, after the last epoch.

    Args:
        recipe: What to train. Data, epochs, seed and batch size are the recipe's.
        config: Where to train and to track: data_dir, accelerator, devices, tracking_uri.
        output: Where the Lightning checkpoint goes.
        on_epoch: Called after each epoch with its number (from 1) and metrics.

    Raises DataError, StoreError, and what the module itself raises.
    """
    hush_lightning()
    data = load_final_data(recipe.data, config.data_dir, recipe.seed)
    seed = _seed(recipe)
    torch.manual_seed(seed)
    module = build_module(recipe.module, recipe.model, data, seed)
    run = TrainingRun(config.tracking_uri)
    run_id = run.open(_info(recipe, data))
    follower = _Follower(run, on_epoch)
    trainer = quiet_trainer(
        output.parent, max_epochs=recipe.epochs, accelerator=config.accelerator,
        devices=lightning_devices(config.devices), precision=recipe.precision,
        callbacks=[follower],
    )  # fmt: skip
    try:
        metrics = _fit_and_test(trainer, module, data, recipe)
    except BaseException:
        run.finish(TrainingOutcome(_now_ms(), follower.n_epochs, {}, TrialState.FAIL))
        raise
    write_checkpoint(output, module, follower.n_epochs - 1, trainer.global_step)
    archive = output.with_suffix(".pt2")
    export_model(archive, module, data.info.feature_shape)
    run.finish(
        TrainingOutcome(
            _now_ms(), follower.n_epochs, metrics, TrialState.COMPLETE, str(output), str(archive)
        )
    )
    return Trained(metrics, output, run_id, follower.n_epochs)


def _fit_and_test(
    trainer: lightning.Trainer, module: lightning.LightningModule, data: FinalData, recipe: Recipe
) -> dict[str, float]:
    data = data.to(trainer.strategy.root_device)
    batches = Batches(data.train, recipe.batch_size, seed=recipe.seed)
    trainer.fit(module, train_dataloaders=batches)
    results = trainer.test(module, dataloaders=Batches(data.test, EVALUATION_BATCH), verbose=False)
    return {name: float(value) for name, value in results[0].items()}


def _seed(recipe: Recipe) -> int:
    """The initial weights of the trial that the recipe came from, or of its seed."""
    return derive_seed(recipe.seed, "init", recipe.trial or 0)


def _info(recipe: Recipe, data: FinalData) -> TrainingInfo:
    training: dict[str, Any] = {
        "epochs": recipe.epochs, "batch_size": recipe.batch_size, "seed": recipe.seed,
        "data": recipe.data,
    }  # fmt: skip
    origin = f" of t{recipe.trial:03d}" if recipe.trial is not None else ""
    return TrainingInfo(
        experiment=recipe.study or f"{recipe.data}-train",
        name=f"train{origin} on train+val",
        params={**recipe.model, **training},
        time_ms=_now_ms(),
        from_trial=recipe.trial,
        from_run=recipe.run_id,
        dataset=data.info,
        tags=provenance(),
    )


class _Follower(lightning.pytorch.callbacks.Checkpoint):
    """Tells MLflow and the caller of each epoch; sets the data order. Last of the callbacks."""

    def __init__(self, run: TrainingRun, on_epoch: EpochHook | None) -> None:
        self._run, self._on_epoch = run, on_epoch
        self.n_epochs = 0
        self._began = time.perf_counter()

    def on_train_epoch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Start the epoch's clock and its data order."""
        self._began = time.perf_counter()
        if isinstance(trainer.train_dataloader, Batches):
            trainer.train_dataloader.set_epoch(trainer.current_epoch)

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Log the epoch."""
        self.n_epochs = trainer.current_epoch + 1
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
        metrics["epoch_s"] = time.perf_counter() - self._began
        self._run.log_epoch(self.n_epochs, metrics, _now_ms())
        if self._on_epoch is not None:
            self._on_epoch(self.n_epochs, metrics)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
