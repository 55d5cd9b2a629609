"""The plain trainer on the bundled digits: curves, checkpoints, failures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import user_code

from sweep.data.tensors import load_search_data
from sweep.errors import ConfigError
from sweep.files.trial_files import BEST, MODEL, TrialFiles
from sweep.testing import ScriptedExchange, TrainerContract, example_task
from sweep.training.mlp import MLPClassifier
from sweep.training.plain.trainer import PlainTrainer
from sweep.trial import Task, TrialSpec

GOOD = {"hidden": (32,), "optimizer": "Adam", "lr": 0.01}


def trained(task: Task, *configurations: Mapping[str, Any], **options: Any) -> ScriptedExchange:
    """What the plain trainer reports of these configurations."""
    specs = [TrialSpec(number, values, 7) for number, values in enumerate(configurations)]
    exchange = ScriptedExchange(specs, **options)
    PlainTrainer(task).train(exchange)
    return exchange


class TestPlainTrainer(TrainerContract):
    """The contract of every trainer."""

    def make_trainer(self, task: Task) -> PlainTrainer:
        return PlainTrainer(task)


@pytest.fixture(scope="module")
def curve(tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, ScriptedExchange]:
    """One trial whose learning rate is so large that its best epoch is not its last."""
    task = example_task(tmp_path_factory.mktemp("single"), epochs=6)
    steep = {"hidden": (32,), "optimizer": "RMSprop", "lr": 0.05, "dropout": 0.3}
    return task, trained(task, steep)


def test_metrics_of_an_epoch(curve: tuple[Task, ScriptedExchange]) -> None:
    """Every epoch reports losses, accuracy and its seconds, all finite."""
    for report in curve[1].epochs(0):
        assert set(report.metrics) == {"train_loss", "val_loss", "val_acc", "epoch_s"}
        assert all(map(math.isfinite, report.metrics.values()))


def test_the_checkpoint_is_the_best_epochs(curve: tuple[Task, ScriptedExchange]) -> None:
    """Loaded as plain values, it gives the validation accuracy and loss of the best epoch."""
    task, exchange = curve
    result = exchange.results()[0]
    accuracies = exchange.curve(0, "val_acc")
    best = max(range(len(accuracies)), key=accuracies.__getitem__)
    assert best + 1 != len(accuracies), "choose a configuration whose last epoch is not its best"
    assert result.best_epoch == best + 1
    model = MLPClassifier.load_from_checkpoint(
        TrialFiles(task.work_dir, 0).path(BEST), map_location="cpu", weights_only=True
    ).eval()
    val = load_search_data("digits", None, task.seed).val
    with torch.no_grad():
        logits = model(val.x)
    accuracy = (logits.argmax(1) == val.y).float().mean().item()
    loss = torch.nn.functional.cross_entropy(logits, val.y).item()
    assert accuracy == pytest.approx(accuracies[best], abs=1e-6)
    assert loss == pytest.approx(exchange.curve(0, "val_loss")[best], rel=1e-4)


def test_the_exported_model_predicts_as_the_checkpoint(
    curve: tuple[Task, ScriptedExchange],
) -> None:
    """The .pt2 archive needs no code of ours and gives the same logits."""
    task, _ = curve
    model = MLPClassifier.load_from_checkpoint(
        TrialFiles(task.work_dir, 0).path(BEST), map_location="cpu", weights_only=True
    ).eval()
    x = load_search_data("digits", None, task.seed).val.x[:5]
    with torch.no_grad():
        exported = torch.export.load(TrialFiles(task.work_dir, 0).path(MODEL)).module()(x)
        assert torch.allclose(exported, model(x), atol=1e-6)


def test_training_learns(tmp_path: Path) -> None:
    """A good configuration passes 90 % of the digits in three epochs."""
    exchange = trained(example_task(tmp_path, epochs=3), GOOD)
    assert max(exchange.curve(0, "val_acc")) > 0.9


def test_a_trial_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    """The same spec gives the same curve alone and after another trial."""
    task = example_task(tmp_path)
    alone = trained(task, GOOD | {"dropout": 0.2})
    specs = [TrialSpec(1, GOOD | {"lr": 0.1}, 3), TrialSpec(0, GOOD | {"dropout": 0.2}, 7)]
    after = ScriptedExchange(specs)
    PlainTrainer(task).train(after)
    assert alone.curve(0, "train_loss") == after.curve(0, "train_loss")
    assert alone.curve(0, "val_loss") == after.curve(0, "val_loss")


def test_the_seed_decides(tmp_path: Path) -> None:
    """Another trial seed gives other weights, another study seed another split and order."""
    task = example_task(tmp_path)
    curves = []
    for study_seed, trial_seed in ((0, 7), (0, 8), (1, 7)):
        exchange = ScriptedExchange([TrialSpec(0, GOOD, trial_seed)])
        PlainTrainer(example_task(tmp_path, seed=study_seed)).train(exchange)
        curves.append(tuple(exchange.curve(0, "val_loss")))
    assert len(set(curves)) == 3
    assert task.seed == 0


def test_a_nan_trial_fails_and_the_others_go_on(tmp_path: Path) -> None:
    """A learning rate of 1e6 is a failure of class nan at the epoch where it happened."""
    diverging = {"hidden": (32,), "optimizer": "SGD", "lr": 1e12}
    results = trained(example_task(tmp_path, epochs=3), diverging, GOOD).results()
    failure = results[0].failure
    assert failure is not None
    assert (results[0].outcome, failure.kind) == ("failed", "nan")
    assert "after epoch" in failure.message
    assert results[1].outcome == "finished"


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        ({"hidden": (32,), "optimizer": "Adma", "lr": 0.1}, "Adma"),
        ({"hidden": (32,), "optimizer": "SGD", "lr": 0.1, "no_such": 1}, "no_such"),
        ({"hidden": (32,), "optimizer": "SGD", "lr": 0.1, "batch_size": 0}, "batch"),
    ],
)
def test_an_exception_fails_its_trial_with_the_traceback(
    tmp_path: Path, wrong: Mapping[str, Any], part: str
) -> None:
    """What a module raises is kept: class, message and traceback; the others go on."""
    results = trained(example_task(tmp_path, epochs=1), wrong, GOOD).results()
    failure = results[0].failure
    assert failure is not None
    assert failure.kind == "exception"
    assert part in failure.message
    assert failure.traceback.startswith("Traceback")
    assert results[1].outcome == "finished"


def test_a_stopped_trial_keeps_its_best_weights(tmp_path: Path) -> None:
    """A pruned trial has a checkpoint and no model; a converged one has both."""
    task = example_task(tmp_path, epochs=4)
    pruned = trained(task, GOOD, stop_after={0: 2}, reason="pruned").results()[0]
    assert (pruned.outcome, pruned.n_epochs) == ("stopped", 2)
    assert pruned.has_checkpoint
    assert not pruned.has_model
    converged = trained(task, GOOD, stop_after={0: 2}, reason="converged").results()[0]
    assert converged.has_model
    assert TrialFiles(task.work_dir, 0).whole(MODEL)


def test_a_minimized_metric_keeps_its_smallest(tmp_path: Path) -> None:
    """With val_loss the best epoch is the one of the least loss."""
    task = example_task(tmp_path, epochs=4, metric="val_loss", direction="minimize")
    exchange = trained(task, {"hidden": (32,), "optimizer": "RMSprop", "lr": 0.05})
    losses = exchange.curve(0, "val_loss")
    assert exchange.results()[0].best_epoch == losses.index(min(losses)) + 1


def test_batch_size_is_the_trainers(tmp_path: Path) -> None:
    """A space may vary it: it changes training and is no argument of the module."""
    task = example_task(tmp_path)
    exchange = trained(task, GOOD | {"batch_size": 16}, GOOD | {"batch_size": 256})
    assert exchange.curve(0, "train_loss") != exchange.curve(1, "train_loss")
    assert {r.outcome for r in exchange.results().values()} == {"finished"}


def test_a_module_of_the_users_own(tmp_path: Path) -> None:
    """Own metric names are reported as they are, and the best epoch is by its own metric."""
    task = example_task(tmp_path, module="user_code:Model", metric="val_f1", epochs=3)
    exchange = trained(task, {"mode": "fine", "width": 8}, {"mode": "raise", "width": 8})
    results = exchange.results()
    scores = exchange.curve(0, "val_f1")
    assert results[0].best_epoch == scores.index(max(scores)) + 1
    model = user_code.Model.load_from_checkpoint(
        TrialFiles(task.work_dir, 0).path(BEST), weights_only=True
    )
    assert model.hparams == {"mode": "fine", "width": 8}
    failure = results[1].failure
    assert failure is not None
    assert failure.message.startswith("ZeroDivisionError: width must not be 8 (")


def test_a_class_that_is_no_module_is_refused(tmp_path: Path) -> None:
    """Before any trial, in one line."""
    with pytest.raises(ConfigError, match="NotAModule must be a LightningModule"):
        PlainTrainer(example_task(tmp_path, module="user_code:NotAModule"))


def test_a_function_that_gives_no_module_fails_its_trial(tmp_path: Path) -> None:
    """The message says what it is and what it should be."""
    failure = trained(example_task(tmp_path, module="user_code:no_module"), {}).results()[0]
    assert failure.failure is not None
    assert "must be a LightningModule, but is a dict" in failure.failure.message


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """No banner, tip, progress bar or warning of Lightning's reaches the terminal."""
    trained(example_task(tmp_path, epochs=1), GOOD)
    assert capfd.readouterr() == ("", "")
