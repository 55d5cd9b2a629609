"""A torch.export archive as an MLflow logged model, without torch.

`mlflow.pytorch.log_model` needs torch, the model in memory and 0.3-18 s a call; here the folder
of `mlflow.pytorch.save_model(serialization_format="pt2")` is put together from the worker's
archive in a few milliseconds. A test compares the two.

Loads mlflow, as it is imported.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import math
import platform
import runpy
import shutil
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.entities import LoggedModel, LoggedModelOutput
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import Schema, TensorSpec

from sweep.data.catalog import is_custom
from sweep.hyperparameters import DEFAULT_MODULE
from sweep.tracking.artifacts import files_of, folder_of
from sweep.tracking.run import RunLog
from sweep.trial import DatasetInfo

NAMED_FLOATS = ("float32", "float16", "bfloat16", "float64")
PINNED = ("torch", "mlflow", "numpy")
"""What a model needs to be loaded; each with the version that is installed here."""

_CONDA = """\
channels:
- conda-forge
dependencies:
- python={python}
- pip
- pip:
{requirements}
name: mlflow-env
"""

_PYTHON_ENV = """\
python: {python}
build_dependencies:
- pip
- setuptools
- wheel
dependencies:
- -r requirements.txt
"""


NOTE_TAG = "mlflow.note.content"
_RUNS_TAGS = ("sweep.study", "sweep.role", "sweep.trial", "sweep.from_trial", "sweep.from_run")
"""What a model says of its run."""


class ModelFolders:
    """Writes model folders; the parts common to a study's models are made once."""

    def __init__(self, dataset: DatasetInfo | None, interface: Mapping[str, Any] | None) -> None:
        """Of the built-in network for `dataset`, or of a module with `interface`."""
        self.note = ""
        """What goes in and what comes out, for MLflow's page of the model."""
        name = None
        if interface is None:
            assert dataset is not None
            shape, kind, out = dataset.feature_shape, "float32", (dataset.n_classes,)
            name, out_kind, self.note = "logits", "float32", _note(dataset)
        else:
            shape, kind = tuple(interface["input"]["shape"]), interface["input"]["dtype"]
            given = interface.get("output", {})
            out, out_kind = tuple(given.get("shape", ())), given.get("dtype", "")
        # No schema of inputs: MLflow would refuse float64 and flat rows, which the graph takes.
        self._signature = None
        if out_kind:
            output = TensorSpec(np.dtype(out_kind), (-1, *out), name=name)
            self._signature = ModelSignature(outputs=Schema([output]))
        # One row would make MLflow's exporter fix the batch size to 1.
        values = np.linspace(0.0, 1.0, 2 * int(np.prod(shape))).round(4).reshape(2, *shape)
        rows = values.astype(kind).tolist() if kind not in NAMED_FLOATS else values.tolist()
        pins = [f"{name}=={_public_version(name)}" for name in PINNED]
        python = platform.python_version()
        self._files = {
            "requirements.txt": "\n".join(pins),
            "conda.yaml": _CONDA.format(
                python=python, requirements="\n".join(f"  - {pin}" for pin in pins)
            ),
            "python_env.yaml": _PYTHON_ENV.format(python=python),
            "input_example.json": json.dumps(rows),
            "serving_input_example.json": json.dumps({"inputs": rows}),
        }
        self._description = self._describe()

    def write(self, folder: Path, archive: Path, ids: Mapping[str, Any]) -> None:
        """Fill `folder` with the model of `archive` (.pt2).

        Args:
            folder: Made if it is missing; files of the same names are replaced.
            archive: Written by `torch.export.save`.
            ids: Its own artifact_path, model_id, model_uuid and run_id.
        """
        data = folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(archive, data / "model.pt2")
        for name, text in self._files.items():
            (folder / name).write_text(text, encoding="utf-8")
        described = {
            **self._description,
            **ids,
            "utc_time_created": str(datetime.now(UTC).replace(tzinfo=None)),
            "model_size_bytes": archive.stat().st_size + sum(map(len, self._files.values())),
        }
        # As JSON, which is YAML, too: YAML takes as long as storing the archive.
        text = json.dumps(described, ensure_ascii=False, indent=2)
        (folder / "MLmodel").write_text(text, encoding="utf-8")

    def _describe(self) -> dict[str, Any]:
        """The common part of all MLmodel files."""
        metadata = {"description": self.note} if self.note else None
        model = Model(signature=self._signature, metadata=metadata)
        model.saved_input_example_info = {
            "artifact_path": "input_example.json",
            "serving_input_path": "serving_input_example.json",
            "type": "ndarray",
        }
        version = _torch_version()
        model.add_flavor("pytorch", model_data="data", pytorch_version=version, code=None)
        # As mlflow.pyfunc.add_to_model does, whose import takes another second.
        model.add_flavor(
            "python_function",
            loader_module="mlflow.pytorch",
            python_version=platform.python_version(),
            data="data",
            pickle_module_name="mlflow.pytorch.pickle_module",
            config={"device": None},
            env={"conda": "conda.yaml", "virtualenv": "python_env.yaml"},
        )
        return dict(model.to_dict())


