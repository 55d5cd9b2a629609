"""What a search leaves in MLflow: real SQLite stores, a real `mlflow server`."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import tracking_records as records
import yaml
from mlflow import MlflowClient
from searches import stored_bytes
from tracking_runs import MLFLOWS_OWN, runs_of, track

from sweep.errors import NotFoundError
from sweep.tracking import MlflowTracker
from sweep.tracking.artifacts import artifact_of, drop, model_uri_of, run_id_of, stored_files
from sweep.tracking.training import TrainingRun
from sweep.training.mlp import MLPClassifier
from sweep.trial import (
    EpochReport,
    Notice,
    Record,
    TrialFinished,
    TrialStarted,
    TrialState,
    WorkerReady,
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Any:
    folder = tmp_path_factory.mktemp("server")
    shutil.copyfile(empty_store, folder / "store.db")
    command = ["server", "--backend-store-uri", "sqlite:///store.db", "--workers", "1"]
    with records.mlflow_server(folder, command) as address:
        yield address


def test_a_search_is_one_parent_and_a_child_a_trial(uri: str, model: records.Trained) -> None:
    """A parent run holds the config, each trial a run of the right state under it."""
    track(uri, records.search(model))
    runs = runs_of(uri)
    parent = runs.pop("parent")
    assert {key: run.info.status for key, run in runs.items()} == {
        "0": "FINISHED",
        "1": "FINISHED",
        "2": "FAILED",
        "3": "FINISHED",
    }
    states = {key: run.data.tags["sweep.state"] for key, run in runs.items()}
    assert states == {"0": "COMPLETE", "1": "PRUNED", "2": "FAIL", "3": "COMPLETE"}
    assert parent.info.status == "FINISHED"
    assert parent.data.params == {}, "33 settings would be 33 columns beside the trials'"
    assert parent.data.metrics == {}, "the parent is no competitor of its trials"
    assert parent.data.tags["mlflow.source.git.commit"] == "abc1234"
    assert parent.data.tags["torch"] == "2.13.0"
    assert parent.data.tags["sweep.best_trial"] == "0"
    assert parent.data.tags["sweep.best_run"] == runs["0"].info.run_id
    assert float(parent.data.tags["sweep.best_value"]) == pytest.approx(0.8)
    assert parent.data.tags["sweep.n_complete"] == "2"
    for run in runs.values():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    config = artifact_of(uri, parent.info.run_id, "config.yaml", Path("none"))
    assert yaml.safe_load(config.read_text()) == {
        "seed": 3,
        "data": {"name": "toy", "split": [80, 20]},
    }
    space = artifact_of(uri, parent.info.run_id, "space.yaml", Path("none"))
    assert space.read_text() == records.study_info().space_text


def test_a_trial_has_params_curves_data_and_times(uri: str, model: records.Trained) -> None:
    """A run shows widths as one word, one point an epoch at its own time, and its data."""
    track(uri, records.search(model))
    run = runs_of(uri)["3"]
    client = MlflowClient(uri)
    assert run.info.run_name == "t003 Adam lr=1.2e-3 256-64"
    assert run.info.start_time == records.START_MS + 3000
    assert run.info.end_time == records.START_MS + 60_003
    assert run.data.params["hidden"] == "256-64"
    assert "hidden.0" not in run.data.params
    assert run.data.params["n_layers"] == "2"
    assert float(run.data.params["lr"]) == 0.0012
    assert run.data.tags["sweep.best_epoch"] == "3"
    assert run.data.metrics["best_val_acc"] == pytest.approx(0.77)
    assert [key for key in run.data.metrics if key.startswith("best_")] == ["best_val_acc"]
    for key, name in {k: k for k in ("train_loss", "val_loss", "val_acc")}.items() | {
        ("system/epoch_s", "epoch_s")
    }:
        history = client.get_metric_history(run.info.run_id, key)
        assert [(p.step, p.timestamp) for p in history] == [
            (epoch, records.START_MS + 100 * epoch) for epoch in (1, 2, 3)
        ]
        assert [p.value for p in history] == [records.metrics(3, e)[name] for e in (1, 2, 3)]
    assert run.inputs is not None
    contexts = {i.dataset.name: i.tags[0].value for i in run.inputs.dataset_inputs}
    assert contexts == {"toy-train": "training", "toy-val": "validation"}


def test_tags_of_a_start_are_in_its_run(uri: str) -> None:
    """Also where the run is there already, made by an earlier start."""
    begun = records.started(0)
    again = dataclasses.replace(begun, tags={"sweep.seed": "9"})
    found = []
    for written in ([begun], [begun, again], [again]):
        track(uri, [*written, *records.epochs(0, 1, 1)])
        found.append(runs_of(uri)["0"].data.tags["sweep.seed"])
    assert found == ["70", "9", "9"]


def test_names_that_mlflow_refuses_cost_nothing_else(uri: str) -> None:
    """Metrics and params whose names MLflow refuses, or makes one, are told apart; each keeps its
    points, and the trial its end."""
    odd = {
        "/acc": 0.1, "acc": 0.2, "val//f1": 0.3, "recall@5": 0.4, "recall_5": 0.5, "x" * 300: 0.6,
        "x" * 301: 0.7, "..": 0.8, "a/../b": 0.9, "best_val_acc": 1.0, "nul\0": 1.1,
    }  # fmt: skip
    reports: list[Record] = [
        EpochReport(0, e, {"val_acc": e / 10, **odd}, records.START_MS + e) for e in (1, 2)
    ]
    started = dataclasses.replace(
        records.started(0),
        hyperparameters={"p" * 251: 1, "p" * 252: 2, "long": "v" * 7000, "lr": 0.5, "a\0b": "c\0"},
        params={},
    )
    track(uri, [started, *reports, records.finished(0, TrialState.PRUNED)])
    run = runs_of(uri)["0"]
    assert run.info.status == "FINISHED"
    client = MlflowClient(uri)
    curves = {
        key: [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, key)]
        for key in run.data.metrics
    }
    assert curves.pop("val_acc") == [(1, 0.1), (2, 0.2)]
    assert curves.pop("best_val_acc") == [(3, pytest.approx(0.8))]
    assert curves["acc"] == [(1, 0.2), (2, 0.2)], "a name that is a key keeps it"
    assert curves["recall_5"] == [(1, 0.5), (2, 0.5)]
    assert sorted(values[1] for values, *_ in curves.values()) == sorted(odd.values())
    assert all(len(points) == 2 for points in curves.values())
    params = run.data.params
    assert params["lr"] == "0.5"
    assert sorted(params.values(), key=len)[-1] == "v" * 6000
    assert len(params) == 5 + 2  # data.name and data.split, which all trials share
    track(uri, [started, *reports, records.finished(0, TrialState.PRUNED)])
    assert runs_of(uri)["0"].data.metrics.keys() == run.data.metrics.keys()


def test_a_failure_is_kept_with_its_traceback(uri: str) -> None:
    """A failed trial has the class of its failure as a tag and the traceback as a file."""
    track(uri, records.search(None))
    run = runs_of(uri)["2"]
    assert run.data.tags["sweep.failure"] == "nan"
    assert run.data.tags["sweep.failure_message"] == "train_loss is nan"
    file = artifact_of(uri, run.info.run_id, "traceback.txt", Path("none"))
    assert file.read_text() == "Traceback: line 1\n"


def test_the_same_records_again_change_nothing(uri: str, model: records.Trained) -> None:
    """A second delivery of a whole search makes no run, model or point a second time."""
    track(uri, records.search(model))
    before = _everything(uri)
    track(uri, records.search(model))
    assert _everything(uri) == before


def _everything(uri: str) -> Any:
    client = MlflowClient(uri)
    runs = runs_of(uri)
    points = {
        (key, name): [(p.step, p.value) for p in client.get_metric_history(r.info.run_id, name)]
        for key, r in runs.items()
        for name in r.data.metrics
    }
    models = client.search_logged_models([runs["0"].info.experiment_id])
    outputs = {k: [o.model_id for o in r.outputs.model_outputs] for k, r in runs.items()}
    states = {k: (r.info.run_id, r.info.status, r.data.params) for k, r in runs.items()}
    return points, sorted(m.model_id for m in models), outputs, states


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        ("done", "FINISHED"),
        ("exhausted", "FINISHED"),
        ("timeout", "FINISHED"),
        ("interrupted", "KILLED"),
        ("failed", "FAILED"),
    ],
)
def test_the_parent_says_how_the_search_ended(uri: str, reason: str, status: str) -> None:
    """The parent is FINISHED, KILLED when interrupted, FAILED when failed; then RUNNING again
    when the study goes on."""
    track(uri, [records.study_finished(reason=reason, best_number=None)])
    assert runs_of(uri)["parent"].info.status == status
    track(uri, [])
    assert runs_of(uri)["parent"].info.status == "RUNNING"


def test_a_dataset_named_by_the_worker_counts(uri: str, model: records.Trained) -> None:
    """Without a data set at the start, the worker's word gives trials inputs and models."""
    ready = WorkerReady(records.DATASET, "cpu", 4, records.START_MS)
    written: list[Record] = [ready, records.started(0), Notice(0, "one line")]
    written += [*records.epochs(0), records.finished(0, TrialState.COMPLETE, model)]
    track(uri, written, dataset=None)
    runs = runs_of(uri)
    assert runs["0"].inputs is not None
    assert len(runs["0"].inputs.dataset_inputs) == 2
    assert runs["parent"].data.tags["sweep.device"] == "cpu"
    assert model_uri_of(uri, runs["0"].info.run_id) is not None


