"""The content of runs, and the one function to write it.

A trial of a search and a downstream training are pictures of the same kind. Order within a run:
tags (with the run itself), files, model, parameters and curves, and the status last. So a run with
a final status lacks nothing.

Loads mlflow, as it is imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlflow.entities import Metric

from sweep.files.trial_files import steps_in
from sweep.redact import redacted
from sweep.tracking import keys
from sweep.tracking.keys import DROPPED_TAG
from sweep.tracking.model import ModelFolders, log_model
from sweep.tracking.run import STATUS, RunLog, dataset_name
from sweep.trial import (
    DatasetInfo,
    EpochReport,
    StudyInfo,
    TrialFinished,
    TrialHistory,
    TrialState,
)

CHECKPOINT, TRACEBACK = "checkpoint/best.ckpt", "traceback.txt"
LOST_TAG = "sweep.checkpoint_lost"
"""On the run of a completed trial: no copy of its checkpoint is left."""
STATE_TAG = "sweep.state"

_FIXED = ("data", "epochs", "batch_size")
"""Settings that each trial shows beside its hyperparameters."""
_MAX_MESSAGE = 500
"""Longest failure message that is kept as a tag; all of it is in traceback.txt."""


@dataclass(frozen=True, slots=True)
class Picture:
    """The content of a run, in MLflow's form."""

    name: str
    start_ms: int
    """Unix time in milliseconds."""
    tags: Mapping[str, str]
    params: Mapping[str, str]
    points: Sequence[Metric] = ()
    summary: Sequence[Metric] = ()
    """Points at the kept epoch, to be linked to the model."""
    status: str = "RUNNING"
    end_ms: int | None = None
    """Set for a final status."""
    checkpoint: str | None = None
    model_file: str | None = None
    """torch.export archive (.pt2)."""
    step: int = 0
    """Epoch of checkpoint and model."""
    traceback: str = ""
    logged: str | None = None
    """Folder with files of the module's logger."""


def picture_of_trial(study: StudyInfo, history: TrialHistory) -> Picture:
    """The content of a trial's run."""
    started, finished = history.started, history.finished
    config = started.settings or study.config
    fixed = {name: config[name] for name in _FIXED if config.get(name) is not None}
    tags = {
        **started.tags,
        "sweep.study": study.name,
        "sweep.role": "trial",
        "sweep.trial": str(started.number),
        STATE_TAG: str(finished.state if finished else TrialState.RUNNING),
    }
    summary = []
    if finished is not None and finished.state.is_finished:
        tags |= _outcome_tags(finished)
    if finished is not None and finished.value is not None:
        point = keys.best_key(study.metric), float(finished.value), finished.time_ms
        data = study.dataset
        link = (dataset_name(data, "val"), data.digest) if data else (None, None)
        summary = [Metric(*point, finished.best_epoch or finished.n_epochs, None, *link)]
    params = keys.trial_params(started.hyperparameters, started.params, fixed)
    return _picture(history, study.metric, keys.tags(tags), params, summary)


def picture_of_training(history: TrialHistory) -> Picture:
    """The content of a downstream training's run; its final metrics are `best_metrics`."""
    started, finished = history.started, history.finished
    summary = []
    if finished is not None:
        taken = keys.distinct(finished.best_metrics, keys.metric_keys("train_loss"))
        summary = [
            Metric(taken[name], float(value), finished.time_ms, finished.n_epochs)
            for name, value in finished.best_metrics.items()
        ]
    params = keys.flat_params(started.hyperparameters)
    return _picture(history, "train_loss", keys.tags(started.tags), params, summary)


def _picture(
    history: TrialHistory, metric: str, tags: Mapping[str, str], params: Mapping[str, str],
    summary: Sequence[Metric],
) -> Picture:  # fmt: skip
    started, finished = history.started, history.finished
    points = _curve_points(history.reports, keys.metric_keys(metric))
    if started.logged:
        names = keys.distinct(
            [n for r in history.reports for n in r.metrics], keys.metric_keys(metric)
        )
        points += _step_points(Path(started.logged), names)
    picture = Picture(
        started.name, started.time_ms, tags, params, points, logged=started.logged or None
    )
    if finished is None:
        return picture
    if not finished.state.is_finished:
        return replace(picture, status=STATUS[finished.state])
    is_complete = finished.state is TrialState.COMPLETE
    return replace(
        picture,
        summary=summary,
        status=STATUS[finished.state],
        end_ms=finished.time_ms,
        checkpoint=finished.checkpoint,
        model_file=finished.model_file if is_complete else None,
        step=finished.best_epoch or finished.n_epochs,
        traceback=finished.failure.traceback if finished.failure else "",
    )


