"""A study in MLflow: one experiment, one parent run, one child run a trial.

What is written depends on the records and on what MLflow already holds, never on this process's
past: the same records again change nothing.

Imports mlflow: only the driver may load this module.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from mlflow.entities import DatasetInput, Metric

from sweep.redact import redacted
from sweep.tracking.aside import STUDY
from sweep.tracking.disposal import drop_files
from sweep.tracking.model import ModelFolders, ModelLabel, log_model
from sweep.tracking.run import (
    STATUS,
    RunLog,
    dataset_inputs,
    dataset_name,
    flat_params,
    metric_key,
)
from sweep.tracking.run_rows import Ending, NewRun, Output
from sweep.tracking.store import (
    Store,
    find_or_make_experiment,
    is_wrong,
    search_runs,
    source_tags,
)
from sweep.trial import (
    CheckpointDropped,
    DatasetInfo,
    EpochReport,
    Record,
    StudyFinished,
    StudyInfo,
    TrialFinished,
    TrialStarted,
    TrialState,
    WorkerReady,
)

_log = logging.getLogger("sweep.tracking")

_MAX_TAG = 500
"""Longest failure message that is kept as a tag; all of it is in traceback.txt."""


class StudyRuns:
    """The sink of a study's records: keeps its runs in step with them.

    Args:
        store: Where.
        study: As the driver of this process opened it.
        log_models: Whether completed trials get a logged model.
        is_catching_up: The next records are an earlier process's, up to `study` itself among
            them; some may be delivered already.
        on_stored: Told trial and bytes once a finished trial's files are stored.
    """

    def __init__(
        self, store: Store, study: StudyInfo, *, log_models: bool, is_catching_up: bool = False,
        on_stored: Callable[[int, int], None] | None = None,
    ) -> None:  # fmt: skip
        self._store, self._study = store, study
        self._on_stored = on_stored or (lambda number, n_bytes: None)
        self._own, self._is_catching_up = study, is_catching_up
        experiment, is_new = find_or_make_experiment(store, study.name)
        self.experiment_id: str = experiment.experiment_id
        self._log_models = log_models
        self._folders: ModelFolders | None = None
        self._dataset: DatasetInfo | None = None
        self._read(study.dataset)
        self._params: dict[int, dict[str, str]] = {}
        self._tried: set[int] = set()
        self._trials: dict[int, RunLog] = {}
        parent = None
        if not is_new:
            parent = self._load()
        self.parent = self._open_parent(parent)

    def apply(self, record: Record | StudyInfo, reports: Sequence[EpochReport]) -> None:
        """Bring MLflow up to `record`; `reports` are epochs of its trial that come before it."""
        if isinstance(record, StudyInfo):
            self._study = record
            self._is_catching_up = self._is_catching_up and record.time_ms != self._own.time_ms
            self._take_up(self.parent)
        elif isinstance(record, TrialStarted):
            self.log_epochs(record.number, reports)
            self._start(record)
        elif isinstance(record, TrialFinished):
            self._finish(record, reports)
        elif isinstance(record, CheckpointDropped):
            if record.number not in self._trials:
                self._load()  # made again since by a repair
            run = self._trials.get(record.number)
            if run is not None and (keeper := drop_files(self._store, run.place)):
                _log.warning("trial %d stays: %s", record.number, keeper)
        elif isinstance(record, StudyFinished):
            self._summarise(record)
        elif isinstance(record, WorkerReady):
            self._read(record.dataset)
            self.parent.log(tags={"sweep.device": record.device})
            self.parent.log_datasets(self._inputs)

    def log_epochs(self, number: int, reports: Sequence[EpochReport]) -> None:
        """Log the epochs of one trial."""
        if reports:
            self._run_of(number, f"t{number:03d}", reports[0].time_ms).log_epochs(
                reports, self._study.metric
            )

    def is_lasting(self, error: Exception) -> bool:
        """Whether the record itself is wrong, so that no store will ever take it."""
        return is_wrong(error)

    def answers(self, number: int) -> bool:
        """Whether the store takes anything but the records of that trial just now.

        For a trial it has to write, as a store that can only be read takes nothing.
        """
        try:
            if number == STUDY:
                self._store.client.get_experiment(self.experiment_id)
            else:
                self.parent.log(tags={"sweep.role": "study"})
        except Exception:  # noqa: BLE001 - whatever it is, that is no answer
            return False
        return True

    def run_id_of(self, number: int) -> str | None:
        """The MLflow run of a trial, where there is one."""
        run = self._trials.get(number)
        return run.run_id if run else None

    def _read(self, dataset: DatasetInfo | None) -> None:
        """What the trials read is known now, or None: not yet."""
        if dataset == self._dataset and dataset is not None:
            return
        self._dataset = dataset
        self._inputs = dataset_inputs(dataset)
        if dataset is not None and self._log_models:
            self._folders = ModelFolders(dataset)

    def _load(self) -> RunLog | None:
        """Find the runs of a study that goes on; returns its parent run."""
        parent = None
        for run in search_runs(self._store, self.experiment_id, {"sweep.study": self._study.name}):
            role = run.data.tags.get("sweep.role")
            if role == "study":
                parent = RunLog(self._store, run, is_new=False)
            elif role == "trial":
                number = int(run.data.tags["sweep.trial"])
                self._trials[number] = RunLog(self._store, run, is_new=False)
        return parent

    def _open_parent(self, parent: RunLog | None) -> RunLog:
        study = self._study
        if parent is not None:
            if not self._is_catching_up:
                self._take_up(parent)
            return parent
        tags = {**_study_tags(study), **source_tags()}
        # A param can't be changed later (--trials 100 on a study of 50): those of the first
        # start stay, and config.yaml always shows the last one.
        params = flat_params(study.config)
        parent = self._make_run(study.name, study.time_ms, tags, params, self._inputs)
        self._log_files(parent)
        return parent

    def _take_up(self, parent: RunLog) -> None:
        """The study goes on: its run says so, and with what."""
        parent.reopen()
        if not parent.params:  # whoever made it was killed before it had them
            parent.log_datasets(self._inputs)
            parent.log(params=flat_params(self._study.config))
        parent.log(tags=_study_tags(self._study))
        self._log_files(parent)

    def _log_files(self, parent: RunLog) -> None:
        config = yaml.safe_dump(_plain(self._study.config), sort_keys=False)
        parent.log_text(config, "config.yaml")
        parent.log_text(self._study.space_text, "space.yaml")

    def _start(self, record: TrialStarted) -> None:
        params = flat_params(record.hyperparameters, record.params)
        self._params[record.number] = params
        run = self._run_of(
            record.number, record.name, record.time_ms, record.tags, params, self._inputs
        )
        if self._is_old(run, record):
            return
        run.reopen()
        if not run.params:
            run.log_datasets(self._inputs)
        run.log(params=params if params != run.params else None, tags=run.new_tags(record.tags))

    def _is_old(self, run: RunLog, record: TrialStarted | TrialFinished) -> bool:
        """Whether the run already went further than this record of an earlier process.

        Times are compared only there: elsewhere a clock that was set back would lose a result.
        """
        return self._is_catching_up and run.ended_by(record.time_ms)

    def _run_of(
        self, number: int, name: str, time_ms: int, tags: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None, inputs: Sequence[DatasetInput] = (),
    ) -> RunLog:  # fmt: skip
        """The run of a trial: the one there is, else a new one, with `tags` among its own."""
        if number not in self._trials and number in self._tried:
            self._load()  # an earlier attempt failed half-way and may have made it
        if number not in self._trials:
            self._tried.add(number)
            tags = {
                **(tags or {}),
                **_tags(self._study, "trial"),
                **source_tags(),
                "sweep.trial": str(number),
                "mlflow.parentRunId": self.parent.run_id,
            }
            self._trials[number] = self._make_run(name, time_ms, tags, params or {}, inputs)
        return self._trials[number]

    def _make_run(
        self, name: str, time_ms: int, tags: Mapping[str, str], params: Mapping[str, str],
        inputs: Sequence[DatasetInput],
    ) -> RunLog:  # fmt: skip
        new = NewRun(self.experiment_id, name, time_ms, tags, params, inputs)
        return RunLog(self._store, self._store.rows.make_run(new), is_new=True)

    def _finish(self, record: TrialFinished, reports: Sequence[EpochReport]) -> None:
        run = self._run_of(record.number, f"t{record.number:03d}", record.time_ms)
        if self._is_old(run, record):
            run.log_epochs(reports, self._study.metric)
            self._on_stored(record.number, self._bytes_of(record))
            return
        if not record.state.is_finished:
            run.log_epochs(reports, self._study.metric)
            run.pause()
            return
        missing = _store_files(run, record)
        output, n_bytes = None, self._bytes_of(record)
        if self._folders and record.state is TrialState.COMPLETE and record.model_file:
            if Path(record.model_file).is_file():
                label = self._label(record)
                archive = Path(record.model_file)
                output = log_model(self._store, run, self._folders, archive, label)
            else:
                missing.append(record.model_file)
        summary = _summary(record, self._study.metric, self._link(run, output))
        points = [*run.new_points(reports, self._study.metric), *summary]
        ending = Ending(STATUS[record.state], record.time_ms, output)
        run.finish(points, _outcome_tags(record), ending)
        run.remember(reports)
        self._params.pop(record.number, None)
        run.forget()
        if missing:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), missing[0])
        self._on_stored(record.number, n_bytes)

    def _bytes_of(self, record: TrialFinished) -> int:
        """What a trial's files take in MLflow, as long as its own are there."""
        n_bytes = _size(record.checkpoint)
        if self._folders and record.state is TrialState.COMPLETE and _size(record.model_file):
            n_bytes += _size(record.model_file) + self._folders.n_bytes
        return n_bytes

    def _link(self, run: RunLog, output: Output | None) -> dict[str, str]:
        """What ties a metric to the model and to the validation data."""
        if output is None or self._dataset is None:
            return {}
        name = dataset_name(self._dataset, "val")
        data = {"dataset_name": name, "dataset_digest": self._dataset.digest}
        return {"model_id": output.model_id, "run_id": run.run_id, **data}

    def _label(self, record: TrialFinished) -> ModelLabel:
        return ModelLabel(
            name=f"t{record.number:03d}",
            step=record.best_epoch or record.n_epochs,
            params=self._params.get(record.number) or self._trials[record.number].params,
            tags={"sweep.study": self._study.name, "sweep.trial": str(record.number)},
        )

    def _summarise(self, record: StudyFinished) -> None:
        metric = self._study.metric
        values: dict[str, float | None] = {
            f"best_{metric}": record.best_value,
            f"baseline_{metric}": record.baseline_value,
            **{f"n_{name.lower()}": float(n) for name, n in record.n_by_state.items()},
        }
        metrics = [
            Metric(metric_key(key), float(value), record.time_ms, 0)
            for key, value in values.items()
            if value is not None
        ]
        tags: dict[str, str] = {"sweep.reason": record.reason}
        if record.best_number is not None:
            tags["sweep.best_trial"] = str(record.best_number)
            tags["sweep.best_run"] = self.run_id_of(record.best_number) or ""
        status = {"interrupted": "KILLED", "failed": "FAILED"}.get(record.reason, "FINISHED")
        self.parent.finish(metrics, tags, Ending(status, record.time_ms))


