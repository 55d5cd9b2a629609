"""The best configuration: found, written in four forms, loaded, and trained downstream."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
import user_code
import yaml

import sweep
from sweep.config.settings import RunConfig
from sweep.data.tensors import load_search_data
from sweep.errors import (
    ConfigError,
    DataError,
    NotFoundError,
)
from sweep.ledger.study import create_study
from sweep.reuse import Best, Recipe, find_trial, read_recipe
from sweep.reuse.prediction import predict
from sweep.reuse.recipe import FORMATS, as_lightning, as_python, as_yaml
from sweep.space import load_space


def test_the_best_trial_is_found(best: Best) -> None:
    """Score, metrics and configuration belong to the trial with the best validation accuracy."""
    scores = [find_trial("digits-mlp", n, RunConfig()).score for n in range(3)]
    assert best.score == max(scores)
    assert best.trial == scores.index(best.score)
    assert best.metrics["val_acc"] == best.score
    assert {"optimizer", "lr", "hidden"} <= set(best.config)


def test_a_trial_is_found_by_its_number(folder: Path) -> None:
    """trial=N is that trial; what is no number of a trial is refused."""
    assert [sweep.best("digits-mlp", trial=number).trial for number in (0, 2)] == [0, 2]
    with pytest.raises(NotFoundError, match="has no scored trial 99"):
        sweep.best("digits-mlp", trial=99)
    for wrong in (-1, True, "0"):
        with pytest.raises(ConfigError, match="trial must be a whole number >= 0"):
            sweep.best("digits-mlp", trial=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "near"), [("trail", "trial"), ("storag", "storage"), ("x", "")])
def test_an_unknown_argument_is_refused(folder: Path, name: str, near: str) -> None:
    """Neither `best` nor `run` ignores one: the nearest name is said."""
    with pytest.raises(ConfigError, match=rf"did you mean {near}\?" if near else "but got 'x'"):
        sweep.best("digits-mlp", **{name: 5})
    with pytest.raises(ConfigError, match=f"a setting must be one of .* but got '{name}'"):
        sweep.run(**{name: 5})


def test_values_show_themselves_in_a_line_without_credentials(folder: Path, best: Best) -> None:
    """Best, Outcome, spaces and studies: short, and no address with a password."""
    secret = "https://me:hunter2@127.0.0.1:1"
    elsewhere = sweep.best("digits-mlp", tracking_uri=secret)
    assert elsewhere.where.tracking_uri == secret
    outcome = sweep.run(study="digits-mlp", trials=3)
    assert repr(best).startswith(f"<Best digits-mlp trial {best.trial}: 0.")
    assert repr(outcome).startswith("<Outcome digits-mlp done: 0 new trials, best 0.")
    parts = (best.recipe, outcome.study, outcome.best, load_space("mlp"))
    for value in (best, elsewhere, outcome, *parts):
        assert "hunter2" not in repr(value)
        assert len(repr(value)) < 1500
        assert "\n" not in repr(value)


def test_the_best_model_predicts_as_it_was_scored(best: Best) -> None:
    """Loaded again, it has exactly the accuracy that the study says."""
    val = load_search_data("digits", None, 0).val
    model = best.load()
    assert not model.training
    with torch.no_grad():
        accuracy = (model(val.x).argmax(1) == val.y).float().mean().item()
    assert accuracy == pytest.approx(best.score, abs=1e-6)


def test_predict_gives_classes_of_samples_in_any_form(best: Best) -> None:
    """Rows, images, tensors, float64 and the files' own pixels give the same classes."""
    val = load_search_data("digits", None, 0).val
    images = val.x.numpy()
    classes = best.predict(val.x)
    assert classes.dtype == np.int64
    assert (classes == val.y.numpy()).mean() == pytest.approx(best.score, abs=1e-6)
    forms = [
        images, images.astype(np.float64), images.reshape(-1, 64), images.reshape(-1, 8, 8),
        (images * 16).round().astype(np.uint8), val.x.double().flatten(1), images.tolist(),
    ]  # fmt: skip
    for form in forms:
        np.testing.assert_array_equal(best.predict(form), classes)
    assert best.predict(images[:1]).tolist() == classes[:1].tolist()
    assert best.predict(images[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (np.zeros((2, 65)), r"\(n, 1, 8, 8\) or \(n, 64\).*got \(2, 65\)"),
        (np.zeros(64), "first axis counting samples"),
        (np.zeros((8, 8)), "first axis counting samples"),
        (np.full((1, 64), 16.0), "floats from 0 to 1, or uint8 from 0 to 16"),
        (np.full((1, 64), 255, np.uint8), "uint8 from 0 to 16"),
        (np.zeros((1, 64), np.int64), "but got int64"),
        (np.full((1, 64), np.nan), "must be finite"),
        ([["a"] * 64], "must be numbers"),
        ([[1.0], [1.0, 2.0]], "must be numbers"),
    ],
)
def test_predict_refuses_what_could_mean_two_things(best: Best, x: Any, said: str) -> None:
    """Samples of another size or scale, or with NaN, get one line and no classes."""
    with pytest.raises(DataError, match=said):
        best.predict(x)


