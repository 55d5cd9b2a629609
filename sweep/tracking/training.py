"""TrainingRun: one run of its own for `sweep train`, beside the trials of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.hyperparameters import DEFAULT_MODULE
from sweep.tracking.keys import flat_params, metric_keys
from sweep.tracking.uri import quiet
from sweep.trial import DatasetInfo, EpochReport, TrialState

if TYPE_CHECKING:
    from mlflow.entities import Run

    from sweep.tracking.run import RunLog
    from sweep.tracking.store import Store


@dataclass(frozen=True, slots=True)
class TrainingInfo:
    """What is known of a training before its first epoch."""

    experiment: str
    """MLflow experiment: the study's name, or one of the user's choice."""
    name: str
    """Readable run name."""
    params: Mapping[str, Any]
    time_ms: int
    """Unix time in milliseconds."""
    from_trial: int | None = None
    """Number of the trial that the configuration came from."""
    from_run: str | None = None
    """MLflow run of that trial."""
    dataset: DatasetInfo | None = None
    module: str = DEFAULT_MODULE
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TrainingOutcome:
    """What came out of a training."""

    time_ms: int
    """Unix time in milliseconds."""
    n_epochs: int
    metrics: Mapping[str, float]
    """Final metrics, e.g. test_loss and test_acc."""
    state: TrialState = TrialState.COMPLETE
    checkpoint: str | None = None
    model_file: str | None = None
    """torch.export archive (.pt2)."""


class TrainingRun:
    """Writes one training to MLflow as it goes; every call waits for the store (5-20 ms).

    Args:
        tracking_uri: As for MlflowTracker.
        log_file: Where MLflow's own messages go; None: nowhere.
    """

    def __init__(self, tracking_uri: str, log_file: Path | None = None) -> None:
        self._uri, self._log_file = tracking_uri, log_file
        self._opened: tuple[Store, RunLog, TrainingInfo] | None = None
        self._keys = metric_keys("train_loss")

    def open(self, info: TrainingInfo, run_id: str | None = None) -> str:
        """Make the run, or go on with `run_id` where it is there; returns the run's id.

        Raises StoreError where that cannot be done.
        """
        with quiet():
            from sweep.tracking import keys, run, store

            store.route_logs(self._log_file)
            opened = store.connect(self._uri)
        with store.in_one_line(f"MLflow at {opened.shown}"):
            known = _known_run(opened, run_id) if run_id else None
            if known is not None:
                log = run.RunLog(opened, known, is_new=False)
                log.reopen()
                self._opened = opened, log, info
                return log.run_id
            experiment, _ = store.find_or_make_experiment(opened, info.experiment)
            tags = {**info.tags, **store.source_tags(), **_origin(info)}
            new = run.NewRun(experiment.experiment_id, info.name, info.time_ms, keys.tags(tags))
            log = run.make_run(opened, new)
            log.log_datasets(run.dataset_inputs(info.dataset))
            log.log(params=keys.flat_params(info.params))
        self._opened = opened, log, info
        return log.run_id

    def log_epochs(self, reports: Sequence[EpochReport]) -> None:
        """Log one point of every curve for each epoch that the run lacks. Raises StoreError."""
        store, log, _ = self._now_open()
        from sweep.tracking.run import curve_points
        from sweep.tracking.store import in_one_line

        with in_one_line(f"MLflow at {store.shown}"):
            log.log(curve_points(reports, self._keys))

    def pause(self) -> None:
        """An interrupted training: its run is SCHEDULED. Raises StoreError."""
        store, log, _ = self._now_open()
        from sweep.tracking.store import in_one_line

        with in_one_line(f"MLflow at {store.shown}"):
            log.pause()

    def finish(self, outcome: TrainingOutcome) -> str | None:
        """Store metrics, checkpoint and model, end the run; returns the logged model's id.

        Raises:
            StoreError: The store did not take it.
        """
        store, log, info = self._now_open()
        from sweep.tracking.store import in_one_line, route_logs

        try:
            with in_one_line(f"MLflow at {store.shown}"):
                return _finish(store, log, info, outcome)
        finally:
            self._opened = None
            route_logs(None)

    def _now_open(self) -> tuple[Store, RunLog, TrainingInfo]:
        if self._opened is None:
            raise RuntimeError("open() comes first")
        return self._opened


def _known_run(store: Store, run_id: str) -> Run | None:
    """The run, unless it was deleted."""
    from mlflow.exceptions import MlflowException

    try:
        found = store.client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return found if found.info.lifecycle_stage == "active" else None


def _finish(store: Store, log: RunLog, info: TrainingInfo, outcome: TrainingOutcome) -> str | None:
    from mlflow.entities import Metric

    from sweep.tracking import model
    from sweep.tracking.run import STATUS

    if outcome.checkpoint:
        log.log_file(outcome.checkpoint, "checkpoint/best.ckpt")
    model_id = None
    if outcome.model_file and info.dataset:
        params = flat_params(info.params)
        label = model.ModelLabel("model", outcome.n_epochs, params, _origin(info))
        folders = model.ModelFolders(info.dataset, info.module)
        model_id = model.log_model(store, log, folders, Path(outcome.model_file), label)
    link = {"model_id": model_id, "run_id": log.run_id} if model_id else {}
    names = metric_keys("train_loss")
    names.add(outcome.metrics)
    metrics = [
        Metric(names[name], float(value), outcome.time_ms, outcome.n_epochs, **link)
        for name, value in outcome.metrics.items()
    ]
    log.log(metrics)
    log.end(STATUS[outcome.state], outcome.time_ms)
    return model_id


def _origin(info: TrainingInfo) -> dict[str, str]:
    tags = {"sweep.study": info.experiment, "sweep.role": "train"}
    if info.from_trial is not None:
        tags["sweep.from_trial"] = str(info.from_trial)
    if info.from_run is not None:
        tags["sweep.from_run"] = info.from_run
    return tags
