"""One trial's way through a lightning.Trainer: reports, orders, best weights, resume state."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import lightning
import torch

from sweep.data.tensors import Batches, SearchData
from sweep.errors import DiskError
from sweep.files.trial_folder import RESUME_STATE, trial_folder
from sweep.hyperparameters import DEFAULT_MODULE
from sweep.loading import one_line, raised_by_user_code
from sweep.objective import Objective
from sweep.protocols import Exchange
from sweep.training.checkpoints import write_checkpoint
from sweep.training.exports import export_model
from sweep.training.failures import not_finite
from sweep.training.fluent import FluentCalls
from sweep.training.modules import sample_shape
from sweep.training.resuming import (
    RESUME_KEY,
    Keeper,
    conclude,
    now_ms,
    random_state,
    replays,
    resume_state,
    set_random_state,
)
from sweep.trial import EpochReport, Failure, Orders, Report, Stop, Task, TrialResult, TrialSpec


class PlainRun(lightning.pytorch.callbacks.Checkpoint):
    """A trial that is being trained.

    A Checkpoint, because Lightning calls those last: the module has logged by then. Resume state
    is written as an epoch starts, not as one ends: Lightning steps schedulers that watch a metric
    (ReduceLROnPlateau) only after the hooks of an epoch's end.

    Args:
        task: What all trials share.
        spec: What to train.
        exchange: Whom to report to.
        keeper: When resume state is due.
        calls: What the module logs by MLflow's own calls.
        first_reports: To be handed over as the trial starts.
    """

    def __init__(
        self,
        task: Task,
        spec: TrialSpec,
        exchange: Exchange,
        keeper: Keeper,
        calls: FluentCalls,
        first_reports: Sequence[Report] = (),
    ) -> None:
        self.spec = spec
        self._task, self._exchange, self._keeper, self._calls = task, exchange, keeper, calls
        self.module: lightning.LightningModule | None = None
        self.start_epoch = spec.start_epoch or 0
        self.n_epochs = 0
        self.ordered: list[TrialSpec] = []
        self.driver_error: BaseException | None = None
        """What `exchange` raised, in this very process: not the trial's fault."""
        self.keeps_end = False
        """Whether the resume state after the last epoch is kept, too."""
        self.has_begun = False
        """Whether the Trainer has everything in place: what breaks now is the trial's own."""
        self.why_no_model = ""
        """A sentence for the user, if the trained module could not be exported."""
        self._folder = trial_folder(task.work_dir, spec.number)
        self._pending = list(first_reports)
        self._history: list[EpochReport] = []
        self._failure: Failure | None = None
        self._stop: Stop | None = None
        self._best: tuple[float, int, int, dict[str, torch.Tensor]] | None = None
        self._epoch_began = time.perf_counter()
        self._resumed_random_state: Mapping[str, Any] | None = None
        self._is_unchanged, self._is_saving = True, False

    def resume(self, checkpoint: Mapping[str, Any]) -> None:
        """Take over what was known when `checkpoint` was written."""
        state = checkpoint[RESUME_KEY]
        told = replays(self.spec.number, state)
        self._history, self._pending = list(told), list(told)
        self.start_epoch, self.n_epochs = int(state["start_epoch"]), int(state["epoch"])
        self._resumed_random_state = state["random"]
        if state["best"] is not None:
            value, epoch, step, weights = state["best"]
            self._best = (float(value), int(epoch), int(step), dict(weights))

    @property
    def is_trained(self) -> bool:
        """Whether no epoch is left."""
        return self.n_epochs >= self._task.epochs

    @property
    def is_resumed(self) -> bool:
        """Whether it goes on from a checkpoint."""
        return self._resumed_random_state is not None

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Tell again what was told before the interruption."""
        self.has_begun = True
        if self._pending:
            self._report(trainer, [])

    def on_train_epoch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Start the epoch's clock and its data order; keep what the last one left."""
        if self._is_unchanged and self._resumed_random_state is not None:
            set_random_state(self._resumed_random_state)
            # Lightning drew the order of a user's DataLoader before; let it draw again.
            trainer.fit_loop._resuming_from_checkpoint = False
        elif self.n_epochs and self._keeper.is_due:
            self._keep(trainer)
        self._epoch_began = time.perf_counter()
        batches = trainer.train_dataloader
        if isinstance(batches, Batches):
            batches.set_epoch(trainer.current_epoch)

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Report the epoch and obey the orders that come back."""
        self.n_epochs, self._is_unchanged = trainer.current_epoch + 1, False
        metrics, notices = self._calls.metrics(now_ms())
        metrics |= {k: float(v) for k, v in trainer.callback_metrics.items()}
        self._pending += notices
        broken = [
            k for k in ("train_loss", self._task.metric) if not math.isfinite(metrics.get(k, 0.0))
        ]
        if broken:
            self._failure = not_finite(self.n_epochs, broken[0], metrics[broken[0]])
            trainer.should_stop = True
            return
        self._keep_best(trainer, pl_module, metrics)
        epoch_s = time.perf_counter() - self._epoch_began
        report = EpochReport(
            self.spec.number, self.n_epochs, metrics | {"epoch_s": epoch_s}, now_ms(),
            self.start_epoch,
        )  # fmt: skip
        self._history.append(report)
        if self.is_trained:
            self._pending.append(report)  # goes with the result
        else:
            self._report(trainer, [report])

    def on_train_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Keep what an interrupted trial needs; one that did not train keeps what it had."""
        is_interrupted = self._stop is not None and self._stop.reason == "interrupted"
        is_kept = is_interrupted or (self.keeps_end and self.is_trained)
        if is_kept and not self._is_unchanged and self._failure is None:
            self._keep(trainer)

    def on_save_checkpoint(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        checkpoint: dict[str, Any],
    ) -> None:
        """Add to a resume checkpoint what Lightning has no key for."""
        if not self._is_saving:
            return  # a checkpoint of the user's own
        checkpoint[RESUME_KEY] = resume_state(
            self.spec, "plain", self.start_epoch, self._history
        ) | {"epoch": self.n_epochs, "best": self._best, "random": random_state()}
        progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]
        for counts in (progress["total"], progress["current"]):
            counts["ready"] = counts["processed"]  # the epoch that starts now is not part of it

    @property
    def failure(self) -> Failure | None:
        """Set once a metric was not finite."""
        return self._failure

    def take_pending(self) -> list[Report]:
        """What is left to report beside the result."""
        pending, self._pending = self._pending, []
        return pending

    def last_words(self, data: SearchData) -> list[Report]:
        """What is left to report once the Trainer is done: the result, with its files.

        Raises DiskError where a file cannot be written.
        """
        if self._failure is not None:
            return self.failed(self._failure)
        has_trained = self.n_epochs > 0 or self._stop is None
        if self.module is None or (self._best is None and has_trained):
            raise RuntimeError(f"the module never logged {self._task.metric!r}")
        reason = self._stop.reason if self._stop else ""
        best_epoch = checkpoint = model_file = None
        if self._best is not None:
            _, best_epoch, step, weights = self._best
            self.module.load_state_dict(weights)
            checkpoint = write_checkpoint(
                self._folder / "best.ckpt", self.module, best_epoch - 1, step
            )
            model_file = self._export(data) if reason in ("", "converged") else None
        notes = {"sweep.trainer": "plain", "sweep.start_epoch": str(self.start_epoch)}
        result = TrialResult(
            self.spec.number, "stopped" if self._stop else "finished", self.n_epochs, best_epoch,
            checkpoint, model_file, notes=notes,
        )  # fmt: skip
        return self._end(result, reason)

    def failed(self, failure: Failure) -> list[Report]:
        """What is left to report of a trial that broke. Raises DiskError."""
        return self._end(TrialResult(self.spec.number, "failed", self.n_epochs, failure=failure))

    def _end(self, result: TrialResult, reason: str = "") -> list[Report]:
        return [
            *self.take_pending(),
            conclude(self._task, self.spec, self._history, result, reason),
        ]

    def _report(self, trainer: lightning.Trainer, reports: list[Report]) -> None:
        said, self._pending = [*self._pending, *reports], []
        try:
            orders: Orders = self._exchange(said, 0)
        except BaseException as error:
            self.driver_error = error
            raise
        self.ordered.extend(orders.start)
        for stop in orders.stop:
            if stop.number == self.spec.number:
                self._stop = stop
                trainer.should_stop = True

    def _keep(self, trainer: lightning.Trainer) -> None:
        self._is_saving = True
        self._pending += self._keeper.keep(
            [lambda: trainer.save_checkpoint(self._folder / RESUME_STATE)]
        )
        self._is_saving = False

    def _keep_best(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        metrics: dict[str, float],
    ) -> None:
        value = metrics.get(self._task.metric)
        if value is None:
            return
        objective = Objective(self._task.metric, self._task.direction)
        if self._best is None or objective.better(value, self._best[0]):
            weights = {k: v.detach().clone() for k, v in module.state_dict().items()}
            self._best = (value, self.n_epochs, trainer.global_step, weights)

    def _export(self, data: SearchData) -> str | None:
        """The model as a .pt2 archive."""
        assert self.module is not None
        path = self._folder / "model.pt2"
        try:
            shape = sample_shape(self.module, data.info.feature_shape)
            return export_model(path, self.module, shape)
        except DiskError:
            raise
        except BaseException as error:
            # A user's module may hold what torch.export cannot trace: no model is logged then.
            why = raised_by_user_code(error)
            if self._task.module == DEFAULT_MODULE:
                raise
            self.why_no_model = no_model(self._task.module, why)
            return None


def no_model(module: str, why: BaseException) -> str:
    """A sentence for a user whose module `torch.export` cannot take."""
    told = one_line(why, module)
    return f"{module} cannot be exported, so MLflow gets checkpoints but no logged model: {told}"
