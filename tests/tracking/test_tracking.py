"""What a search leaves in MLflow: real SQLite stores, a real `mlflow server`."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tracking_records as records
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from searches import TESTS, stored_bytes
from waiting import wait_until

from sweep.databases import sqlite
from sweep.errors import DiskError, NotFoundError, StoreError, UndeliveredError
from sweep.repair.reconcile import reconcile_runs
from sweep.tracking import MlflowTracker, Pace
from sweep.tracking.artifacts import (
    artifact_of,
    drop,
    model_uri_of,
    run_id_of,
    stored_files,
)
from sweep.tracking.store import route_logs
from sweep.tracking.training import TrainingRun
from sweep.tracking.uri import DEFAULT_URI, one_line
from sweep.training.mlp import MLPClassifier
from sweep.trial import (
    EpochReport,
    Notice,
    Ranked,
    Record,
    StudyFinished,
    TrialFinished,
    TrialStarted,
    TrialState,
    WorkerReady,
)

MLFLOWS_OWN = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType")
"""What importing mlflow.pyfunc warns of."""


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> records.Trained:
    return records.trained(tmp_path_factory.mktemp("model"))


@pytest.fixture
def uri(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Any:
    folder = tmp_path_factory.mktemp("server")
    shutil.copyfile(empty_store, folder / "store.db")
    command = ["server", "--backend-store-uri", "sqlite:///store.db", "--workers", "1"]
    with records.mlflow_server(folder, command) as address:
        yield address


def track(uri: str, written: list[Record], **changes: Any) -> None:
    tracker = MlflowTracker(uri)
    tracker.open(records.study_info(**changes))
    tracker.write(written)
    tracker.close()


def runs_of(uri: str, study: str = "toy-study") -> dict[str, Run]:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(study)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    return {run.data.tags.get("sweep.trial", "parent"): run for run in found}


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


@MLFLOWS_OWN
def test_the_logged_model_predicts_what_the_checkpoint_predicts(
    uri: str, model: records.Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mlflow.pytorch and mlflow.pyfunc load the model; for 1 and 7 rows both equal the
    checkpoint to float32 rounding (1e-6)."""
    import mlflow

    track(uri, records.search(model))
    run_id = run_id_of(uri, "toy-study", 0)
    assert run_id is not None
    model_uri = model_uri_of(uri, run_id)
    assert model_uri is not None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    loaded = mlflow.pytorch.load_model(model_uri)
    served = mlflow.pyfunc.load_model(model_uri)
    kept = MLPClassifier.load_from_checkpoint(
        artifact_of(uri, run_id, "checkpoint/best.ckpt", Path("none")), weights_only=True
    ).eval()
    for n_rows in (1, 7):
        x = torch.rand(n_rows, 1, 2, 2)
        with torch.no_grad():
            expected = kept(x)
        torch.testing.assert_close(loaded(x), expected, rtol=0, atol=1e-6)
        np.testing.assert_allclose(served.predict(x.numpy()), expected.numpy(), atol=1e-6)


