"""One MLflow run: written by the client's public methods, in as few calls as its limits allow.

Loads mlflow, as it is imported.
"""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag

from sweep.tracking import keys
from sweep.tracking.artifacts import files_of, folder_of, listed
from sweep.tracking.store import source_tags
from sweep.trial import DatasetInfo, TrialState

STATUS = {
    TrialState.COMPLETE: "FINISHED",
    TrialState.PRUNED: "FINISHED",
    TrialState.FAIL: "FAILED",
    TrialState.WAITING: "SCHEDULED",
}
"""A trial's state -> the status of its run. A pruned trial did what it was to do: MLflow's red
KILLED would make a search of sixty trials read as fifty failures. The tag sweep.state tells it
from a completed one."""

UPLOADING = ".artifact.uploading."
"""How the names of files begin that MLflow writes aside in a run's folder."""


class RunLog:
    """One run and its known content: whatever is logged twice, MLflow has once."""

    def __init__(self, client: MlflowClient, run: Run, *, is_new: bool = False) -> None:
        self.client, self.is_new = client, is_new
        self.run_id: str = run.info.run_id
        self.experiment_id: str = run.info.experiment_id
        self.artifact_uri: str = run.info.artifact_uri
        self.status: str = run.info.status
        self.start_time: int = run.info.start_time
        self.end_time: int | None = run.info.end_time
        self.params: Mapping[str, str] = dict(run.data.params)
        self.tags: dict[str, str] = dict(run.data.tags)
        self.n_metrics = len(run.data.metrics)
        outputs = run.outputs.model_outputs if run.outputs else []
        self.model_ids = [str(output.model_id) for output in outputs]
        self._has_inputs = bool(run.inputs and run.inputs.dataset_inputs)
        self._steps: dict[str, set[int]] = {}
        """Metric -> steps that the run has a point at, where that was asked for."""

    @functools.cached_property
    def _artifacts(self) -> Any:
        return files_of(self.client, self.artifact_uri)

    def log(
        self,
        metrics: Sequence[Metric] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Log missing points, params and tags; a param keeps its first value."""
        wanted = {(m.key, m.step): m for m in reversed(metrics)}  # of two, the first counts
        points = [m for m in metrics if wanted[m.key, m.step] is m]
        points = [m for m in points if m.step not in self._steps_of(m.key)]
        new_params = {k: v for k, v in (params or {}).items() if k not in self.params}
        new_tags = {k: v for k, v in (tags or {}).items() if self.tags.get(k) != v}
        if len(new_tags) == 1 and not points and not new_params:
            (tag,) = new_tags.items()
            self.client.set_tag(self.run_id, *tag)  # 60 % of what a batch takes
        else:  # in as many batches as MLflow's limits ask for
            pairs = [Param(*p) for p in new_params.items()], [RunTag(*t) for t in new_tags.items()]
            self.client.log_batch(self.run_id, points, *pairs)
        for metric in points:
            self._steps_of(metric.key).add(metric.step)
        self.params = {**self.params, **new_params}
        self.tags |= new_tags

    def history(self, key: str) -> list[Metric]:
        """All points of one metric."""
        return list(self.client.get_metric_history(self.run_id, key))

    def _steps_of(self, key: str) -> set[int]:
        if key not in self._steps:
            found = [] if self.is_new else self.history(key)
            self._steps[key] = {point.step for point in found}
        return self._steps[key]

    def log_datasets(self, info: DatasetInfo | None) -> None:
        """Name the run's data, once."""
        if info is not None and not self._has_inputs:
            self.client.log_inputs(self.run_id, _inputs(info))
            self._has_inputs = True

    def log_file(self, file: str | Path, artifact: str) -> None:
        """Store a copy of `file` under the run-relative path `artifact`, if it is not there."""
        n_bytes = Path(file).stat().st_size  # a copy that was broken off is shorter
        if not self.is_new and self.size_of(artifact) == n_bytes:
            return
        folder, _, name = artifact.rpartition("/")
        with tempfile.TemporaryDirectory() as scratch:
            named = Path(file)
            if named.name != name:
                named = Path(shutil.copyfile(file, Path(scratch, name)))
            self._artifacts.log_artifact(str(named), folder or None)

    def log_text(self, text: str, artifact: str) -> None:
        """Store `text` under the run-relative path `artifact`, in place of an earlier one."""
        self.client.log_text(self.run_id, keys.clean(text), artifact)

    def remove_broken_off_uploads(self) -> None:
        """Remove the half-stored files of a killed process, if they lie on this machine."""
        folder = None if self.is_new else folder_of(self._artifacts)
        for part in folder.rglob(f"{UPLOADING}*") if folder is not None else ():
            part.unlink(missing_ok=True)

    def size_of(self, artifact: str) -> int | None:
        """Bytes of an artifact; None if the run has none."""
        return listed(self._artifacts, artifact.rpartition("/")[0]).get(artifact)

    def fetch(self, artifact: str, folder: str) -> str:
        """A local copy of an artifact, in `folder`."""
        return str(self._artifacts.download_artifacts(artifact, folder))

    def set_status(self, status: str, end_ms: int | None = None) -> None:
        """Give the run its status, if it has another: a final one with its end.

        A final status is written last. Params and points are not
        asked for any more then: a kilobyte a trial.
        """
        if end_ms is not None:
            if (self.status, self.end_time) != (status, end_ms):
                self.client.set_terminated(self.run_id, status, end_ms)
            self.params, self._steps, self.is_new = {}, {}, False
        elif self.status != status:
            self.client.update_run(self.run_id, status=status)
        self.status, self.end_time = status, end_ms


def make_run(
    client: MlflowClient, experiment_id: str, name: str, time_ms: int, tags: Mapping[str, str]
) -> RunLog:
    """A new run. Its tags are there from the first moment on: nobody finds a run without them."""
    all_tags = {**tags, **source_tags()}
    shown = keys.clean(name)[: keys.MAX_NAME]
    run = client.create_run(experiment_id, time_ms, all_tags, shown)
    return RunLog(client, run, is_new=True)


def dataset_name(info: DatasetInfo, part: str) -> str:
    """MLflow tells data sets apart by name and digest, so each part needs its own name."""
    is_known = info.n_train or info.n_val
    return f"{info.name[:400]}-{part}" if is_known else info.name[:400]


def _inputs(info: DatasetInfo) -> list[DatasetInput]:
    """MLflow's inputs for the training and the validation part of `info`; for data whose size
    nobody knows beforehand (a DataModule), their name alone."""
    if not info.n_train and not info.n_val:
        source = json.dumps({"uri": info.source})
        whole = Dataset(dataset_name(info, ""), info.digest, "local", source)
        return [DatasetInput(whole, [InputTag("mlflow.data.context", "training")])]
    parts = (("train", "training", info.n_train), ("val", "validation", info.n_val))
    return [
        DatasetInput(_dataset(info, part, n), [InputTag("mlflow.data.context", context)])
        for part, context, n in parts
        if n > 0
    ]


def _dataset(info: DatasetInfo, part: str, n: int) -> Dataset:
    is_url = info.source.startswith(("http://", "https://"))
    features = [{"type": "tensor", "tensor-spec": _spec("float32", info.feature_shape)}]
    targets = [{"type": "tensor", "tensor-spec": _spec("int64", ())}]
    schema = {"features": json.dumps(features), "targets": json.dumps(targets)}
    return Dataset(
        name=dataset_name(info, part),
        digest=info.digest,
        source_type="http" if is_url else "local",
        source=json.dumps({"url" if is_url else "uri": info.source}),
        schema=json.dumps({"mlflow_tensorspec": schema}),
        profile=json.dumps(
            {"features_shape": [n, *info.feature_shape], "n_classes": info.n_classes}
        ),
    )


def _spec(dtype: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [-1, *shape]}