def test_the_best_is_used_from_any_folder_and_from_mlflow_alone(
    folder: Path, best: Best, tmp_path: Path
) -> None:
    """With the stores named, from another folder and without the trial's files, trial=N, too."""
    x = load_search_data("digits", None, 0).val.x
    stores = {
        "storage": f"sqlite:///{folder}/mlruns/optuna.db",
        "tracking_uri": f"sqlite:///{folder}/mlflow.db",
        "work_dir": str(tmp_path / "empty"),
    }
    expected = {number: sweep.best("digits-mlp", trial=number).predict(x) for number in (0, 1)}
    os.chdir(tmp_path)
    try:
        for number, classes in expected.items():
            found = sweep.best("digits-mlp", trial=number, **stores)
            assert found.model_uri is not None
            assert found.model_uri.startswith("models:/m-")
            np.testing.assert_array_equal(found.predict(x), classes)
    finally:
        os.chdir(folder)


def test_a_study_without_models_has_no_model_uri(tmp_path: Path, folder: Path) -> None:
    """model_uri is None then; a module of the user's predicts what its forward gives."""
    os.chdir(tmp_path)
    try:
        sweep.run(
            study="own", module="user_code:Model", metric="val_f1", direction="maximize",
            space=str(write(tmp_path / "space.yaml", "parameters: {width: {choices: [4]}}\n")),
            trials=1, epochs=1, executor="inline", threads=1, log_models="none",
        )  # fmt: skip
        own = sweep.best("own")
        assert own.model_uri is None
        x = load_search_data("digits", None, 0).val.x[:5]
        with torch.no_grad():
            expected = own.load()(x).numpy()
        np.testing.assert_allclose(own.predict(x.double().flatten(1)), expected, atol=1e-6)
    finally:
        os.chdir(folder)


def write(path: Path, text: str) -> Path:
    """The file, written."""
    path.write_text(text)
    return path


def test_the_checkpoint_comes_from_mlflow_when_the_folder_is_gone(best: Best) -> None:
    """Without the local file the artifact of the trial's run is fetched."""
    local = best.checkpoint
    kept = local.read_bytes()
    local.rename(local.with_suffix(".away"))
    assert best.checkpoint.read_bytes() == kept


def test_any_trial_can_be_had(folder: Path) -> None:
    """Trial 0 is the reference network; one that does not exist is named."""
    assert find_trial("digits-mlp", 0, RunConfig()).config["hidden"] == (128, 64)
    with pytest.raises(NotFoundError, match="has no scored trial 99"):
        find_trial("digits-mlp", 99, RunConfig())
    with pytest.raises(NotFoundError, match="did you mean digits-mlp"):
        find_trial("digit-mlp", None, RunConfig())


def test_the_only_study_needs_no_name(folder: Path) -> None:
    """Where there is one study it is meant; an attempt that came to nothing is none."""
    assert find_trial(None, None, RunConfig()).study == "digits-mlp"
    storage = RunConfig().storage
    create_study(storage, "nothing", "maximize")[0].close()
    assert find_trial(None, None, RunConfig()).study == "digits-mlp"
    optuna.delete_study(study_name="nothing", storage=storage)


@pytest.mark.parametrize("form", ["yaml", "json"])
def test_a_recipe_reads_back_as_it_was_written(best: Best, tmp_path: Path, form: str) -> None:
    """YAML and JSON both hold the whole recipe."""
    path = tmp_path / f"best.{form}"
    path.write_text(FORMATS[form](best.recipe))
    assert read_recipe(path) == dataclasses.replace(best.recipe, data_arguments={})