def _curve_points(reports: Sequence[EpochReport], taken: Mapping[str, str]) -> list[Metric]:
    """One point a metric and epoch."""
    points, names = [], dict(taken)
    for report in reports:
        names = keys.distinct(report.metrics, names)
        points += [
            Metric(names[name], float(value), report.time_ms, report.epoch)
            for name, value in report.metrics.items()
        ]
    return points


def _step_points(logged: Path, taken: Mapping[str, str]) -> list[Metric]:
    """The values that the module's logger got, by step."""
    rows = steps_in(logged)
    names = keys.distinct([name for _, _, values in rows for name in values], taken)
    return [
        Metric(names[name], value, time_ms, step)
        for time_ms, step, values in rows
        for name, value in values.items()
    ]


def _outcome_tags(finished: TrialFinished) -> dict[str, str]:
    tags = {**finished.tags, "sweep.n_epochs": str(finished.n_epochs)}
    if finished.best_epoch is not None:
        tags["sweep.best_epoch"] = str(finished.best_epoch)
    if finished.failure:
        tags["sweep.failure"] = finished.failure.kind
        tags["sweep.failure_message"] = redacted(finished.failure.message)[:_MAX_MESSAGE]
    return tags


def show(
    run: RunLog, picture: Picture, dataset: DatasetInfo | None, folders: ModelFolders | None
) -> list[str]:
    """Bring a run up to its picture; returns the files lost before MLflow had them.

    Only missing parts are written: a second call costs no write, and a broken-off call is
    completed by the next one. Raises whatever MLflow raises.
    """
    run.log_datasets(dataset)
    tags, points, lost = dict(picture.tags), list(picture.points), []
    if picture.end_ms is not None:
        run.remove_broken_off_uploads()
        for file in _files_of(picture.logged):
            run.log_file(file, f"logged/{file.name}")
        if picture.traceback:
            run.log_text(redacted(picture.traceback), TRACEBACK)
        if _is_checkpoint_lost(run, picture):
            lost.append(str(picture.checkpoint))
            tags |= {LOST_TAG: "true"} if picture.status == "FINISHED" else {}
        model_id = None
        is_dropped = DROPPED_TAG in {**run.tags, **picture.tags}
        archive = picture.model_file if folders and not is_dropped else None
        if archive and folders and Path(archive).is_file():
            model_id = log_model(run, folders, archive, picture.step, picture.params)
        elif archive and run.is_new:
            lost.append(archive)
        points += [_linked(point, model_id, run.run_id) for point in picture.summary]
    run.log(points, picture.params, tags)
    run.set_status(picture.status, picture.end_ms)
    return lost


def _files_of(folder: str | None) -> list[Path]:
    """What the module's logger got, without the values by step: those are points."""
    if folder is None:
        return []
    return sorted(p for p in Path(folder).glob("*") if p.is_file() and p.suffix != ".jsonl")


def _is_checkpoint_lost(run: RunLog, picture: Picture) -> bool:
    """Store the checkpoint; returns whether it is gone from the disk, and MLflow has none."""
    file = picture.checkpoint
    if file is None or DROPPED_TAG in {**run.tags, **picture.tags}:
        return False
    if Path(file).is_file():
        run.log_file(file, CHECKPOINT)
        return False
    return run.is_new or run.size_of(CHECKPOINT) is None


def _linked(point: Metric, model_id: str | None, run_id: str) -> Metric:
    if model_id is None:
        return Metric(point.key, point.value, point.timestamp, point.step)
    return Metric(
        point.key, point.value, point.timestamp, point.step, model_id,
        point.dataset_name, point.dataset_digest, run_id,
    )  # fmt: skip
