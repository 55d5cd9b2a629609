"""One trial of the fused trainer, from its specification to its result and files."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from sweep.data.tensors import SearchData
from sweep.files.trial_folder import RESUME_STATE, resume_file, trial_folder
from sweep.hyperparameters import DEFAULT_MODULE
from sweep.objective import Objective
from sweep.training.checkpoints import write_checkpoint
from sweep.training.exports import export_model, prepare_export
from sweep.training.failures import classify, not_finite
from sweep.training.fused.population import Population
from sweep.training.members import Linears, Member, Scores, TrainingPlan
from sweep.training.mlp import MLPClassifier
from sweep.training.modules import build_module
from sweep.training.optimizers import make_rule
from sweep.training.resuming import (
    RESUME_KEY,
    clear_folder,
    conclude,
    load_resume_file,
    now_ms,
    replays,
    resume_state,
    unusable,
)
from sweep.training.stacked.layout import Shape
from sweep.training.stacked.stack import Dropout
from sweep.trial import EpochReport, Failure, Report, Task, TrialResult, TrialSpec

METRICS = ("train_loss", "val_loss", "val_acc")


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
        self.population: Population | None = None
        self.first_reports: list[Report] = []
        """To be handed over as the trial starts: what was told before it was interrupted."""
        self._history: list[EpochReport] = []
        self._best_value = math.nan
        self._n_steps = -(-n_train // self.batch_size)
        self._folder = trial_folder(task.work_dir, spec.number)
        arguments = model.optimizer_arguments
        recipe = TrainingPlan(
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

    @property
    def is_trained(self) -> bool:
        """Whether no epoch is left."""
        return self.epoch >= self._task.epochs

    @property
    def wanted_epoch(self) -> int | None:
        """The population epoch that it has to go on in; None: any will do."""
        if self.epoch == 0 and self.spec.start_epoch is None:
            return None
        return self.start_epoch + self.epoch

    def resume(self, checkpoint: Mapping[str, Any]) -> None:
        """Go on from what `write_resume_state` kept. Raises for values that do not fit."""
        state, like = checkpoint[RESUME_KEY], _linears(self._model)
        self._model.load_state_dict(checkpoint["state_dict"])
        n_states = self.member.recipe.rule.n_states
        states = [_like(linears, like) for linears in state["states"]]
        if len(states) != n_states:
            raise ValueError(f"{len(states)} optimizer states, but {n_states} are needed")
        self.member.initial, self.member.states = _linears(self._model), states
        self.member.best = _like(state["best"], like)
        self.member.epoch, self.start_epoch = int(state["epoch"]), int(state["start_epoch"])
        self.best_epoch, self._best_value = state["best_epoch"], float(state["best_value"])
        told = replays(self.spec.number, state)
        self._history, self.first_reports = list(told), list(told)

    @property
    def n_steps(self) -> int:
        """Steps of its optimizer so far."""
        return self.epoch * self._n_steps

    def module(self) -> MLPClassifier:
        """The trial's module with its weights of now; they change as it trains on."""
        number, population = self.spec.number, self.population
        if population is not None and population.has(number):
            self._load(population.weights(number))
        return self._model

    def join(self, population: Population) -> None:
        """Take a place in `population`, from its next epoch on."""
        self.population = population
        if self.epoch == 0 and self.spec.start_epoch is None:
            self.start_epoch = population.epoch

    def as_it_was_kept(self) -> TrialSpec:
        """The trial from its last checkpoint, else from its beginning, in the same data order."""
        return dataclasses.replace(
            self.spec, start_epoch=self.start_epoch, resume_from=resume_file(self._folder)
        )

    def report(
        self, scores: Scores, epoch_s: float, names: Sequence[str] = METRICS
    ) -> EpochReport:
        """The report of the epoch just trained; `epoch_s` is the trial's share of its seconds."""
        metrics = {**{name: getattr(scores, name) for name in names}, "epoch_s": epoch_s}
        said = EpochReport(self.spec.number, self.epoch, metrics, now_ms(), self.start_epoch)
        self._history.append(said)
        return said

    def take(self, scores: Scores) -> bool:
        """Note an epoch's metrics; whether it is the best so far."""
        for metric in ("train_loss", "val_loss"):
            if not math.isfinite(value := getattr(scores, metric)):
                self.failure = not_finite(self.epoch, metric, value)
                return False
        value = getattr(scores, self._task.metric)
        objective = Objective(self._task.metric, self._task.direction)
        if not objective.better(value, self._best_value):
            return False
        self._best_value, self.best_epoch = value, self.epoch
        return True

    def prepare(self, feature_shape: tuple[int, ...]) -> None:
        """Do some of the work of `close` while others train."""
        prepare_export(self._model, feature_shape)

    def close(self, outcome: Any, reason: str, feature_shape: tuple[int, ...]) -> TrialResult:
        """Write what is to be kept; the trial's last word. Raises DiskError."""
        checkpoint = model_file = None
        if self.failure is None and self.best_epoch is not None:
            number, population = self.spec.number, self.population
            if population is not None and population.has(number):
                self._load(population.best_weights(number))
            else:
                self._load(self.member.best)
            checkpoint = write_checkpoint(
                self._folder / "best.ckpt", self._model, self.best_epoch - 1,
                self.best_epoch * self._n_steps,
            )  # fmt: skip
            if outcome == "finished" or reason == "converged":
                model_file = export_model(self._folder / "model.pt2", self._model, feature_shape)
        notes = {"sweep.trainer": "fused", "sweep.start_epoch": str(self.start_epoch)}
        result = TrialResult(
            self.spec.number, outcome, self.epoch, self.best_epoch, checkpoint, model_file,
            self.failure, notes,
        )  # fmt: skip
        return conclude(self._task, self.spec, self._history, result, reason)

    def write_resume_state(self) -> None:
        """Write `last.ckpt`. Raises DiskError."""
        number, population = self.spec.number, self.population
        if population is None or not population.has(number):
            return  # stopped before its first epoch here: what it came with is still there
        state = resume_state(self.spec, "fused", self.start_epoch, self._history) | {
            "epoch": self.epoch,
            "best_epoch": self.best_epoch,
            "best_value": self._best_value,
            "best": _plain(population.best_weights(number)),
            "states": [_plain(linears) for linears in population.states(number)],
        }
        self._load(population.weights(number))
        write_checkpoint(
            self._folder / RESUME_STATE, self._model, self.epoch - 1,
            self.epoch * self._n_steps, {RESUME_KEY: state},
        )  # fmt: skip

    def _load(self, linears: Linears) -> None:
        for own, given in zip(_linears(self._model), linears, strict=True):
            own[0].copy_(given[0])
            own[1].copy_(given[1])