def _tags(study: StudyInfo, role: str) -> dict[str, str]:
    return {"sweep.study": study.name, "sweep.role": role}


def _study_tags(study: StudyInfo) -> dict[str, str]:
    tags = {
        **study.tags,
        **_tags(study, "study"),
        "sweep.space": study.space_name,
        "sweep.metric": study.metric,
        "sweep.direction": study.direction,
        "sweep.n_trials": str(study.n_trials),
    }
    if commit := study.tags.get("git_commit", study.tags.get("git.commit")):
        tags["mlflow.source.git.commit"] = commit
    return tags


def _plain(value: Any) -> Any:
    """Tuples and mappings as YAML knows them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _store_files(run: RunLog, record: TrialFinished) -> list[str]:
    """Store checkpoint and traceback; returns paths of what should be there and is not."""
    if record.failure and record.failure.traceback:
        run.log_text(redacted(record.failure.traceback), "traceback.txt")
    if record.checkpoint is None:
        return []
    if not Path(record.checkpoint).is_file():
        return [record.checkpoint]
    run.log_file(record.checkpoint, "checkpoint/best.ckpt")
    return []


def _size(file: str | None) -> int:
    return Path(file).stat().st_size if file is not None and Path(file).is_file() else 0


def _summary(record: TrialFinished, metric: str, link: Mapping[str, Any]) -> list[Metric]:
    """best_<metric> of the best epoch; linked to the model and the validation data."""
    best = {name: value for name, value in record.best_metrics.items() if name != "epoch_s"}
    if record.value is not None:
        best[metric] = record.value
    step = record.best_epoch or record.n_epochs
    return [
        Metric(f"best_{metric_key(name)}", float(value), record.time_ms, step, **link)
        for name, value in best.items()
    ]


def _outcome_tags(record: TrialFinished) -> dict[str, str]:
    tags = {**record.tags, "sweep.n_epochs": str(record.n_epochs)}
    if record.best_epoch is not None:
        tags["best_epoch"] = str(record.best_epoch)
    if record.failure:
        tags["sweep.failure"] = record.failure.kind
        tags["sweep.failure_message"] = redacted(record.failure.message)[:_MAX_TAG]
    return tags
