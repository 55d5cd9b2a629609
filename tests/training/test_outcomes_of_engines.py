"""Every engine keeps what its trials said of each validation sample."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from projects import Line, Points
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MeanSquaredError, R2Score

from sweep.files.outcomes import Outcomes, read_outcomes
from sweep.testing import ScriptedExchange, example_task
from sweep.training import make_trainer
from sweep.trial import Task, TrialSpec

SPECS = [
    TrialSpec(0, {"hidden": (12,), "lr": 0.05, "optimizer": "SGD"}, 1),
    TrialSpec(1, {"hidden": (16, 8), "lr": 0.01, "optimizer": "Adam"}, 2),
]


class OfObject(Line):
    """Logs a metric object that it calls."""

    def __init__(self, lr: float = 0.01) -> None:
        super().__init__(lr)
        self.error = MeanSquaredError()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.error(self(batch[0]), batch[1])
        self.log("val_loss", self.error)


class NoMean(Line):
    """Logs a metric object that is no mean of minibatches."""

    def __init__(self, lr: float = 0.01) -> None:
        super().__init__(lr)
        self.fit = R2Score()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.fit(self(batch[0]), batch[1])
        self.log("val_loss", self.fit)


class Updating(OfObject):
    """Updates its metric object, so that no minibatch has a value of its own."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.error.update(self(batch[0]), batch[1])
        self.log("val_loss", self.error)


class Boxed:
    """A minibatch whose size nobody can tell."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch


class InBoxes(Points):
    """Validates in minibatches of a class of its own."""

    def val_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(
            self.sets[1], 8, collate_fn=lambda rows: Boxed(torch.utils.data.default_collate(rows))
        )


class OfBoxes(OfObject):
    """Knows what is in them."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch.batch, batch_idx)


class AtTheEnd(Line):
    """Logs once, after the validation."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.last = functional.mse_loss(self(batch[0]), batch[1])

    def on_validation_epoch_end(self) -> None:
        self.log("val_loss", self.last)


class BySample(Line):
    """Logs once, after the validation, and returns a value for each sample."""

    def on_validation_epoch_start(self) -> None:
        self.losses: list[Tensor] = []

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, dict[str, Tensor]]:
        self.losses.append(functional.mse_loss(self(batch[0]), batch[1], reduction="none"))
        return {"outcomes": {"val_loss": self.losses[-1]}}

    def on_validation_epoch_end(self) -> None:
        self.log("val_loss", torch.cat(self.losses).mean())


class InTwo(Points):
    """Validates in minibatches of 8, 8 and 4."""

    def val_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(self.sets[1], 8)


def outcomes(task: Task, specs: list[TrialSpec], **stops: Any) -> list[tuple[Outcomes, list[Any]]]:
    """Each trial's outcomes, and the metrics of its epochs."""
    exchange = ScriptedExchange(specs, *stops.values())
    make_trainer(task).train(exchange)
    found = []
    for spec in specs:
        one = read_outcomes(task.work_dir, spec.number)
        assert one is not None
        found.append((one, [report.metrics for report in exchange.epochs(spec.number)]))
    return found