def open_run(spec: TrialSpec, task: Task, data: SearchData) -> Run:
    """A run that is ready to join a population, from its resume state where it has one.

    One whose resume state cannot be used begins anew and says so in its first reports. Raises
    ValueError or TypeError for hyperparameters that MLPClassifier does not take, and what stands
    for a lack of memory.
    """
    clear_folder(spec, task)
    run = _new_run(spec, task, data)
    if spec.resume_from is None:
        return run
    try:
        run.resume(load_resume_file(spec, "fused"))
    except Exception as error:  # also values that only look like a resume state
        if classify(error).kind == "oom":
            raise
        run = _new_run(spec, task, data)
        run.first_reports = [unusable(spec, error)]
    return run


def _new_run(spec: TrialSpec, task: Task, data: SearchData) -> Run:
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
    return Run(spec, task, model, len(data.train))


def _linears(model: MLPClassifier) -> Linears:
    """Views of the model's own weights."""
    return [
        (layer.weight.detach(), layer.bias.detach())
        for layer in model.layers
        if isinstance(layer, nn.Linear)
    ]


def _like(linears: Any, like: Linears) -> Linears:
    """As pairs. Raises ValueError where shapes are not those of `like`."""
    pairs = [(weight, bias) for weight, bias in linears]
    for given, own in zip(pairs, like, strict=True):
        if [t.shape for t in given] != [t.shape for t in own]:
            raise ValueError("its layers have other shapes")
    return pairs


def _plain(linears: Linears) -> list[list[torch.Tensor]]:
    """Copies on the CPU: a view would be saved with all of the population's buffer."""
    return [[weight.cpu().clone(), bias.cpu().clone()] for weight, bias in linears]


def _batch_size(hyperparameters: Mapping[str, Any], task: Task) -> int:
    size = hyperparameters.get("batch_size") or task.batch_size
    if size < 1:
        raise ValueError(f"batch_size must be at least 1, but got {size}")
    return int(size)