def test_not_a_number_is_a_point_too(uri: str) -> None:
    """A metric that turned NaN or infinite is logged as such."""
    report = EpochReport(0, 1, {"val_acc": math.nan, "train_loss": math.inf}, records.START_MS)
    track(uri, [records.started(0), report])
    got = runs_of(uri)["0"].data.metrics
    assert math.isnan(got["val_acc"])
    assert got["train_loss"] > 1e300


@MLFLOWS_OWN
def test_a_server_keeps_everything_too(
    server: str, model: records.Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a server with its own artifact store: states, curves, files, a model that loads."""
    import mlflow

    monkeypatch.chdir(tmp_path)
    track(server, records.search(model))
    runs = runs_of(server)
    assert [runs[key].info.status for key in "0123"] == [
        "FINISHED",
        "FINISHED",
        "FAILED",
        "FINISHED",
    ]
    run_id = runs["0"].info.run_id
    history = MlflowClient(server).get_metric_history(run_id, "val_acc")
    assert [point.step for point in history] == [1, 2, 3]
    kept = artifact_of(server, run_id, "checkpoint/best.ckpt", tmp_path / "download")
    assert kept.read_bytes() == Path(model.checkpoint).read_bytes()
    with pytest.raises(NotFoundError, match="has no artifact"):
        artifact_of(server, run_id, "checkpoint/other.ckpt", tmp_path / "download")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    model_uri = model_uri_of(server, run_id)
    assert model_uri is not None
    loaded = mlflow.pytorch.load_model(model_uri)
    checkpoint = MLPClassifier.load_from_checkpoint(kept, weights_only=True).eval()
    x = torch.rand(3, 1, 2, 2)
    torch.testing.assert_close(loaded(x), checkpoint(x), rtol=0, atol=1e-6)
    logged = MlflowClient(server).get_logged_model(model_uri.removeprefix("models:/"))
    assert {m.key: m.dataset_name for m in logged.metrics or []}["best_val_acc"] == "toy-val"
    before = _everything(server)
    track(server, records.search(model))
    assert _everything(server) == before
    assert not (tmp_path / "mlruns").exists()


@pytest.mark.parametrize("where", ["file", "server"])
def test_a_dropped_checkpoint_is_gone_and_all_else_stays(
    where: str, request: pytest.FixtureRequest, model: records.Trained
) -> None:
    """Files and model go from an SQLite store's folder and through a server; params, curves and
    status stay, and the other trial keeps its own."""
    address = request.getfixturevalue("uri" if where == "file" else "server")
    study, sizes, told = f"dropped-{where}", dict[int, int](), list[int]()

    def on_stored(number: int) -> list[int]:
        told.append(number)
        sizes.update(stored_bytes(address, study))
        return [0, 0, 7] if number == 3 else []

    tracker = MlflowTracker(address, on_stored=on_stored)
    tracker.open(records.study_info(study))
    tracker.write(records.search(model)[:-1])
    tracker.close()
    files = [Path(file).stat().st_size for file in (model.checkpoint, model.model_file)]
    assert sorted(told) == [0, 1, 2, 3]
    assert sizes.keys() == {0, 3}
    assert sum(files) < sizes[0] < sum(files) + 9000
    assert stored_bytes(address, study).keys() == {3}
    after = runs_of(address, study)
    assert after["0"].data.params == after["3"].data.params
    assert after["0"].data.metrics.keys() == after["3"].data.metrics.keys()
    assert after["0"].info.status == "FINISHED"
    assert after["0"].data.tags["sweep.checkpoint_dropped"] == "true"
    with pytest.raises(NotFoundError):
        artifact_of(address, after["0"].info.run_id, "checkpoint/best.ckpt", Path("download"))
    experiment = [after["0"].info.experiment_id]
    (left,) = MlflowClient(address).search_logged_models(experiment)
    assert left.source_run_id == after["3"].info.run_id


def test_a_drop_that_broke_off_is_finished_by_the_next(uri: str, model: records.Trained) -> None:
    """A model whose files are gone is still listed, so that it can be forgotten."""
    track(uri, records.search(model))
    experiment = [runs_of(uri)["0"].info.experiment_id]
    models = MlflowClient(uri).search_logged_models(experiment)
    (of_0,) = [m for m in models if m.source_run_id == runs_of(uri)["0"].info.run_id]
    shutil.rmtree(of_0.artifact_location)
    shutil.rmtree(Path(runs_of(uri)["0"].info.artifact_uri) / "checkpoint")
    assert stored_bytes(uri, "toy-study")[0] == 0
    drop(stored_files(uri, "toy-study")[0])
    assert stored_bytes(uri, "toy-study").keys() == {3}
    (left,) = MlflowClient(uri).search_logged_models(experiment)
    assert left.source_run_id == runs_of(uri)["3"].info.run_id


def test_runs_are_found_again(uri: str) -> None:
    """Study and number lead to a run; what is not there is None, or raises NotFoundError."""
    track(uri, [records.started(17)])
    run_id = run_id_of(uri, "toy-study", 17)
    assert run_id is not None
    assert run_id_of(uri, "toy-study", 18) is None
    assert run_id_of(uri, "no-study", 0) is None
    assert model_uri_of(uri, run_id) is None
    with pytest.raises(NotFoundError, match="no MLflow run"):
        model_uri_of(uri, "0" * 32)


def test_a_training_is_a_run_that_names_its_trial(uri: str, model: records.Trained) -> None:
    """sweep train's run has its curve, test metrics, checkpoint, model and origin."""
    tags = {"sweep.study": "toy-study", "sweep.role": "train", "sweep.from_trial": "17"}
    started = TrialStarted(
        17, "best of toy-study", {"lr": 0.1, "hidden": (8, 4)}, {}, records.START_MS, tags
    )
    training = TrainingRun(uri, started, records.DATASET)
    run_id = training.open()
    reports = [
        EpochReport(17, epoch, {"train_loss": 1 / epoch}, records.START_MS + epoch)
        for epoch in (1, 2)
    ]
    training.sync(reports[:1])
    end = TrialFinished(
        17, TrialState.COMPLETE, records.START_MS + 10, None, None, {"test_acc": 0.9}, 2,
        model.checkpoint, model.model_file,
    )  # fmt: skip
    training.sync(reports, end)
    run = MlflowClient(uri).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"lr": "0.1", "hidden": "8-4"}
    assert run.data.metrics == {"train_loss": 0.5, "test_acc": 0.9}
    assert run.data.tags.items() >= tags.items()
    assert model_uri_of(uri, run_id) == f"models:/{run.outputs.model_outputs[0].model_id}"
    assert artifact_of(uri, run_id, "checkpoint/best.ckpt", Path("none")).is_file()
