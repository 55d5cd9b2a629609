"""The model that a trial leaves in MLflow: what it predicts, takes and says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tracking_records as records
import yaml
from mlflow import MlflowClient
from tracking_runs import MLFLOWS_OWN, runs_of, track

from sweep.tracking.artifacts import artifact_of, model_uri_of, run_id_of
from sweep.training.mlp import MLPClassifier


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
