"""One MLflow run, written with as few calls as MLflow's limits allow.

Imports mlflow: only the driver may load this module.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Run
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from sweep.tracking.disposal import Place
from sweep.tracking.run_rows import Ending
from sweep.tracking.store import Store
from sweep.trial import DatasetInfo, EpochReport, HyperValue, TrialState

STATUS = {
    TrialState.COMPLETE: "FINISHED",
    TrialState.PRUNED: "KILLED",
    TrialState.FAIL: "FAILED",
}
"""A trial's final state -> the status of its run."""

_FINAL = frozenset(STATUS.values())

_NOT_IN_KEYS = re.compile(r"[^\w./ -]")


class RunLog:
    """Writes to one run. Everything may be written twice: MLflow keeps it once."""

    def __init__(self, store: Store, run: Run, *, is_new: bool) -> None:
        self._store = store
        self.run_id: str = run.info.run_id
        self.experiment_id: str = run.info.experiment_id
        self.place = Place.of(run)
        self.status: str = run.info.status
        self.end_time: int | None = run.info.end_time
        self.params: Mapping[str, str] = dict(run.data.params)
        self._tags: dict[str, str] = dict(run.data.tags)
        self.may_have_model = not is_new
        self._artifacts = get_artifact_repository(run.info.artifact_uri, tracking_uri=store.uri)
        self._last_epoch: int | None = 0 if is_new else None  # None: not asked for yet

    def log(
        self,
        metrics: Sequence[Metric] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Log all of it."""
        self._store.rows.log(self.run_id, metrics, params or {}, tags or {})
        self._tags |= tags or {}

    def new_tags(self, tags: Mapping[str, str]) -> dict[str, str]:
        """Those of `tags` that the run does not have yet."""
        return {key: value for key, value in tags.items() if self._tags.get(key) != value}

    def new_points(self, reports: Sequence[EpochReport], metric: str) -> list[Metric]:
        """Metrics of the epochs among `reports` that the run does not have yet.

        A curve has one point an epoch. `metric` comes last in each: an epoch that has a point of
        it has all its points, however the calls that logged them were cut.
        """
        last = self._known_until(metric) if reports else 0
        points = []
        for report in reports:
            if report.epoch > last:
                last = report.epoch
                points += [
                    Metric(metric_key(name), float(value), report.time_ms, report.epoch)
                    for name, value in sorted(report.metrics.items(), key=lambda m: m[0] == metric)
                ]
        return points

    def log_epochs(self, reports: Sequence[EpochReport], metric: str) -> None:
        """Log one point an epoch for every metric."""
        self.log(self.new_points(reports, metric))
        self.remember(reports)

    def remember(self, reports: Sequence[EpochReport]) -> None:
        """The epochs of `reports` are in the run now."""
        if reports:
            self._last_epoch = max(self._last_epoch or 0, *(r.epoch for r in reports))

    def _known_until(self, metric: str) -> int:
        """The last epoch that the run has."""
        if self._last_epoch is None:
            history = self._store.client.get_metric_history(self.run_id, metric_key(metric))
            self._last_epoch = max((point.step for point in history), default=0)
        return self._last_epoch

    def ended_by(self, time_ms: int) -> bool:
        """Whether the run got its final status at `time_ms` or later."""
        return self.status in _FINAL and self.end_time is not None and self.end_time >= time_ms

    def log_datasets(self, inputs: Sequence[DatasetInput]) -> None:
        """Name the data that the run reads."""
        if inputs:
            self._store.client.log_inputs(self.run_id, list(inputs))

    def log_file(self, file: str | Path, artifact: str) -> None:
        """Store a copy of `file` under the run-relative path `artifact`."""
        folder, _, name = artifact.rpartition("/")
        if Path(file).name == name:
            self._artifacts.log_artifact(str(file), folder or None)  # type: ignore[no-untyped-call]
            return
        with tempfile.TemporaryDirectory() as scratch:
            renamed = Path(scratch, name)
            shutil.copyfile(file, renamed)
            self._artifacts.log_artifact(str(renamed), folder or None)  # type: ignore[no-untyped-call]

    def log_text(self, text: str, artifact: str) -> None:
        """Store `text` under the run-relative path `artifact`."""
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch, os.path.basename(artifact))  # noqa: PTH119 - a URI path
            file.write_text(text, encoding="utf-8")
            self.log_file(file, artifact)

    def reopen(self) -> None:
        """Back to RUNNING, if it is not."""
        if self.status != "RUNNING":
            self._store.client.update_run(self.run_id, status="RUNNING")
            self.status = "RUNNING"

    def pause(self) -> None:
        """An interrupted trial: it is to go on, so its run is SCHEDULED and has no end."""
        self._store.client.update_run(self.run_id, status="SCHEDULED")
        self.status = "SCHEDULED"

    def finish(self, metrics: Sequence[Metric], tags: Mapping[str, str], ending: Ending) -> None:
        """Log all of it and set the final status, last: a run that has it lacks nothing."""
        self._store.rows.finish(self.run_id, metrics, tags, ending)
        self.status, self.end_time = ending.status, ending.time_ms
        self._tags |= tags

    def forget(self) -> None:
        """Params and tags are not asked for any more: a kilobyte a trial."""
        self.params, self._tags = {}, {}


def metric_key(name: str) -> str:
    """`name` with what MLflow forbids in keys made `_`."""
    return _NOT_IN_KEYS.sub("_", name)


def flat_params(*tables: Mapping[str, Any]) -> dict[str, str]:
    """One table of strings out of nested ones; the first table that has a key decides.

    >>> flat_params({"lr": 0.001, "hidden": (256, 64), "data": {"name": "digits"}})
    {'lr': '0.001', 'hidden': '256-64', 'data.name': 'digits'}
    """
    flat: dict[str, str] = {}
    for table in tables:
        for key, value in table.items():
            if isinstance(value, Mapping):
                inner = {f"{key}.{name}": item for name, item in value.items()}
                flat = {**flat_params(inner), **flat}
            else:
                flat.setdefault(metric_key(str(key)), shown(value))
    return flat


def shown(value: HyperValue) -> str:
    """A hyperparameter as one reads it: a list of widths is joined by "-"."""
    if isinstance(value, list | tuple):
        return "-".join(shown(item) for item in value) or "none"
    return str(value)


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
    return f"{info.name}-{part}"


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
