"""One trial of the fused trainer, from its specification to its result and files."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sweep.config import DEFAULT_MODULE
from sweep.training.checkpoints import export_model, write_checkpoint
from sweep.training.data import SearchData
from sweep.training.failures import not_finite
from sweep.training.layout import Shape
from sweep.training.mlp import MLPClassifier
from sweep.training.modules import build_module
from sweep.training.optimizers import make_rule
from sweep.training.population import Linears, Member, Population, Recipe, Scores
from sweep.training.stack import Dropout
from sweep.trial import Failure, Task, TrialResult, TrialSpec

RESUME_KEY = "sweep_fused"
"""Where a resume checkpoint keeps what Lightning has no key for."""


class Run:
    """A trial that is being trained.

    Args:
        spec: What to train.
        task: What all trials share.
        model: The trial as an ordinary module on the CPU, with its initial weights; at the end
            it carries the best epoch's weights into the checkpoint.
        n_train: Training samples.
    """

    def __init__(self, spec: TrialSpec, task: Task, model: MLPClassifier, n_train: int) -> None:
        self.spec, self._task, self._model = spec, task, model
        self.batch_size = _batch_size(spec.hyperparameters, task)
        self.best_epoch: int | None = None
        self.failure: Failure | None = None
        self.start_epoch = spec.start_epoch or 0
        self.population: Population
        self._best_value = math.nan
        self._n_steps = -(-n_train // self.batch_size)
        self._folder = Path(task.work_dir) / "trials" / f"{spec.number:05d}"
        self._saved_s = time.monotonic()
        arguments = model.optimizer_arguments
        recipe = Recipe(
            spec.number,
            Shape(tuple(model.hidden), model.hparams["activation"]),
            make_rule(model.optimizer_name, arguments),
            arguments["lr"],
            model.schedule,
            model.clip_norm,
            Dropout(model.hparams["dropout"], model.hparams["seed"]),
        )
        self.member = Member(recipe, _linears(model))

    @property
    def epoch(self) -> int:
        """Epochs trained."""
        return self.member.epoch

    def resume(self, state: Mapping[str, Any], weights: Linears) -> None:
        """Go on from what `write_resume_state` kept."""
        self.member.initial = weights
        self.member.epoch = state["epoch"]
        self.member.states = [_pairs(linears) for linears in state["states"]]
        self.member.best = _pairs(state["best"])
        self.start_epoch = state["start_epoch"]
        self.best_epoch, self._best_value = state["best_epoch"], state["best_value"]

    def join(self, population: Population) -> None:
        """Take a place in `population`, from its next epoch on."""
        self.population = population
        if self.epoch == 0 and self.spec.start_epoch is None:
            self.start_epoch = population.epoch

    def as_it_was_kept(self) -> TrialSpec:
        """The trial from its last checkpoint, else from its beginning, in the same data order."""
        kept = self._folder / "last.ckpt"
        resume_from = str(kept) if kept.is_file() else None
        return dataclasses.replace(
            self.spec, start_epoch=self.start_epoch, resume_from=resume_from
        )

    def take(self, scores: Scores) -> bool:
        """Note an epoch's metrics; whether it is the best so far."""
        for metric in ("train_loss", "val_loss"):
            if not math.isfinite(value := getattr(scores, metric)):
                self.failure = not_finite(self.epoch, metric, value)
                return False
        value = getattr(scores, self._task.metric)
        sign = 1.0 if self._task.direction == "maximize" else -1.0
        is_better = math.isnan(self._best_value) or sign * value > sign * self._best_value
        if not is_better:
            return False
        self._best_value, self.best_epoch = value, self.epoch
        return True

    def close(self, outcome: Any, reason: str, feature_shape: tuple[int, ...]) -> TrialResult:
        """Write what is to be kept; the trial's last word."""
        checkpoint = model_file = None
        if self.failure is None and self.best_epoch is not None:
            number, population = self.spec.number, self.population
            is_member = population.has(number)
            self._load(population.best_weights(number) if is_member else self.member.best)
            checkpoint = write_checkpoint(
                self._folder / "best.ckpt", self._model, self.best_epoch - 1,
                self.best_epoch * self._n_steps,
            )  # fmt: skip
            if outcome == "finished" or reason == "converged":
                model_file = export_model(self._folder / "model.pt2", self._model, feature_shape)
        if reason == "interrupted":
            self.write_resume_state(is_due=True)
        notes = {"sweep.trainer": "fused", "sweep.start_epoch": str(self.start_epoch)}
        return TrialResult(
            self.spec.number, outcome, self.epoch, self.best_epoch, checkpoint, model_file,
            self.failure, notes,
        )  # fmt: skip

    def write_resume_state(self, is_due: bool = False) -> None:
        """Write `last.ckpt` where the task's interval has passed, or `is_due`."""
        now_s = time.monotonic()
        if not self.population.has(self.spec.number):
            return
        if not is_due and now_s - self._saved_s < self._task.checkpoint_interval_s:
            return
        self._saved_s = now_s
        number = self.spec.number
        state = {
            "epoch": self.epoch,
            "start_epoch": self.start_epoch,
            "best_epoch": self.best_epoch,
            "best_value": self._best_value,
            "best": _plain(self.population.best_weights(number)),
            "states": [_plain(linears) for linears in self.population.states(number)],
        }
        self._load(self.population.weights(number))
        write_checkpoint(
            self._folder / "last.ckpt", self._model, self.epoch - 1,
            self.epoch * self._n_steps, {RESUME_KEY: state},
        )  # fmt: skip

    def _load(self, linears: Linears) -> None:
        for own, given in zip(_linears(self._model), linears, strict=True):
            own[0].copy_(given[0])
            own[1].copy_(given[1])


def open_run(spec: TrialSpec, task: Task, data: SearchData) -> Run:
    """A run that is ready to join a population, from its checkpoint where it has one.

    Raises ValueError or TypeError for hyperparameters that MLPClassifier does not take.
    """
    before = torch.get_default_dtype()
    # Initial weights are drawn in float32 and then converted, as Lightning does it.
    torch.set_default_dtype(torch.float32)
    try:
        model = build_module(DEFAULT_MODULE, spec.hyperparameters, data, spec.seed)
    finally:
        torch.set_default_dtype(before)
    assert isinstance(model, MLPClassifier)
    if task.precision.startswith("64"):
        model.double()
    run = Run(spec, task, model, len(data.train))
    if spec.resume_from is not None:
        checkpoint = torch.load(spec.resume_from, map_location="cpu", weights_only=True)
        if RESUME_KEY in checkpoint:
            model.load_state_dict(checkpoint["state_dict"])
            run.resume(checkpoint[RESUME_KEY], _linears(model))
    return run


def _linears(model: MLPClassifier) -> Linears:
    """Views of the model's own weights."""
    return [
        (layer.weight.detach(), layer.bias.detach())
        for layer in model.layers
        if isinstance(layer, nn.Linear)
    ]


def _pairs(linears: Any) -> Linears:
    return [(weight, bias) for weight, bias in linears]


def _plain(linears: Linears) -> list[list[torch.Tensor]]:
    """Copies on the CPU: a view would be saved with all of the population's buffer."""
    return [[weight.cpu().clone(), bias.cpu().clone()] for weight, bias in linears]


def _batch_size(hyperparameters: Mapping[str, Any], task: Task) -> int:
    size = hyperparameters.get("batch_size") or task.batch_size
    if size < 1:
        raise ValueError(f"batch_size must be at least 1, but got {size}")
    return int(size)