def folders_of(
    archive: str, dataset: DatasetInfo | None, module: str = DEFAULT_MODULE
) -> ModelFolders | None:
    """For archives like this one; None if nothing tells what goes in."""
    if module == DEFAULT_MODULE:
        return ModelFolders(dataset, None) if dataset is not None else None
    try:
        return ModelFolders(None, json.loads(Path(archive).with_suffix(".json").read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def log_model(
    run: RunLog, folders: ModelFolders, archive: str, step: int, params: Mapping[str, str]
) -> str:
    """Store the model of `archive` (.pt2), of epoch `step`, as the output of `run`.

    Returns its id. A run with a model keeps it.
    """
    client, found = run.client, list[LoggedModel]()
    if not run.is_new:
        of_run = f"source_run_id = '{run.run_id}'"
        found = client.search_logged_models([run.experiment_id], of_run, max_results=1)
    own_tags = {key: run.tags[key] for key in _RUNS_TAGS if key in run.tags}
    model = found[0] if found else client.create_logged_model(
        experiment_id=run.experiment_id,
        name="model",
        source_run_id=run.run_id,
        tags=own_tags | ({NOTE_TAG: folders.note} if folders.note else {}),
        params=dict(params),
    )  # fmt: skip
    model_id = str(model.model_id)
    if str(model.status) != "READY":
        _upload(run, folders, Path(archive), model)
        client.finalize_logged_model(model_id, "READY")
    if model_id not in run.model_ids:
        client.log_outputs(run.run_id, [LoggedModelOutput(model_id, step)])
        run.model_ids.append(model_id)
    return model_id


def _upload(run: RunLog, folders: ModelFolders, archive: Path, model: LoggedModel) -> None:
    ids = {
        "artifact_path": model.artifact_location,
        "model_uuid": model.model_id,
        "model_id": model.model_id,
        "run_id": run.run_id,
    }
    artifacts = files_of(run.client, model.artifact_location)
    with tempfile.TemporaryDirectory() as scratch:
        folder = folder_of(artifacts)
        folders.write(folder or Path(scratch), archive, ids)
        if folder is None:
            artifacts.log_artifacts(scratch)


def _note(dataset: DatasetInfo) -> str:
    shape, n_classes = dataset.feature_shape, dataset.n_classes
    sizes = ", ".join(map(str, shape))
    values = "as the data function gives them" if is_custom(dataset.name) else "from 0 to 1"
    return (
        f"Gives logits (n, {n_classes}) for samples (n, {sizes}) or flat rows "
        f"(n, {math.prod(shape)}) of any float type, values {values}: "
        "argmax over axis 1 is the class, softmax the probabilities."
    )


def _public_version(package: str) -> str:
    """The installed version as a package index knows it: 2.13.0 for 2.13.0+cpu."""
    return importlib.metadata.version(package).partition("+")[0]


def _torch_version() -> str:
    """`torch.__version__` in full, without a second of importing."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return str(runpy.run_path(str(Path(spec.origin).with_name("version.py")))["__version__"])
