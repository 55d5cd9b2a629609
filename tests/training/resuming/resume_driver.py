"""A driver that stops trials when a test says so, and what a trial leaves to go on from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from sweep.files.trial_files import BEST, RESUME_STATE, TrialFiles
from sweep.testing import example_task
from sweep.training.fused.trainer import FusedTrainer
from sweep.training.plain.trainer import PlainTrainer
from sweep.trial import (
    EpochReport,
    Orders,
    Report,
    Stop,
    StopReason,
    Task,
    TrialResult,
    TrialSpec,
    derive_seed,
)

N_EPOCHS = 4
METRICS = ("train_loss", "val_loss", "val_acc")
BASE = {"hidden": (12, 6), "optimizer": "Adam", "lr": 5e-3}


class Driver:
    """Hands out specs; stops trial n with `reason` after epoch stops[n] was reported anew."""

    def __init__(
        self,
        specs: Sequence[TrialSpec],
        stops: Mapping[int, int] | None = None,
        reason: StopReason = "interrupted",
    ) -> None:
        self.waiting, self.stops, self.reason = list(specs), dict(stops or {}), reason
        self.calls: list[tuple[Report, ...]] = []

    def __call__(self, reports: Sequence[Report], n_free: int) -> Orders:
        self.calls.append(tuple(reports))
        stop = tuple(
            Stop(r.number, self.reason)
            for r in reports
            if isinstance(r, EpochReport) and self.stops.get(r.number) == r.epoch
        )
        start, self.waiting = self.waiting[:n_free], self.waiting[n_free:]
        return Orders(stop, tuple(start), is_last=not self.waiting)

    def of(self, kind: type[Any]) -> list[Any]:
        return [r for reports in self.calls for r in reports if isinstance(r, kind)]

    def epochs(self, number: int) -> list[EpochReport]:
        return [r for r in self.of(EpochReport) if r.number == number]

    def curve(self, number: int) -> list[tuple[float, ...]]:
        """(epochs, 3), replayed or new; each epoch once and in order."""
        reports = self.epochs(number)
        assert [r.epoch for r in reports] == list(range(1, len(reports) + 1))
        return [tuple(r.metrics[name] for name in METRICS) for r in reports]

    def result(self, number: int) -> TrialResult:
        (found,) = [r for r in self.of(TrialResult) if r.number == number]
        assert isinstance(found, TrialResult)
        return found


def train(trainer: Any, specs: Sequence[TrialSpec], *given: Any, **more: Any) -> Driver:
    driver = Driver(specs, *given, **more)
    trainer.train(driver)
    return driver


def spec(number: int, **hyperparameters: Any) -> TrialSpec:
    return TrialSpec(number, BASE | hyperparameters, derive_seed(0, "init", number))


def continued(task: Task, given: TrialSpec) -> TrialSpec:
    """The trial from its resume state, as a driver hands it out again."""
    assert TrialFiles(task.work_dir, given.number).whole(RESUME_STATE) is not None
    return dataclasses.replace(given, is_resumed=True)


def files(task: Task, number: int) -> set[str]:
    folder = TrialFiles(task.work_dir, number).folder
    return {file.name for file in folder.iterdir()} if folder.is_dir() else set()


ENDED = {"best.ckpt", "model.pt2", "verdict.json"}
TRAINERS: dict[str, Any] = {"plain": PlainTrainer, "fused": FusedTrainer}
both = pytest.mark.parametrize("path", TRAINERS)


def a_task(folder: Path, **changes: Any) -> Task:
    return example_task(folder, epochs=N_EPOCHS, population=4, **changes)


def weights_of(task: Task, result: TrialResult) -> dict[str, torch.Tensor]:
    assert result.has_checkpoint
    path = TrialFiles(task.work_dir, result.number).path(BEST)
    checkpoint = torch.load(path, weights_only=True)
    return dict(checkpoint["state_dict"])
