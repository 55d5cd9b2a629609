"""Steps that trials take together are each trial's own steps."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import projects
import pytest
import torch
from own_fits import EPOCHS, STUDY_SEED, alone, curve_of, in_population

from sweep.files.trial_files import BEST, RESUME_STATE, TrialFiles
from sweep.testing import ScriptedExchange, example_task
from sweep.training.lightning_trainer import hush_lightning
from sweep.training.plain.trainer import PlainTrainer
from sweep.training.resuming import seed_everything
from sweep.trial import TrialSpec

GIVEN: list[dict[str, Any]] = [
    {"lr": 0.01, "dropout": 0.2, "l1": 0.01},
    {"lr": 1e30, "dropout": 0.1, "optimizer": "SGD", "momentum": 0.5},  # not finite
    {"lr": 0.02, "dropout": 0.5, "blur": 0.3, "optimizer": "SGD"},
    {"lr": 0.003, "dropout": 0.0, "l1": 0.2, "optimizer": "RMSprop", "momentum": 0.3, "seed": 7},
    {"lr": 0.05, "dropout": 0.4, "l1": 0.05, "optimizer": "Adamax"},  # takes its own steps
    {"lr": 0.03, "dropout": 0.3, "l1": 0.1, "optimizer": "AdamW", "momentum": 0.1},
    {"lr": 0.04, "dropout": 0.6, "optimizer": "NAdam", "blur": 0.0},
]


def trained(
    folder: Path, specs: list[TrialSpec], stops: dict[int, int], reason: Any = "pruned",
    population: int = 5, **changes: Any,
) -> ScriptedExchange:  # fmt: skip
    """Trials that take their steps together."""
    task = example_task(
        folder, module="projects:Mixed", data="projects:Points", metric="val_loss",
        direction="minimize", epochs=EPOCHS, population=population, log_models="none",
        names=("lr",), seed=STUDY_SEED, precision="64-true", **changes,
    )  # fmt: skip
    exchange = ScriptedExchange(specs, stops, reason)
    PlainTrainer(task).train(exchange)
    return exchange


def expected(folder: Path, spec: TrialSpec, start_epoch: int) -> list[dict[str, float]]:
    """The curve of a Trainer alone."""
    seed_everything(spec.seed)
    module, data = projects.Mixed(**spec.hyperparameters), projects.Points()
    in_population(module, data, start_epoch)
    return alone(module, data, folder, precision="64-true")


def test_numbers_masks_buffers_and_optimizers_are_each_trials_own(tmp_path: Path) -> None:
    """One is pruned, one is not finite, two join: each has the curve of a Trainer alone, metrics
    of its training steps included."""
    hush_lightning()
    specs = [TrialSpec(n, given, seed=20 + n) for n, given in enumerate(GIVEN)]
    exchange = trained(tmp_path, specs, {0: 2})
    results = exchange.results()
    assert {n: r.notes["sweep.trainer"] for n, r in results.items()} == dict.fromkeys(
        range(7), "vmapped"
    )
    assert results[1].failure is not None
    assert results[1].failure.kind == "nan"
    assert exchange.epochs(6)[0].start_epoch > 0
    for spec in (specs[n] for n in (0, 2, 3, 4, 5, 6)):
        found = curve_of(exchange, spec.number)
        start = exchange.epochs(spec.number)[0].start_epoch
        wanted = expected(tmp_path, spec, start)
        assert len(found) == (2 if spec.number == 0 else EPOCHS)
        for epoch, (ours, theirs) in enumerate(zip(found, wanted, strict=False)):
            known = {name: theirs[name] for name in ours}
            assert "train_error" in known
            for name, value in ours.items():
                rel = near(name, spec.hyperparameters.get("optimizer", ""))
                assert value == pytest.approx(known[name], rel=rel), (spec, epoch, name)


def test_checkpoints_hold_one_trials_weights(tmp_path: Path) -> None:
    """Not the whole stack that they are views of."""
    specs = [TrialSpec(n, GIVEN[0], seed=n) for n in range(5)]
    trained(tmp_path, specs, dict.fromkeys(range(5), 2), "interrupted")
    n_values = 24 + 6 + 6 + 6 + 1
    files = TrialFiles(tmp_path / "example", 0)
    for file in (RESUME_STATE, BEST):
        if not files.size(file):
            continue
        weights = torch.load(files.path(file), weights_only=True)["state_dict"]
        held = {v.untyped_storage().data_ptr(): v.untyped_storage().nbytes()
                for name, v in weights.items() if name.startswith("net")}  # fmt: skip
        assert sum(held.values()) <= 8 * (n_values + 20), file


def test_a_population_of_another_size_gives_the_same_curves(tmp_path: Path) -> None:
    """Alone, in a small and in a large one; interrupted and resumed in another."""
    specs = [TrialSpec(n, GIVEN[k], seed=n) for n, k in enumerate((0, 2, 3, 5))]
    large = trained(tmp_path / "large", specs, {}, population=4)
    for spec in specs[:2]:
        small = trained(tmp_path / f"small{spec.number}", [spec], {}, population=2)
        assert small.results()[spec.number].notes["sweep.trainer"] == "vmapped"
        assert close(curve_of(small, spec.number), curve_of(large, spec.number))
    trained(tmp_path / "parts", specs, dict.fromkeys(range(4), 2), "interrupted", population=4)
    resumed = [dataclasses.replace(spec, is_resumed=True) for spec in specs]
    for few in (resumed[:1], resumed[1:]):
        again = trained(tmp_path / "parts", few, {}, population=3)
        for spec in few:
            assert close(curve_of(again, spec.number), curve_of(large, spec.number))


def near(name: str, optimizer: str = "") -> float:
    """How close a metric is: Lightning and torchmetrics add up training steps in float32, and
    torch keeps NAdam's product of momenta so."""
    return 1e-5 if name.startswith("train") else 1e-6 if optimizer == "NAdam" else 1e-10


