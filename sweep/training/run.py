"""One trial while it trains: its curve, its best epoch, and its record in a resume file."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from sweep.files.outcomes import OutcomesInMemory
from sweep.files.trial_files import RESUME_STATE, TrialFiles, spec_digest
from sweep.objective import Objective
from sweep.training.failures import not_finite
from sweep.trial import (
    EPOCHS_DONE,
    EpochReport,
    Failure,
    Stop,
    Task,
    TrialResult,
    TrialSpec,
    now_ms,
)

RESUME_KEY = "sweep"
"""Where a resume file keeps the trial's record, for which Lightning has no key."""


class Run:
    """A trial in a slot. The engine trains it, the slot loop reports it.

    Args:
        spec: The configuration to train.
        task: Settings of the study.
    """

    def __init__(self, spec: TrialSpec, task: Task) -> None:
        self.spec, self.task = spec, task
        self.files = TrialFiles(task.work_dir, spec.number)
        self.is_held = False
        """Whether a Trainer of its own still has it: it has not ended then."""
        self.objective = Objective(task.metric, task.direction)
        self.restart()

    def restart(self) -> None:
        """Forget all epochs: the trial trains from its beginning."""
        self.start_epoch = self.spec.start_epoch or 0
        self.epoch = 0
        """Reports so far: epochs, and validations within epochs."""
        self.epochs_done = 0.0
        self.n_steps = 0
        """Optimizer steps taken, as the engine counts them."""
        self.best_epoch: int | None = None
        self.best_value, self.best_step = math.nan, 0
        self.history: list[EpochReport] = []
        self.outcomes = OutcomesInMemory(self.task.epochs)
        self.failure: Failure | None = None
        self.stop: Stop | None = None
        self.result: TrialResult | None = None
        """Set if another process has concluded it."""

    @property
    def is_trained(self) -> bool:
        """Whether all epochs are trained."""
        return self.epochs_done >= self.task.epochs

    @property
    def is_over(self) -> bool:
        """Whether it is fully trained, stopped or failed."""
        return self.is_trained or self.stop is not None or self.failure is not None

    @property
    def is_interrupted(self) -> bool:
        """Whether it is to stop for now, and to go on later."""
        return self.stop is not None and self.stop.reason == "interrupted"

    def resume(self, checkpoint: Mapping[str, Any]) -> None:
        """Restore the record of a resume file; its reports become replays.

        Errors of malformed values pass through, before any change.
        """
        state = checkpoint[RESUME_KEY]
        start_epoch, epoch = int(state["start_epoch"]), int(state["epoch"])
        history = [
            EpochReport(
                self.spec.number, int(number), {str(k): float(v) for k, v in metrics.items()},
                int(time_ms), start_epoch, is_replay=True,
            )
            for number, time_ms, metrics in state["history"]
        ]  # fmt: skip
        best = state["best"]
        value, best_epoch, step = (
            (math.nan, None, 0)
            if best is None
            else (float(best["value"]), int(best["epoch"]), int(best["step"]))
        )
        self.start_epoch, self.epoch, self.history = start_epoch, epoch, history
        self.epochs_done = history[-1].epochs_done if history else 0.0
        self.n_steps = int(checkpoint["global_step"])
        self.best_value, self.best_epoch, self.best_step = value, best_epoch, step
        n_validated = sum(self.task.metric in report.metrics for report in history)
        self.outcomes.restore(state.get("outcomes"), n_validated)

    def state(self, best_weights: Mapping[str, Any] | None) -> dict[str, Any]:
        """The record for a resume file, in plain values, with the best epoch's weights."""
        best = None
        if self.best_epoch is not None:
            best = {
                "value": self.best_value, "epoch": self.best_epoch, "step": self.best_step,
                "weights": best_weights,
            }  # fmt: skip
        return {
            "spec": spec_digest(self.spec),
            "start_epoch": self.start_epoch,
            "epoch": self.epoch,
            "history": [[r.epoch, r.time_ms, dict(r.metrics)] for r in self.history],
            "best": best,
            "outcomes": self.outcomes.content,
        }

    def take(self, metrics: Mapping[str, float]) -> bool:
        """Count an epoch, or a part of one, with its metrics. Returns whether it is the best.

        A NaN or infinite training loss or objective fails the trial.
        """
        self.epoch += 1
        self.epochs_done = metrics.get(EPOCHS_DONE, self.epoch)
        for name in ("train_loss", self.task.metric):
            if not math.isfinite(value := metrics.get(name, 0.0)):
                self.failure = not_finite(self.epoch, name, value)
                return False
        score = metrics.get(self.task.metric)
        if score is None or not self.objective.better(score, self.best_value):
            return False
        self.best_value, self.best_epoch, self.best_step = score, self.epoch, self.n_steps
        return True

    def report(self, metrics: Mapping[str, float], epoch_s: float) -> EpochReport:
        """The report of the last epoch; `epoch_s` is the trial's share of its time, in seconds."""
        said = EpochReport(
            self.spec.number, self.epoch, {**metrics, "epoch_s": epoch_s}, now_ms(),
            self.start_epoch,
        )  # fmt: skip
        self.history.append(said)
        return said

    def as_it_was_kept(self) -> TrialSpec:
        """The spec to continue from the last resume file, else to start again in the same data
        order."""
        is_resumed = self.files.size(RESUME_STATE) > 0
        return dataclasses.replace(self.spec, start_epoch=self.start_epoch, is_resumed=is_resumed)
