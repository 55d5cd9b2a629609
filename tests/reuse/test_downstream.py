"""A configuration that is trained downstream, on all data but the test split."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from searches import mlflow_client, query

import sweep
from sweep.config.settings import RunConfig
from sweep.data.tensors import Batches, load_final_data
from sweep.errors import (
    StudyFailedError,
    StudyInterrupted,
    UndeliveredError,
)
from sweep.reuse import Best, Recipe
from sweep.reuse.final_training import train
from sweep.training.lightning_trainer import quiet_trainer
from sweep.training.modules import build_mlp
from sweep.trial import derive_seed


def test_training_downstream_opens_the_test_split(best: Best, folder: Path) -> None:
    """Train and validation together, one test at the end, a checkpoint that loads."""
    seen: list[int] = []
    trained = train(
        best.recipe, RunConfig(), folder / "out" / "trained.ckpt",
        lambda epoch, metrics: seen.append(epoch),
    )  # fmt: skip
    assert seen == list(range(1, best.recipe.epochs + 1))
    assert 0.8 < trained.metrics["test_acc"] <= 1.0
    model = sweep.MLPClassifier.load_from_checkpoint(trained.checkpoint, weights_only=True)
    assert list(model.hparams["hidden"]) == list(best.config["hidden"])


@pytest.fixture
def at(folder: Path, tmp_path: Path) -> Path:
    """Where a training of a test of its own puts its checkpoint."""
    return tmp_path / "trained.ckpt"


def epochs_of(run_id: str) -> list[int]:
    """Epochs of which MLflow has a point, each as often as it has one."""
    client = mlflow_client(Path.cwd())
    return sorted(m.step for m in client.get_metric_history(run_id, "train_loss"))


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """As they are in the file."""
    weights: dict[str, torch.Tensor] = torch.load(checkpoint, weights_only=True)["state_dict"]
    return weights


def test_a_training_goes_on_after_a_signal(best: Best, at: Path) -> None:
    """It is saved at the epoch's end; the same call ends with the weights of an undisturbed one,
    one MLflow run and one point an epoch."""
    seen: list[int] = []

    def terminate(epoch: int, metrics: object) -> None:
        seen.append(epoch)
        if seen == [1]:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(StudyInterrupted, match="after epoch 1 of 3: that is saved"):
        train(best.recipe, RunConfig(), at, terminate)
    assert not at.exists()
    trained = train(best.recipe, RunConfig(), at, terminate)
    assert seen == [1, 2, 3]
    assert epochs_of(trained.run_id) == [1, 2, 3]
    assert [path.name for path in at.parent.iterdir() if path.is_dir()] == []
    undisturbed = train(best.recipe, RunConfig(), at.with_name("undisturbed.ckpt"))
    assert undisturbed.run_id != trained.run_id
    expected = weights_of(undisturbed.checkpoint)
    assert all(torch.equal(expected[k], w) for k, w in weights_of(at).items())


def test_another_training_does_not_go_on_with_it(best: Best, at: Path) -> None:
    """What was saved for other settings counts for nothing, and that is said."""

    def terminate(epoch: int, metrics: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(StudyInterrupted):
        train(best.recipe, RunConfig(), at, terminate)
    seen, said = [], []
    other = dataclasses.replace(best.recipe, batch_size=128, epochs=1)
    train(other, RunConfig(), at, lambda epoch, _: seen.append(epoch), said.append)
    assert seen == [1]
    assert ["it is of another configuration" in line for line in said] == [True]


def test_mlflow_may_be_away_while_a_network_is_trained(best: Best, at: Path) -> None:
    """The training goes on; what MLflow did not take, the same call delivers without training."""

    def away(epoch: int, metrics: object) -> None:
        seen.append(epoch)
        if epoch == 2:
            query(Path("mlflow.db"), "ALTER TABLE metrics RENAME TO away")

    seen: list[int] = []
    said: list[str] = []
    try:
        with pytest.raises(UndeliveredError, match="the same command delivers it"):
            train(best.recipe, RunConfig(), at, away, said.append)
    finally:
        query(Path("mlflow.db"), "ALTER TABLE away RENAME TO metrics")
    assert seen == [1, 2, 3]
    assert len(said) == 1
    kept = weights_of(at)
    trained = train(best.recipe, RunConfig(), at, away, said.append)
    assert seen == [1, 2, 3], "nothing is trained again"
    assert epochs_of(trained.run_id) == [1, 2, 3]
    assert all(torch.equal(kept[k], w) for k, w in weights_of(at).items())


@pytest.mark.parametrize(("precision", "near"), [("64-true", 1e-7), ("32-true", 1e-4)])
def test_the_engine_trains_what_lightning_trains(at: Path, precision: str, near: float) -> None:
    """Weights and test metrics are those of an ordinary Trainer on the same data."""
    model = {"hidden": (24, 16), "dropout": 0.2, "optimizer": "Adam", "lr": 0.003}
    recipe = Recipe(model=model | {"schedule": "cosine"}, epochs=3, precision=precision)
    losses = []
    trained = train(recipe, RunConfig(), at, lambda _, metrics: losses.append(metrics))
    data = load_final_data("digits", None, recipe.seed)
    module = build_mlp(recipe.model, data.info, derive_seed(0, "init", 0))
    trainer = quiet_trainer(at.parent, max_epochs=3, accelerator="cpu", precision=precision)
    trainer.fit(module, Batches(data.train, recipe.batch_size, seed=recipe.seed))
    assert losses[-1]["train_loss"] == pytest.approx(
        float(trainer.callback_metrics["train_loss"]), rel=near
    )
    (tested,) = trainer.test(module, Batches(data.test, 4096), verbose=False)
    assert trained.metrics == pytest.approx(tested, rel=near)
    kept = torch.load(at, weights_only=True)
    assert kept["global_step"] == trainer.global_step
    for name, weight in module.state_dict().items():
        torch.testing.assert_close(kept["state_dict"][name], weight, rtol=near, atol=near)


def test_lightning_trains_what_the_engine_does_not_know(at: Path) -> None:
    """A precision of Lightning's own is trained by its loop, which goes on after a signal."""
    seen: list[int] = []

    def terminate(epoch: int, metrics: object) -> None:
        seen.append(epoch)
        if seen == [1]:
            os.kill(os.getpid(), signal.SIGTERM)

    recipe = Recipe(model={"hidden": (16,)}, epochs=2, precision="bf16-mixed")
    with pytest.raises(StudyInterrupted, match="after epoch 1 of 2: that is saved"):
        train(recipe, RunConfig(), at, terminate)
    trained = train(recipe, RunConfig(), at, terminate)
    assert seen == [1, 2]
    assert trained.metrics.keys() == {"test_loss", "test_acc"}


