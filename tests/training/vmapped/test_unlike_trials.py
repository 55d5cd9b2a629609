"""Trials that differ in more than numbers share their steps with their own kind only."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import projects
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from own_fits import EPOCHS, STUDY_SEED, alone, curve_of, in_population

from sweep.files.trial_files import BEST, TrialFiles
from sweep.testing import ScriptedExchange, example_task
from sweep.training.lightning_trainer import hush_lightning
from sweep.training.plain.trainer import PlainTrainer
from sweep.training.resuming import seed_everything
from sweep.trial import TrialSpec

UNLIKE: dict[str, list[dict[str, Any]]] = {
    "parameter groups": [{}, {"is_swapped": True}],
    "frozen for some epochs": [{"frozen_until": 0}, {"frozen_until": 2}],
    "modes of parts": [{}, {"is_still": True}],
}


def trained(folder: Path, given: list[dict[str, Any]], **changes: Any) -> ScriptedExchange:
    """Trials side by side, in float64."""
    hush_lightning()
    specs = [TrialSpec(n, one, seed=n) for n, one in enumerate(given)]
    task = example_task(
        folder, module="projects:Thawing", data="projects:Points", metric="val_loss",
        epochs=EPOCHS, direction="minimize", population=len(given), log_models="none",
        names=("lr",), seed=STUDY_SEED, precision="64-true",
    )  # fmt: skip
    exchange = ScriptedExchange(specs, {})
    PlainTrainer(dataclasses.replace(task, **changes)).train(exchange)
    return exchange


def see_that_each_is_as_alone(
    exchange: ScriptedExchange, given: list[dict[str, Any]], folder: Path, **settings: Any
) -> None:
    """Each curve is that of a Trainer alone."""
    for number, one in enumerate(given):
        seed_everything(number)
        module, data = projects.Thawing(**one), projects.Points()
        in_population(module, data, 0)
        wanted = [m["val_loss"] for m in alone(module, data, folder, "64-true", **settings)]
        found = [m["val_loss"] for m in curve_of(exchange, number)]
        assert found == pytest.approx(wanted, rel=1e-9), one
        if exchange.results()[number].best_epoch == EPOCHS:
            checkpoint = TrialFiles(folder / "example", number).path(BEST)
            weights = torch.load(checkpoint, weights_only=True)["state_dict"]
            for name, value in module.state_dict().items():
                gap = (weights[name] - value).abs().max() / value.abs().max()
                assert gap <= 1e-9, (one, name)


@pytest.mark.parametrize("case", UNLIKE)
def test_those_of_a_kind_share_their_steps(tmp_path: Path, case: str) -> None:
    """Two of one kind beside two of another."""
    given = [{"lr": 0.01 * (1 + n), **UNLIKE[case][n % 2]} for n in range(4)]
    exchange = trained(tmp_path, given)
    notes = [exchange.results()[n].notes["sweep.trainer"] for n in range(4)]
    assert notes == ["vmapped"] * 4
    see_that_each_is_as_alone(exchange, given, tmp_path)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.parametrize("limit", [0, 0.05])
def test_gradients_are_clipped_as_alone(tmp_path: Path, limit: float, algorithm: str) -> None:
    """Zero is no clipping."""
    given = [{"lr": 0.01}, {"lr": 0.03}, {"lr": 0.02}]
    clip = {"gradient_clip_val": limit, "gradient_clip_algorithm": algorithm}
    exchange = trained(tmp_path, given, config={"trainer": clip})
    assert exchange.results()[0].notes["sweep.trainer"] == "vmapped"
    see_that_each_is_as_alone(exchange, given, tmp_path, **clip)


def test_gradients_accumulated_from_an_epoch_on(tmp_path: Path) -> None:
    """What a callback changes between epochs is seen."""
    given = [{"lr": 0.01}, {"lr": 0.03}, {"lr": 0.02}]
    exchange = trained(tmp_path, given, callbacks=("test_unlike_trials:accumulating",))
    assert exchange.results()[0].notes["sweep.trainer"] == "vmapped"
    see_that_each_is_as_alone(exchange, given, tmp_path, callbacks=[accumulating()])


def accumulating() -> GradientAccumulationScheduler:
    """Two minibatches a step from the third epoch on."""
    return GradientAccumulationScheduler({2: 2})