def close(a: list[dict[str, float]], b: list[dict[str, float]]) -> bool:
    """Whether two curves agree."""
    assert len(a) == len(b) == EPOCHS
    return all(
        math.isclose(x[name], y[name], rel_tol=near(name))
        for x, y in zip(a, b, strict=True)
        for name in x
    )


LINES = [(0.05, 40), (0.01, 8), (0.02, 8), (0.03, 8), (0.04, 8), (0.06, 40)]


def lines(
    folder: Path, specs: list[TrialSpec], stops: dict[int, int], reason: Any = "pruned"
) -> ScriptedExchange:
    """Three at a time; those of another minibatch size take their steps alone."""
    task = example_task(
        folder, module="projects:Line", data="projects:Points", metric="val_loss", epochs=EPOCHS,
        direction="minimize", population=3, log_models="none", names=("lr", "batch_size"),
        seed=STUDY_SEED, precision="64-true",
    )  # fmt: skip
    exchange = ScriptedExchange(specs, stops, reason)
    PlainTrainer(task).train(exchange)
    return exchange


def see_that_it_is_as_alone(exchange: ScriptedExchange, spec: TrialSpec, folder: Path) -> None:
    """What a trial reported is a part of the curve of a Trainer alone."""
    seed_everything(spec.seed)
    module = projects.Line(spec.hyperparameters["lr"])
    data = projects.Points(spec.hyperparameters["batch_size"])
    in_population(module, data, exchange.epochs(spec.number)[0].start_epoch)
    wanted = [metrics["val_loss"] for metrics in alone(module, data, folder, precision="64-true")]
    reports = exchange.epochs(spec.number)
    assert reports
    found = {r.epoch: r.metrics["val_loss"] for r in reports}
    for epoch, ours in found.items():
        assert ours == pytest.approx(wanted[epoch - 1], rel=1e-10), (spec, epoch)


def line_specs() -> list[TrialSpec]:
    """Two of minibatches of 40, four of 8."""
    return [
        TrialSpec(n, {"lr": lr, "batch_size": size}, seed=n) for n, (lr, size) in enumerate(LINES)
    ]


def test_one_that_joins_leaves_a_group_within_its_epoch_alone(tmp_path: Path) -> None:
    """Trials of another minibatch size end while a group is in the midst of an epoch."""
    exchange = lines(tmp_path, line_specs(), {0: 1})
    assert exchange.results()[1].notes["sweep.trainer"] == "vmapped"
    for spec in line_specs():
        see_that_it_is_as_alone(exchange, spec, tmp_path)
        n_epochs = 1 if spec.number == 0 else EPOCHS
        assert max(r.epoch for r in exchange.epochs(spec.number)) == n_epochs


def test_one_that_is_behind_leaves_a_group_within_its_epoch_alone(tmp_path: Path) -> None:
    """It is resumed at an earlier epoch than the group's, while that is in the midst of one."""
    specs = line_specs()[:4]
    lines(tmp_path, specs[1:], {1: 1, 2: 3, 3: 3}, "interrupted")
    resumed = [dataclasses.replace(spec, is_resumed=True) for spec in specs]
    exchange = lines(tmp_path, [specs[0], *resumed[2:4], resumed[1]], {0: 1})
    for spec in specs:
        see_that_it_is_as_alone(exchange, spec, tmp_path)
    assert max(r.epoch for r in exchange.epochs(1)) == EPOCHS