def test_json_is_json(best: Best) -> None:
    """The model is a mapping of plain values."""
    content = json.loads(FORMATS["json"](best.recipe))
    assert content["model"]["hidden"] == list(best.config["hidden"])


def test_python_is_python(best: Best) -> None:
    """The one line runs, and builds a module of those widths."""
    names: dict[str, Any] = {}
    exec(as_python(best.recipe), names)
    assert names["model"].hparams["hidden"] == list(best.config["hidden"])


def test_lightning_names_classes_and_arguments(best: Best) -> None:
    """Class paths import, and the module takes the arguments."""
    content = yaml.safe_load(as_lightning(best.recipe))
    assert content["model"]["class_path"] == "sweep.training.mlp.MLPClassifier"
    arguments = content["model"]["init_args"] | content["model"].get("dict_kwargs", {})
    model = sweep.MLPClassifier(**arguments)
    assert list(model.hparams["hidden"]) == list(best.config["hidden"])
    assert content["trainer"]["max_epochs"] == best.recipe.epochs
    module, _, name = content["data"]["class_path"].rpartition(".")
    assert hasattr(__import__(module, fromlist=[name]), name)


def test_lightning_cli_reads_it(best: Best, tmp_path: Path) -> None:
    """`python train.py fit --config FILE`, where train.py is LightningCLI(), trains it."""
    pytest.importorskip("jsonargparse", reason="LightningCLI needs jsonargparse")
    (tmp_path / "cli.yaml").write_text(as_lightning(best.recipe))
    (tmp_path / "train.py").write_text(
        "from lightning.pytorch.cli import LightningCLI\n"
        "cli = LightningCLI(save_config_callback=None)\n"
        "print(type(cli.model).__name__, list(cli.model.hparams['hidden']))\n"
        "print(float(cli.trainer.callback_metrics['val_acc']))\n"
    )
    done = subprocess.run(
        [
            sys.executable, "train.py", "fit", "--config", "cli.yaml", "--trainer.logger=false",
            "--trainer.enable_checkpointing=false", "--trainer.enable_progress_bar=false",
        ],
        cwd=tmp_path, capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    *_, built, val_acc = done.stdout.strip().splitlines()
    assert built == f"MLPClassifier {list(best.config['hidden'])}"
    assert float(val_acc) > 0.5


def test_a_recipe_names_its_origin(best: Best) -> None:
    """Study, trial and score are on the first line for people."""
    first = as_yaml(best.recipe).splitlines()[0]
    assert first.startswith(f"# Trial {best.trial} of study digits-mlp: ")
    assert f"{best.score:.4f}" in first


def test_predict_takes_samples_of_a_module_with_loaders_of_its_own() -> None:
    """They have another shape than those of the study's data; its forward's output comes back."""
    recipe = Recipe(model={}, module="user_code:Bringing")
    x = np.linspace(-9, 9, 60).reshape(5, 12)
    assert predict(user_code.Bringing(), recipe, x).shape == (5, 10)


RECIPE_FAULTS = """
model: {optimizer: Adma, lr: fast, hidden: [32], droput: 0.1}
epochs: 0
bach_size: 64
"""


def test_a_bad_recipe_has_all_its_faults_named(tmp_path: Path) -> None:
    """Each wrong word and number is one sentence with the nearest valid word."""
    path = tmp_path / "bad.yaml"
    path.write_text(RECIPE_FAULTS)
    with pytest.raises(ConfigError) as caught:
        read_recipe(path)
    faults = caught.value.faults
    for part in ("Adam", "lr must be a number", "dropout", "epochs must", "batch_size"):
        assert any(part in fault for fault in faults), part
    assert len(faults) == 5
    assert all(str(path) in fault for fault in faults)


@pytest.mark.parametrize("text", ["", "[]", "model: 3", "a: [", "model: {hidden: wide}"])
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    """Whatever it holds, it is a ConfigError that names the file."""
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        read_recipe(path)


def test_a_recipe_of_ones_own(tmp_path: Path) -> None:
    """Only the model is needed; 1e-3 is a number."""
    path = tmp_path / "mine.yaml"
    path.write_text("model: {optimizer: Adam, lr: 1e-3, hidden: [64, 32]}\n")
    expected = Recipe(model={"optimizer": "Adam", "lr": 0.001, "hidden": (64, 32)})
    assert read_recipe(path) == expected