@MLFLOWS_OWN
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")  # MLflow's of frames
def test_the_logged_model_is_found_by_run_and_takes_what_users_have(
    uri: str, model: records.Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """runs:/ID/model loads; float64, flat rows and frames give what float32 images give, and the
    signature, the model's page and its metadata say logits."""
    import mlflow
    import pandas as pd

    track(uri, records.search(model))
    run_id = run_id_of(uri, "toy-study", 0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    loaded = mlflow.pytorch.load_model(f"runs:/{run_id}/model")
    served = mlflow.pyfunc.load_model(f"runs:/{run_id}/model")
    x = torch.rand(7, 1, 2, 2)
    expected, rows = loaded(x).detach().numpy(), x.reshape(7, 4)
    for given in (x.double(), rows, rows.double(), x.squeeze(1)):
        np.testing.assert_allclose(loaded(given).detach().numpy(), expected, atol=1e-6)
        np.testing.assert_allclose(served.predict(given.numpy()), expected, atol=1e-6)
    frame = served.predict(pd.DataFrame(rows.double().numpy()))
    np.testing.assert_allclose(frame.to_numpy(), expected, atol=1e-6)
    assert served.metadata.get_output_schema().input_names() == ["logits"]
    assert served.metadata.metadata["description"].startswith("Gives logits (n, 3) for samples")
    (logged,) = MlflowClient(uri).search_logged_models(
        [runs_of(uri)["0"].info.experiment_id], f"source_run_id = '{run_id}'"
    )
    assert logged.tags["mlflow.note.content"] == served.metadata.metadata["description"]


def test_the_logged_model_is_tied_to_run_metrics_and_data(
    uri: str, model: records.Trained
) -> None:
    """Complete trials have one READY model each, with metrics on the validation data."""
    track(uri, records.search(model))
    client = MlflowClient(uri)
    runs = runs_of(uri)
    models = client.search_logged_models([runs["0"].info.experiment_id])
    assert sorted(m.source_run_id or "" for m in models) == sorted(
        runs[number].info.run_id for number in ("0", "3")
    )
    for logged in models:
        assert str(logged.status) == "READY"
        assert logged.params["hidden"] == "256-64"
        linked = {m.key: (m.dataset_name, m.run_id) for m in logged.metrics or []}
        assert linked["best_val_acc"] == ("toy-val", logged.source_run_id)


@MLFLOWS_OWN
def test_model_folders_are_what_mlflow_itself_writes(
    tmp_path: Path, model: records.Trained
) -> None:
    """Files and MLmodel equal save_model's, but for ids, times, sizes, pinned builders and the
    schema of inputs."""
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Schema, TensorSpec

    from sweep.tracking.model import ModelFolders

    dtype = np.dtype("float32")
    pins = [f"{n}=={v.partition('+')[0]}" for n, v in _versions("torch", "mlflow", "numpy")]
    ids = {key: f"the {key}: \U0001f9ea" for key in ("model_id", "model_uuid", "run_id")}
    ids["artifact_path"] = "/some where/m-1"
    folders = ModelFolders(records.DATASET, None)
    folders.write(tmp_path / "ours", Path(model.model_file), ids)
    mlflow.pytorch.save_model(
        MLPClassifier(4, 3, hidden=(5,)).eval(),
        str(tmp_path / "theirs"),
        signature=ModelSignature(
            Schema([TensorSpec(dtype, (-1, 1, 2, 2))]),
            Schema([TensorSpec(dtype, (-1, 3), name="logits")]),
        ),
        input_example=np.zeros((2, 1, 2, 2), dtype),
        pip_requirements=pins,
        serialization_format="pt2",
        metadata={"description": folders.note},
    )
    written = yaml.safe_load((tmp_path / "ours" / "MLmodel").read_text())
    assert {key: written[key] for key in ids} == ids
    ours, theirs = (_folder(tmp_path / name) for name in ("ours", "theirs"))
    # save_model traces from this schema; as a model's own it would refuse float64 and flat rows.
    theirs["mlmodel"]["signature"]["inputs"] = None
    assert ours["mlmodel"] == theirs["mlmodel"]
    assert ours == theirs


def _versions(*names: str) -> list[tuple[str, str]]:
    from importlib.metadata import version

    return [(name, version(name)) for name in names]


def _folder(folder: Path) -> dict[str, Any]:
    """What must be the same in two model folders."""
    files = sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())
    mlmodel = yaml.safe_load((folder / "MLmodel").read_text())
    for varies, kind in (
        ("model_uuid", str),
        ("utc_time_created", str),
        ("model_size_bytes", int),
    ):
        assert isinstance(mlmodel.pop(varies), kind)
    for of_a_logged_model in ("artifact_path", "model_id", "run_id"):
        mlmodel.pop(of_a_logged_model, None)
    conda = yaml.safe_load((folder / "conda.yaml").read_text())
    conda["dependencies"] = [
        d.partition("<")[0] if isinstance(d, str) else d for d in conda["dependencies"]
    ]
    python_env = yaml.safe_load((folder / "python_env.yaml").read_text())
    python_env["build_dependencies"] = [
        d.partition("==")[0] for d in python_env["build_dependencies"]
    ]
    requirements = (folder / "requirements.txt").read_text().split()
    return {
        "files": files,
        "mlmodel": mlmodel,
        "conda": conda,
        "python": python_env,
        "requirements": requirements,
    }


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


def test_a_continued_trial_goes_on_under_its_run(uri: str) -> None:
    """After a restart a trial keeps its run id, is RUNNING, and has one point an epoch."""
    track(uri, [records.started(0), *records.epochs(0, 1, 2)])
    first = runs_of(uri)["0"]
    assert first.info.status == "RUNNING"
    # The checkpoint was of epoch 1: epoch 2 is trained, and reported, again.
    track(uri, [records.started(0), *records.epochs(0, 2, 3, delay=5000)], n_trials=9)
    runs = runs_of(uri)
    assert sorted(runs) == ["0", "parent"]
    assert runs["0"].info.run_id == first.info.run_id
    history = MlflowClient(uri).get_metric_history(first.info.run_id, "val_acc")
    assert [point.step for point in history] == [1, 2, 3]
    track(uri, [records.started(0), records.finished(0, TrialState.WAITING)])
    assert runs_of(uri)["0"].info.status == "SCHEDULED"
    track(uri, [records.started(0)])
    assert runs_of(uri)["0"].info.status == "RUNNING"


def test_a_study_run_that_was_cut_short_is_completed(uri: str) -> None:
    """Its driver died after making it on a server: settings and data come with the next one."""
    client = MlflowClient(uri)
    experiment_id = client.create_experiment("toy-study")
    tags = {"sweep.study": "toy-study", "sweep.role": "study"}
    made = client.create_run(experiment_id, tags=tags, run_name="toy-study")
    track(uri, [records.started(0)])
    parent = runs_of(uri)["parent"]
    assert parent.info.run_id == made.info.run_id
    assert artifact_of(uri, parent.info.run_id, "config.yaml", Path("none")).is_file()
    assert [i.dataset.name for i in parent.inputs.dataset_inputs] == ["toy-train", "toy-val"]


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


def test_a_deleted_experiment_comes_back(uri: str) -> None:
    """A study whose experiment was deleted in the UI goes on in it."""
    track(uri, [records.started(0)])
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("toy-study")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    track(uri, [])
    assert sorted(runs_of(uri)) == ["0", "parent"]


def test_a_default_store_is_where_mlflow_ui_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sqlite:///mlflow.db makes ./mlflow.db and ./mlruns/<experiment>."""
    monkeypatch.chdir(tmp_path)
    track(DEFAULT_URI, [])
    experiment = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").get_experiment_by_name(
        "toy-study"
    )
    assert experiment is not None
    assert Path(experiment.artifact_location) == tmp_path / "mlruns" / experiment.experiment_id


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("./mlruns", "no file stores"),
        ("file:///tmp/mlruns", "no file stores"),
        ("", "no file stores"),
        ("sqlite:mlflow.db", "three slashes"),
        ("gopher://host/x", "gopher"),
        ("http://me:secret@127.0.0.1:9", "***@127.0.0.1:9"),
    ],
)
def test_a_store_that_is_none_is_one_line(
    bad: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong address, or nobody there, raises StoreError: one line, no password."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker = MlflowTracker(bad)
    with pytest.raises(StoreError) as caught:
        tracker.open(records.study_info())
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    tracker.close()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """A text file, a folder in the way, and a file in place of the folder: StoreError each."""
    (tmp_path / "text.db").write_text("not a database, but long enough to look at\n" * 20)
    (tmp_path / "folder.db").mkdir()
    for name in ("text.db", "folder.db"):
        with pytest.raises(StoreError, match=f"{name} cannot be used as a database"):
            MlflowTracker(f"sqlite:///{tmp_path}/{name}").open(records.study_info())
    with pytest.raises(DiskError, match="cannot make the folder"):
        MlflowTracker(f"sqlite:///{tmp_path}/text.db/mlflow.db").open(records.study_info())


def test_what_cannot_be_delivered_is_counted(uri: str, tmp_path: Path) -> None:
    """A missing checkpoint is said at the end; the trial is FINISHED all the same."""
    gone = records.Trained(str(tmp_path / "gone.ckpt"), str(tmp_path / "gone.pt2"))
    written = [records.started(0), records.finished(0, TrialState.COMPLETE, gone)]
    with pytest.raises(UndeliveredError, match=r"gone\.ckpt of trial 0 was gone before MLflow"):
        track(uri, written)
    assert runs_of(uri)["0"].info.status == "FINISHED"
    assert runs_of(uri)["0"].data.tags["sweep.checkpoint_lost"] == "true"


def test_points_are_gathered_until_a_flush(uri: str) -> None:
    """A run begins at once; its points come with the next flush, or with the trial's end."""
    tracker = MlflowTracker(uri, pace=Pace(flush_s=1.0))
    tracker.open(records.study_info())
    time.sleep(1.1)
    tracker.write([records.started(0), records.started(1)])
    wait_until(lambda: len(runs_of(uri)) == 3)
    tracker.write([*records.epochs(0, 1, 1), *records.epochs(1, 1, 1)])
    tracker.write([records.finished(1, TrialState.PRUNED)])
    wait_until(lambda: runs_of(uri)["1"].info.status == "FINISHED")
    assert "val_acc" in runs_of(uri)["1"].data.metrics
    wait_until(lambda: "val_acc" in runs_of(uri)["0"].data.metrics)
    tracker.close()


def test_a_locked_database_is_waited_for(uri: str) -> None:
    """Records written while another process holds the database are there once it lets go."""
    tracker = MlflowTracker(uri)
    tracker.open(records.study_info())
    with contextlib.closing(
        sqlite3.connect(sqlite.path_of(uri) or "", isolation_level=None)
    ) as other:
        other.execute("BEGIN EXCLUSIVE")
        tracker.write([records.started(0), *records.epochs(0)])
        time.sleep(0.5)
        assert "0" not in runs_of(uri)
        other.execute("ROLLBACK")
    tracker.close()
    assert len(runs_of(uri)["0"].data.metrics) == 4


def test_nothing_is_printed_and_logs_go_to_the_file(tmp_path: Path) -> None:
    """A fresh store, migrations and all, leaves stdout and stderr empty, loads no torch, and
    makes two things: mlflow.db and mlruns."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import tracking_records as r\n"
        "from pathlib import Path\n"
        "from sweep.tracking import MlflowTracker\n"
        "assert 'mlflow' not in sys.modules\n"
        "t = MlflowTracker('sqlite:///mlflow.db', Path('sub/log'))\n"
        "t.open(r.study_info()); t.write(r.search(None)); t.close()\n"
        "assert 'torch' not in sys.modules\n"
    )
    env = {
        "PYTHONPATH": str(TESTS.parent),
        "XDG_CACHE_HOME": str(tmp_path / "sub"),
    }  # an empty one
    done = subprocess.run(
        [sys.executable, "-c", code, str(TESTS)],
        cwd=tmp_path, env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "mlruns", "sub"]
    assert "Updating database tables" in (tmp_path / "sub" / "log").read_text()


def test_a_log_that_cannot_be_opened_stops_nothing(tmp_path: Path) -> None:
    """A message whose file cannot be made (a full disk, a folder that went) is lost, no more."""
    route_logs(tmp_path / "gone" / "sweep.log")
    try:
        (tmp_path / "gone").rmdir()
        logging.getLogger("sweep.tracking").warning("nobody reads this")
        (tmp_path / "gone").mkdir()
        logging.getLogger("sweep.tracking").warning("but this")
    finally:
        route_logs(None)
    assert (tmp_path / "gone" / "sweep.log").read_text().endswith("sweep.tracking: but this\n")


def test_the_end_comes_after_the_trials_that_it_names(uri: str, model: records.Trained) -> None:
    """A study that ends while trials are being synced names its best trial's run and model."""
    late = [*records.epochs(0), records.finished(0, TrialState.COMPLETE, model)]
    is_stored = threading.Event()

    def on_stored(number: int) -> list[int]:
        if number == 1:
            tracker.write([*late, ranked_end()])
            is_stored.set()
        return []

    tracker = MlflowTracker(uri, on_stored=on_stored)
    tracker.open(records.study_info())
    tracker.write([records.started(0), records.started(1)])
    tracker.write([*records.epochs(1), records.finished(1, TrialState.COMPLETE)])
    assert is_stored.wait(60)
    tracker.close()
    assert_best_is_named(uri)


def test_a_run_that_a_repair_made_is_ranked(uri: str, model: records.Trained) -> None:
    """A search whose mirror was made before the repair of an older one names that one's best."""
    written = [r for r in records.search(model) if getattr(r, "number", 0) == 0]
    memory = records.Remembered(records.study_info(), written)
    tracker = MlflowTracker(uri)
    tracker.open(records.study_info())
    reconcile_runs(uri, memory, fix=True, is_live=True, is_deep=False)
    tracker.write([ranked_end()])
    tracker.close()
    assert_best_is_named(uri)


def ranked_end() -> StudyFinished:
    ranking = [Ranked(0, records.started(0).name, 0.8)]
    return records.study_finished(ranking=ranking)


def assert_best_is_named(uri: str) -> None:
    runs = runs_of(uri)
    best, parent = runs["0"], runs["parent"]
    assert parent.data.tags["sweep.best_run"] == best.info.run_id
    assert best.data.tags["sweep.rank"] == "1"
    assert best.data.tags["sweep.best"] == "true"
    assert parent.outputs.model_outputs[0].model_id == best.outputs.model_outputs[0].model_id


def test_broken_off_uploads_go_with_the_next_try(uri: str, model: records.Trained) -> None:
    """What MLflow wrote aside for a run whose driver was killed is removed as the run goes on."""
    track(uri, [records.started(0), *records.epochs(0)])
    runs, left = runs_of(uri), []
    for run in runs.values():
        folder = Path(run.info.artifact_uri.removeprefix("file://"))
        for place in (folder, folder / "checkpoint"):
            place.mkdir(parents=True, exist_ok=True)
            left.append(place / ".artifact.uploading.x1y2")
            left[-1].write_bytes(b"half")
    end = [records.finished(0, TrialState.COMPLETE, model), records.study_finished()]
    track(uri, [records.started(0), *records.epochs(0), *end])
    assert not [path for path in left if path.exists()]
    assert (left[0].parent / "config.yaml").exists() or (left[2].parent / "config.yaml").exists()


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


def test_only_our_database_is_tuned(tmp_path: Path) -> None:
    """After listen() connections to that file use WAL, those to another keep the defaults."""
    from sqlalchemy import create_engine, text

    sqlite.listen(f"sqlite:///{tmp_path}/ours.db")
    modes = {}
    for name in ("ours.db", "other.db"):
        engine = create_engine(f"sqlite:///{tmp_path}/{name}")
        with engine.connect() as connection:
            mode = connection.execute(text("PRAGMA journal_mode")).scalar()
            modes[name] = (mode, connection.execute(text("PRAGMA synchronous")).scalar())
        engine.dispose()
    assert modes == {"ours.db": ("wal", 1), "other.db": ("delete", 2)}


def test_errors_are_one_line_without_credentials() -> None:
    """Only the first line is kept, and no password."""
    line = one_line(ValueError("\nno http://me:pw@host/x\nmore"))
    assert line == "no http://***@host/x"
    assert one_line(KeyError()) == "KeyError"
