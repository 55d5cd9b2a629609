"""The plain path: one trial at a time in an ordinary lightning.Trainer.

For any LightningModule, and the reference that the fused path is tested against.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden

from sweep.config import DEFAULT_MODULE
from sweep.errors import DiskError
from sweep.imports import import_object
from sweep.training.checkpoints import export_model, write_checkpoint
from sweep.training.data import Batches, SearchData, load_search_data
from sweep.training.devices import lightning_devices, ready
from sweep.training.failures import classify, not_finite
from sweep.training.modules import build_module
from sweep.training.quiet import hush_lightning, quiet_trainer
from sweep.training.resuming import (
    RESUME_KEY,
    AtomicCheckpointIO,
    Keeper,
    clear_folder,
    conclude,
    load_resume_file,
    now_ms,
    random_state,
    replays,
    resume_state,
    seed_everything,
    set_random_state,
    unusable,
)
from sweep.trial import (
    EpochReport,
    Exchange,
    Notice,
    Orders,
    Report,
    Stop,
    Task,
    TrialResult,
    TrialSpec,
)
from sweep.trial_files import RESUME_STATE, trial_folder

EVALUATION_BATCH = 4096
"""Samples of a validation batch: large, since results do not depend on it."""


class PlainTrainer:
    """Trains what is ordered, one trial after the other."""

    def __init__(
        self, task: Task, data: SearchData | None = None, *, notice: str | None = None
    ) -> None:
        hush_lightning()
        self._notice = notice
        if task.n_threads:
            torch.set_num_threads(task.n_threads)
        import_object(task.module, "--module")  # a wrong name is said before the first trial
        self._task = task
        self._data = data or load_search_data(task.data, task.data_dir, task.seed)
        self._is_on_device = False
        self._keeper = Keeper(task.checkpoint_interval_s)

    def train(self, exchange: Exchange) -> None:
        """Train what `exchange` orders, until it says is_last and nothing is left."""
        waiting: collections.deque[TrialSpec] = collections.deque()
        first: list[Report] = [ready(self._task, self._data, n_slots=1)]
        if self._notice:
            first.append(Notice(now_ms(), self._notice))
        orders = exchange(first, 1)
        while True:
            waiting.extend(orders.start)
            if not waiting:
                if orders.is_last:
                    return
                orders = exchange((), 1)
                continue
            reports, ordered_meanwhile = self._train_one(waiting.popleft(), exchange)
            waiting.extend(ordered_meanwhile)
            orders = exchange(reports, 0 if waiting else 1)

    def _train_one(
        self, spec: TrialSpec, exchange: Exchange
    ) -> tuple[Sequence[Report], list[TrialSpec]]:
        """Last reports of the trial, and trials that were ordered while it trained."""
        clear_folder(spec, self._task)
        run = _Run(self._task, spec, exchange, self._keeper)
        if spec.resume_from is not None:
            try:
                run.resume(load_resume_file(spec, "plain"))
                self._fit(spec, run)
            except Exception as error:  # noqa: BLE001 - what fails before it trains is the file's
                if run.has_begun:
                    return self._failed(spec, run, error), run.ordered
                run = _Run(self._task, spec, exchange, self._keeper, [unusable(spec, error)])
            else:
                return self._last_words(spec, run), run.ordered
        try:
            self._fit(spec, run)
        except Exception as error:  # noqa: BLE001 - a user's bug fails the trial, not the search
            return self._failed(spec, run, error), run.ordered
        return self._last_words(spec, run), run.ordered

    def _move_data(self, trainer: lightning.Trainer) -> None:
        if not self._is_on_device:
            self._data = self._data.to(trainer.strategy.root_device)
            self._is_on_device = True

    def _loaders(self, spec: TrialSpec, module: lightning.LightningModule) -> dict[str, Any]:
        if is_overridden("train_dataloader", module):
            return {}
        task = self._task
        batch_size = int(spec.hyperparameters.get("batch_size", task.batch_size))
        first_epoch = spec.start_epoch or 0
        return {
            "train_dataloaders": Batches(
                self._data.train, batch_size, seed=task.seed, first_epoch=first_epoch
            ),
            "val_dataloaders": Batches(self._data.val, EVALUATION_BATCH),
        }


class _Run(lightning.pytorch.callbacks.Checkpoint):
    """One trial's way through a Trainer: reports, orders, and the best weights so far.

    A Checkpoint, because Lightning calls those last: the module has logged by then.
    """

    def __init__(self, task: Task, spec: TrialSpec, exchange: Exchange) -> None:
        self._task, self._spec, self._exchange = task, spec, exchange
        self.module: lightning.LightningModule | None = None
        self.n_epochs = 0
        self.ordered: list[TrialSpec] = []
        self.driver_error: Exception | None = None
        """What `exchange` raised, in this very process: not the trial's fault."""
        self._last_reports: list[Report] = []
        self._result: TrialResult | None = None
        self._stop: Stop | None = None
        self._best: tuple[float, int, int, dict[str, torch.Tensor]] | None = None
        self._epoch_began = time.perf_counter()

    def on_train_epoch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Start the epoch's clock and its data order."""
        self._epoch_began = time.perf_counter()
        batches = trainer.train_dataloader
        if isinstance(batches, Batches):
            batches.set_epoch(trainer.current_epoch)

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Report the epoch and obey the orders that come back."""
        self.n_epochs = trainer.current_epoch + 1
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
        broken = [
            k for k in ("train_loss", self._task.metric) if not math.isfinite(metrics.get(k, 0.0))
        ]
        if broken:
            failure = not_finite(self.n_epochs, broken[0], metrics[broken[0]])
            self._result = TrialResult(self._spec.number, "failed", self.n_epochs, failure=failure)
            trainer.should_stop = True
            return
        self._keep_best(trainer, pl_module, metrics)
        report = EpochReport(
            self._spec.number,
            self.n_epochs,
            metrics | {"epoch_s": time.perf_counter() - self._epoch_began},
            time.time_ns() // 1_000_000,
            self._spec.start_epoch or 0,
        )
        if self.n_epochs == self._task.epochs:
            self._last_reports.append(report)
            return
        try:
            orders = self._exchange([report], 0)
        except Exception as error:
            self.driver_error = error
            raise
        self._obey(trainer, orders)

    def last_words(self, data: SearchData) -> list[Report]:
        """What is left to report once the Trainer is done: the result, with its files."""
        if self._result is not None:
            return [self._result]
        if self._best is None or self.module is None:
            raise RuntimeError(f"the module never logged {self._task.metric!r}")
        _, epoch, step, weights = self._best
        self.module.load_state_dict(weights)
        folder = Path(self._task.work_dir, "trials", f"{self._spec.number:05d}")
        checkpoint = folder / "best.ckpt"
        write_checkpoint(checkpoint, self.module, epoch - 1, step)
        result = TrialResult(
            self._spec.number,
            "stopped" if self._stop else "finished",
            self.n_epochs,
            best_epoch=epoch,
            checkpoint=str(checkpoint),
            model_file=self._export(folder / "model.pt2", data),
            notes={
                "sweep.trainer": "plain",
                "sweep.start_epoch": str(self._spec.start_epoch or 0),
            },
        )
        return [*self._last_reports, result]

    def _obey(self, trainer: lightning.Trainer, orders: Orders) -> None:
        self.ordered.extend(orders.start)
        for stop in orders.stop:
            if stop.number == self._spec.number:
                self._stop = stop
                trainer.should_stop = True

    def _keep_best(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        metrics: dict[str, float],
    ) -> None:
        value = metrics.get(self._task.metric)
        if value is None:
            return
        is_better = self._best is None or (
            value > self._best[0] if self._task.direction == "maximize" else value < self._best[0]
        )
        if is_better:
            weights = {k: v.detach().clone() for k, v in module.state_dict().items()}
            self._best = (value, self.n_epochs, trainer.global_step, weights)

    def _export(self, path: Path, data: SearchData) -> str | None:
        """The model as a .pt2 archive, for trials that count as complete."""
        if self._stop is not None and self._stop.reason != "converged":
            return None
        if self.module is None:
            return None
        try:
            export_model(path, self.module, data.info.feature_shape)
        except Exception:
            # A user's module may hold what torch.export cannot trace: no model is logged then.
            if self._task.module == DEFAULT_MODULE:
                raise
            return None
        return str(path)