@pytest.mark.parametrize("metric", ["val_acc", "val_loss"])
@pytest.mark.parametrize("engine", ["compiled", "stacked", "plain"])
def test_the_networks_outcomes_are_its_metric(
    tmp_path: Path, engine: str, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their mean is each epoch's metric, sample by sample, in all engines alike."""
    if engine == "stacked":
        monkeypatch.setenv("SWEEP_KERNEL", "off")
    direction = "maximize" if metric == "val_acc" else "minimize"
    task = example_task(
        tmp_path, epochs=3, metric=metric, direction=direction, precision="64-true",
        population=1 if engine == "plain" else 64,
    )  # fmt: skip
    for one, metrics in outcomes(task, SPECS):
        assert one.values.shape[0] == 3
        assert (one.sizes == 1).all()
        said = [epoch[metric] for epoch in metrics]
        assert one.values.mean(1) == pytest.approx(said, rel=2e-3)
        assert set(np.unique(one.values)) <= {0.0, 1.0} or metric == "val_loss"


def test_engines_say_the_same_of_each_sample(tmp_path: Path) -> None:
    """In float64 the plain trainer's hits are the kernel's."""
    found = []
    for name, population in (("one", 1), ("many", 64)):
        task = example_task(tmp_path / name, epochs=3, precision="64-true", population=population)
        found.append([one.values for one, _ in outcomes(task, SPECS)])
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


def own(tmp_path: Path, name: str, data: str = "InTwo") -> Task:
    """A task for a module of this file."""
    here = Path(__file__).stem
    return example_task(
        tmp_path, epochs=2, metric="val_loss", direction="minimize", population=1,
        module=f"{here}:{name}", data=f"{here}:{data}", names=("lr",),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["Line", "OfObject", "BySample"])
def test_a_users_metric_is_known_by_minibatch_or_sample(tmp_path: Path, name: str) -> None:
    """A logged value, a metric object that is called, values that the step returns."""
    ((one, metrics),) = outcomes(own(tmp_path, name), [TrialSpec(0, {"lr": 0.01}, 1)])
    assert not one.why_not
    assert one.sizes.tolist() == ([1] * 20 if name == "BySample" else [8, 8, 4])
    said = [epoch["val_loss"] for epoch in metrics]
    assert np.average(one.values, axis=1, weights=one.sizes) == pytest.approx(said, rel=2e-3)


@pytest.mark.parametrize(
    ("name", "why"),
    [("NoMean", "is not the mean"), ("Updating", "call it"), ("AtTheEnd", "validation_step")],
)
def test_what_is_no_mean_of_minibatches_is_said(tmp_path: Path, name: str, why: str) -> None:
    """Nothing is kept, the reason is, and the curve is what it was."""
    ((one, metrics),) = outcomes(own(tmp_path, name), [TrialSpec(0, {"lr": 0.01}, 1)])
    assert why in one.why_not
    assert len(metrics) == 2


def test_minibatches_of_unknown_size_fail_no_trial(tmp_path: Path) -> None:
    """Lightning needs no size for a metric object, so sweep may not, either."""
    ((one, metrics),) = outcomes(
        own(tmp_path, "OfBoxes", "InBoxes"), [TrialSpec(0, {"lr": 0.01}, 1)]
    )
    assert "unknown size" in one.why_not
    assert len(metrics) == 2


def test_the_module_is_as_it_was(tmp_path: Path) -> None:
    """Its `log` is its class's own between validations, for copies and checkpoints."""
    from sweep.training.plain.outcomes import ValidationOutcomes

    module, watch = Line(), ValidationOutcomes("val_loss")
    watch.begin(module)
    assert "log" in vars(module)
    watch.begin(module)
    watch.end()
    assert "log" not in vars(module)
    assert isinstance(module, nn.Module)


@pytest.mark.parametrize("population", [1, 64])
def test_an_interrupted_trial_has_the_outcomes_of_all_epochs(
    tmp_path: Path, population: int
) -> None:
    """Two epochs, an interruption, two more: those of a trial that was not interrupted."""
    task = example_task(tmp_path / "broken", epochs=4, precision="64-true", population=population)
    make_trainer(task).train(ScriptedExchange(SPECS, {0: 2, 1: 2}, "interrupted"))
    again = [dataclasses.replace(spec, is_resumed=True) for spec in SPECS]
    rest = outcomes(task, again)
    whole = outcomes(dataclasses.replace(task, work_dir=str(tmp_path / "whole")), SPECS)
    for (mine, _), (right, _) in zip(rest, whole, strict=True):
        assert np.array_equal(mine.values, right.values)


@pytest.mark.parametrize("population", [1, 64])
def test_bfloat16_is_no_fault(tmp_path: Path, population: int) -> None:
    """numpy does not know it."""
    task = example_task(
        tmp_path, metric="val_loss", direction="minimize", precision="bf16-true",
        population=population,
    )  # fmt: skip
    for one, metrics in outcomes(task, SPECS):
        assert len(metrics) == 2
        assert one.why_not or len(one.values) == 2


def test_epochs_without_a_validation_have_no_outcomes(tmp_path: Path) -> None:
    """Every second epoch is validated."""
    task = dataclasses.replace(
        own(tmp_path, "Line"), epochs=4, config={"trainer": {"check_val_every_n_epoch": 2}}
    )
    ((one, metrics),) = outcomes(task, [TrialSpec(0, {"lr": 0.01}, 1)])
    assert not one.why_not
    said = [epoch["val_loss"] for epoch in metrics if "val_loss" in epoch]
    assert len(said) == 2
    assert np.average(one.values, axis=1, weights=one.sizes) == pytest.approx(said, rel=2e-3)
