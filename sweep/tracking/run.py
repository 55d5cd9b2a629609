"""One MLflow run: written by the client's public methods, in as few calls as its limits allow.

Imports mlflow: only the driver may load this module.
"""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from sweep.tracking import keys
from sweep.tracking.disposal import Place
from sweep.tracking.store import Store
from sweep.trial import DatasetInfo, EpochReport, TrialState

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


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run that begins."""

    experiment_id: str
    name: str
    time_ms: int
    """Unix time in milliseconds."""
    tags: Mapping[str, str]


class RunLog:
    """Writes to one run what it lacks: whatever is logged twice, MLflow has once."""

    def __init__(self, store: Store, run: Run, *, is_new: bool) -> None:
        self._store = store
        self.run_id: str = run.info.run_id
        self.experiment_id: str = run.info.experiment_id
        self.place = Place.of(run)
        self.status: str = run.info.status
        self.end_time: int | None = run.info.end_time
        self.params: Mapping[str, str] = dict(run.data.params)
        self.tags: dict[str, str] = dict(run.data.tags)
        self.may_have_model = not is_new
        self._is_new = is_new
        self._has_inputs = bool(run.inputs and run.inputs.dataset_inputs)
        self._steps: dict[str, set[int]] = {}
        """Metric -> steps that the run has a point at, where that was asked for."""

    @functools.cached_property
    def _artifacts(self) -> Any:
        uri = self.place.artifact_uri
        return get_artifact_repository(uri, tracking_uri=self._store.uri)

    def forget(self) -> None:
        """Params and points are not asked for any more: a kilobyte a trial."""
        self.params, self._steps, self._is_new = {}, {}, False

    def log(
        self,
        metrics: Sequence[Metric] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Log the points, params and tags that the run lacks; a param keeps its first value."""
        wanted = {(m.key, m.step): m for m in reversed(metrics)}  # of two, the first counts
        points = [m for m in metrics if wanted[m.key, m.step] is m]
        points = [m for m in points if m.step not in self._steps_of(m.key)]
        new_params = {k: v for k, v in (params or {}).items() if k not in self.params}
        new_tags = {k: v for k, v in (tags or {}).items() if self.tags.get(k) != v}
        if len(new_tags) == 1 and not points and not new_params:
            (tag,) = new_tags.items()
            self._store.client.set_tag(self.run_id, *tag)  # 60 % of what a batch takes
        else:  # in as many batches as MLflow's limits ask for
            pairs = [Param(*p) for p in new_params.items()], [RunTag(*t) for t in new_tags.items()]
            self._store.client.log_batch(self.run_id, points, *pairs)
        for metric in points:
            self._steps_of(metric.key).add(metric.step)
        self.params = {**self.params, **new_params}
        self.tags |= new_tags

    def history(self, key: str) -> list[Metric]:
        """All points of one metric."""
        return list(self._store.client.get_metric_history(self.run_id, key))

    def _steps_of(self, key: str) -> set[int]:
        if key not in self._steps:
            found = [] if self._is_new else self.history(key)
            self._steps[key] = {point.step for point in found}
        return self._steps[key]

    def log_datasets(self, inputs: Sequence[DatasetInput]) -> None:
        """Name the data that the run reads, once."""
        if inputs and not self._has_inputs:
            self._store.client.log_inputs(self.run_id, list(inputs))
            self._has_inputs = True

    def log_file(self, file: str | Path, artifact: str) -> None:
        """Store a copy of `file` under the run-relative path `artifact`, if it is not there."""
        folder, _, name = artifact.rpartition("/")
        if not self._is_new and self._has_file(artifact, Path(file).stat().st_size):
            return
        if Path(file).name == name:
            self._artifacts.log_artifact(str(file), folder or None)
            return
        with tempfile.TemporaryDirectory() as scratch:
            renamed = Path(scratch, name)
            shutil.copyfile(file, renamed)
            self._artifacts.log_artifact(str(renamed), folder or None)

    def log_text(self, text: str, artifact: str) -> None:
        """Store `text` under the run-relative path `artifact`; what is there is replaced."""
        self._store.client.log_text(self.run_id, keys.clean(text), artifact)

    def remove_broken_off_uploads(self) -> None:
        """Remove files that a killed process was storing for this run, where they lie on disk."""
        if not self._is_new and isinstance(self._artifacts, LocalArtifactRepository):
            for part in Path(self._artifacts.artifact_dir).rglob(f"{UPLOADING}*"):
                part.unlink(missing_ok=True)

    def files(self, folder: str) -> dict[str, int]:
        """Artifacts in `folder`: run-relative path -> bytes."""
        found = self._artifacts.list_artifacts(folder)
        return {entry.path: int(entry.file_size or 0) for entry in found if not entry.is_dir}

    def fetch(self, artifact: str, folder: str) -> str:
        """A local copy of an artifact, in `folder`."""
        return str(self._artifacts.download_artifacts(artifact, folder))

    def _has_file(self, artifact: str, n_bytes: int) -> bool:
        """A copy that was broken off is shorter."""
        return self.files(artifact.rpartition("/")[0]).get(artifact) == n_bytes

    def reopen(self) -> None:
        """Back to RUNNING, if it is not."""
        if self.status != "RUNNING":
            self._store.client.update_run(self.run_id, status="RUNNING")
            self.status = "RUNNING"

    def pause(self) -> None:
        """An interrupted trial: it is to go on, so its run is SCHEDULED and has no end."""
        if self.status != "SCHEDULED":
            self._store.client.update_run(self.run_id, status="SCHEDULED")
            self.status = "SCHEDULED"

    def end(self, status: str, time_ms: int) -> None:
        """Give the run its final status: the last thing that is written of a trial."""
        if (self.status, self.end_time) != (status, time_ms):
            self._store.client.set_terminated(self.run_id, status, time_ms)
            self.status, self.end_time = status, time_ms


def make_run(store: Store, new: NewRun) -> RunLog:
    """A new run. Its tags are there from the first moment on: nobody finds a run without them."""
    run = store.client.create_run(
        new.experiment_id, new.time_ms, dict(new.tags), keys.clean(new.name)[: keys.MAX_NAME]
    )
    return RunLog(store, run, is_new=True)


def same_value(a: float, b: float) -> bool:
    """Whether MLflow shows `a` where `b` was logged; it has the largest floats for infinities."""
    if a != a or b != b:
        return a != a and b != b
    largest = 1.7976931348623157e308
    return max(-largest, min(largest, a)) == max(-largest, min(largest, b))


def dataset_inputs(info: DatasetInfo | None) -> list[DatasetInput]:
    """MLflow's inputs for the training and the validation part of `info`."""
    if info is None:
        return []
    parts = (("train", "training", info.n_train), ("val", "validation", info.n_val))
    return [
        DatasetInput(_dataset(info, part, n), [InputTag("mlflow.data.context", context)])
        for part, context, n in parts
        if n > 0
    ]


def dataset_name(info: DatasetInfo, part: str) -> str:
    """MLflow tells data sets apart by name and digest, so each part needs its own name."""
    return f"{info.name[:400]}-{part}"


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


def curve_points(reports: Iterable[EpochReport], names: keys.Keys) -> list[Metric]:
    """One point a metric and epoch."""
    points = []
    for report in reports:
        names.add(report.metrics)
        points += [
            Metric(names[name], float(value), report.time_ms, report.epoch)
            for name, value in report.metrics.items()
        ]
    return points
