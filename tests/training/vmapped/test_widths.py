"""Trials of different widths share their steps: padded with zeros, and exactly as alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import wide_modules
from own_fits import EPOCHS, STUDY_SEED, alone, curve_of, in_population
from projects import Points
from torch import Tensor

from sweep.files.trial_files import BEST, RESUME_STATE, TrialFiles
from sweep.testing import ScriptedExchange, example_task
from sweep.training.lightning_trainer import hush_lightning
from sweep.training.plain.trainer import PlainTrainer
from sweep.training.resuming import seed_everything
from sweep.trial import TrialSpec

GIVEN: list[dict[str, Any]] = [
    {"lr": 0.01, "width": 7, "inner": 4},
    {"lr": 1e30, "width": 9, "inner": 5, "optimizer": "SGD"},  # not finite
    {"lr": 0.03, "width": 16, "inner": 3, "dropout": 0.5, "factor": 2.0},
    {"lr": 0.02, "width": 5, "inner": 8, "dropout": 0.0, "optimizer": "NAdam"},
    {"lr": 0.02, "width": 11, "inner": 8, "optimizer": "Adamax"},  # takes its own steps
    {"lr": 0.05, "width": 8, "inner": 2, "optimizer": "SGD"},
    {"lr": 0.003, "width": 13, "inner": 6, "optimizer": "RMSprop", "factor": 0.5},
]
SEEN: list[tuple[int, int]] = []
"""(padded columns of a trial's weights, numbers in them that are not zero) at epochs' ends."""


class Looks(lightning.Callback):
    """Looks at the memory around a trial's weights."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Of matrices, and of the optimizer's state."""
        tensors = [p.detach() for p in pl_module.parameters()]
        tensors += [v for s in trainer.optimizers[0].state.values() for v in s.values()
                    if isinstance(v, Tensor)]  # fmt: skip
        tensors = [t for t in tensors if t.dim() == 2 and len(t) > 1]
        n_nonzero = 0
        for tensor in tensors:
            n_rows, wide = len(tensor), tensor.stride(0)
            n_nonzero += int(tensor.as_strided((n_rows, wide), (wide, 1)).count_nonzero())
            n_nonzero -= int(tensor.count_nonzero())
        SEEN.append((max(t.stride(0) - t.shape[1] for t in tensors), n_nonzero))


def looking() -> Looks:
    """Made anew for each trial."""
    return Looks()


def trained(
    folder: Path, given: Sequence[Mapping[str, Any]], stops: Mapping[int, int] | None = None,
    reason: Any = "pruned", module: str = "Wide", population: int = 5,
    log_models: str = "none", **changes: Any,
) -> ScriptedExchange:  # fmt: skip
    """Trials of a population, in float64."""
    hush_lightning()
    SEEN.clear()
    specs = [TrialSpec(n, one, seed=20 + n) for n, one in enumerate(given)]
    task = example_task(
        folder, module=f"wide_modules:{module}", data="projects:Points", metric="val_loss",
        epochs=EPOCHS, direction="minimize", population=population, log_models=log_models,
        names=("lr",), seed=STUDY_SEED, precision="64-true", callbacks=("test_widths:looking",),
        **changes,
    )  # fmt: skip
    exchange = ScriptedExchange(specs, dict(stops or {}), reason)
    PlainTrainer(task).train(exchange)
    return exchange


def see_that_it_is_as_alone(
    exchange: ScriptedExchange, number: int, given: Mapping[str, Any], folder: Path,
    module: str = "Wide", n_epochs: int = EPOCHS, **settings: Any,
) -> None:  # fmt: skip
    """Its curve and its weights are those of a Trainer alone."""
    seed_everything(20 + number)
    lone, data = getattr(wide_modules, module)(**given), Points()
    in_population(lone, data, exchange.epochs(number)[0].start_epoch)
    wanted = alone(lone, data, folder, "64-true", **settings)[:n_epochs]
    found = curve_of(exchange, number)
    assert len(found) == n_epochs
    rel = 1e-6 if given.get("optimizer") == "NAdam" else 1e-10  # torch's product is in float32
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours["val_loss"] == pytest.approx(theirs["val_loss"], rel=rel), given
        if "train_loss" in theirs:  # Lightning adds up in float32
            assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-5), given
    result = exchange.results()[number]
    if result.best_epoch != EPOCHS:
        return
    checkpoint = TrialFiles(folder / "example", number).path(BEST)
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    for name, value in lone.state_dict().items():
        assert weights[name].shape == value.shape
        assert (weights[name] - value).abs().max() <= rel * value.abs().max(), (given, name)


def see_that_some_were_padded() -> None:
    """Trials' weights are parts of wider ones, with zeros around them."""
    assert any(n_padded for n_padded, _ in SEEN)
    assert {n_nonzero for _, n_nonzero in SEEN} == {0}


def test_each_is_as_alone_whatever_its_neighbours_do(tmp_path: Path) -> None:
    """One is pruned, one is not finite, two join; with four optimizers."""
    exchange = trained(tmp_path, GIVEN, {0: 2})
    results = exchange.results()
    assert {r.notes["sweep.trainer"] for r in results.values()} == {"vmapped"}
    assert results[1].failure is not None
    assert results[1].failure.kind == "nan"
    assert exchange.epochs(6)[0].start_epoch > 0
    assert any(n_padded for n_padded, _ in SEEN)
    for number in (0, 2, 3, 4, 5, 6):
        n_epochs = 2 if number == 0 else EPOCHS
        see_that_it_is_as_alone(exchange, number, GIVEN[number], tmp_path, n_epochs=n_epochs)


FINITE = [GIVEN[0], *GIVEN[2:]]


def test_gradients_are_clipped_by_the_norm_of_the_own_ones(tmp_path: Path) -> None:
    """And zeros stay zeros."""
    clip = {"gradient_clip_val": 0.02}
    exchange = trained(tmp_path, FINITE, population=6, config={"trainer": clip})
    see_that_some_were_padded()
    for number, given in enumerate(FINITE):
        see_that_it_is_as_alone(exchange, number, given, tmp_path, **clip)


def test_gradients_clipped_by_value_are_not_padded(tmp_path: Path) -> None:
    """Infinite ones are clipped, too, but zero times infinity cannot be."""
    clip = {"gradient_clip_val": 0.02, "gradient_clip_algorithm": "value"}
    exchange = trained(tmp_path, FINITE[:3], config={"trainer": clip})
    assert {n_padded for n_padded, _ in SEEN} == {0}
    for number, given in enumerate(FINITE[:3]):
        assert exchange.results()[number].notes["sweep.trainer"] == "vmapped"
        see_that_it_is_as_alone(exchange, number, given, tmp_path, **clip)


def test_files_hold_a_trials_own_shapes_and_go_on_alone(tmp_path: Path) -> None:
    """Interrupted among others, resumed alone; weights and optimizer's state are not padded."""
    given = [{"width": 64, "inner": 8}, {"width": 3, "inner": 2}, {"width": 9, "inner": 5}]
    trained(tmp_path, given, dict.fromkeys(range(3), 2), "interrupted")
    see_that_some_were_padded()
    for number, one in enumerate(given):
        n_own = sum(p.numel() for p in wide_modules.Wide(**one).parameters())
        files = TrialFiles(tmp_path / "example", number)
        held = torch.load(files.path(RESUME_STATE), weights_only=True)
        own = [*held["state_dict"].values()]
        own += [v for s in held["optimizer_states"][0]["state"].values() for v in s.values()]
        n_bytes = sum(tensor.untyped_storage().nbytes() for tensor in own)
        assert n_bytes <= 8 * (3 * n_own + 20)
        assert files.size(RESUME_STATE) <= 8 * 4 * n_own + 40_000
    for number, one in enumerate(given):
        spec = TrialSpec(number, one, seed=20 + number, is_resumed=True)
        task = example_task(
            tmp_path, module="wide_modules:Wide", data="projects:Points", metric="val_loss",
            epochs=EPOCHS, direction="minimize", population=2, log_models="none", names=("lr",),
            seed=STUDY_SEED, precision="64-true",
        )  # fmt: skip
        exchange = ScriptedExchange([spec])
        PlainTrainer(task).train(exchange)
        see_that_it_is_as_alone(exchange, number, one, tmp_path)


def test_models_are_exported_with_a_trials_own_shapes(tmp_path: Path) -> None:
    """torch.export warns of parts of one memory; warnings are errors here."""
    exchange = trained(tmp_path, FINITE[:3], log_models="all")
    see_that_some_were_padded()
    assert all(result.has_model for result in exchange.results().values())


HABITS = ("mean", "softmax", "sizes", "number of rows", "own width", "added", "in place",
          "unseen", "batch norm", "layer norm without weights")  # fmt: skip


@pytest.mark.parametrize("habit", HABITS)
def test_what_padding_would_change_is_not_padded(tmp_path: Path, habit: str) -> None:
    """But takes its own steps, as alone."""
    given = [{"lr": 0.01 * (1 + n), "width": width, "habit": habit}
             for n, width in enumerate((5, 8, 6))]  # fmt: skip
    exchange = trained(tmp_path, given, module="Odd")
    assert {n_padded for n_padded, _ in SEEN} == {0}
    for number, one in enumerate(given):
        see_that_it_is_as_alone(exchange, number, one, tmp_path, module="Odd")


def test_the_same_module_without_such_habits_is_padded(tmp_path: Path) -> None:
    """Else the test above would say nothing."""
    given = [{"lr": 0.01 * (1 + n), "width": width} for n, width in enumerate((5, 8, 6))]
    exchange = trained(tmp_path, given, module="Even")
    see_that_some_were_padded()
    for number, one in enumerate(given):
        see_that_it_is_as_alone(exchange, number, one, tmp_path, module="Even")