def test_a_loss_that_is_not_finite_ends_the_training(at: Path) -> None:
    """The epoch is named, and no checkpoint is written."""
    recipe = Recipe(model={"hidden": (16,), "lr": 1e30}, epochs=2)
    with pytest.raises(StudyFailedError, match="train_loss"):
        train(recipe, RunConfig(), at)
    assert not at.exists()


@pytest.mark.parametrize(
    ("module", "said", "tested"),
    [
        ("Model", ["has no test_step"], set()),
        ("Bringing", ["train_dataloader that it brings", "has no test_step"], set()),
        ("Tested", ["train_dataloader that it brings"], {"test_f1"}),
    ],
)
def test_a_module_of_ones_own_is_trained_and_saved_without_a_test(
    at: Path, module: str, said: list[str], tested: set[str]
) -> None:
    """On its own loaders if it has some; it is tested if it can be, else a line says why not."""
    lines: list[str] = []
    recipe = Recipe(model={"width": 4}, module=f"user_code:{module}", epochs=1)
    trained = train(recipe, RunConfig(), at, None, lines.append)
    assert all(part in line for part, line in zip(said, lines, strict=True)), lines
    assert trained.metrics.keys() == tested
    assert at.is_file()
    assert at.with_suffix(".pt2").is_file()


@pytest.mark.parametrize(
    ("module", "said", "is_saved"),
    [("Leaving", "SystemExit: left in configure_optimizers (", False),
     ("TestFails", "ZeroDivisionError: no samples (", True)],
)  # fmt: skip
def test_what_a_module_raises_is_no_bug_of_sweep(
    at: Path, module: str, said: str, *, is_saved: bool
) -> None:
    """It is one line with its place; a model that was trained is saved before its test."""
    model = {"where": "configure_optimizers"} if module == "Leaving" else {}
    recipe = Recipe(model=model, module=f"user_code:{module}", epochs=1)
    with pytest.raises(StudyFailedError) as caught:
        train(recipe, RunConfig(), at)
    assert f"the training failed: {said}" in str(caught.value)
    assert at.exists() is is_saved


def test_a_model_that_cannot_be_exported_is_saved(at: Path) -> None:
    """There is no logged model then, and one line with the reason."""
    lines: list[str] = []
    recipe = Recipe(model={"where": "export"}, module="user_code:Leaving", epochs=1)
    train(recipe, RunConfig(), at, None, lines.append)
    assert at.is_file()
    assert "cannot be exported" in lines[-1]


@pytest.mark.parametrize(
    ("keep_val", "said", "n_seen"),
    [(None, "a callback or schedule watches it", 1347), (False, "", 0), (True, "", 1347)],
)
def test_validation_is_kept_apart_where_it_is_watched(
    at: Path, keep_val: bool | None, said: str, n_seen: int
) -> None:
    """Chosen by the module's schedule, and said; or as asked."""
    lines: list[str] = []
    recipe = Recipe(model={}, module="user_code:Plateau", epochs=1)
    if keep_val is False:  # then the schedule has nothing to look at
        with pytest.raises(StudyFailedError, match="val_f1"):
            train(recipe, RunConfig(), at, None, lines.append, keep_val=False)
        return
    trained = train(recipe, RunConfig(), at, None, lines.append, keep_val=keep_val)
    assert any("validation is kept apart" in line and said in line for line in lines)
    run = MlflowClient(RunConfig().anchored().tracking_uri).get_run(trained.run_id)
    data = {one.dataset.name: json.loads(one.dataset.profile) for one in run.inputs.dataset_inputs}
    assert data["digits-train"]["features_shape"][0] == n_seen
