"""MLflow remembers: runs, curves, data sets, checkpoints and models of every trial.

Light to import: mlflow itself is loaded when something is opened.

    tracker.py   MlflowTracker, the Listener that a search writes to
    training.py  TrainingRun, the same for one downstream training
    queries.py   the reading side
    delivery.py  the queue and its thread
    study.py     records -> runs           (loads mlflow)
    run.py       one run                   (loads mlflow)
    model.py     one logged model          (loads mlflow)
    store.py     the connection            (loads mlflow)
    uri.py       which store is meant
"""

from sweep.tracking.queries import (
    artifact_of,
    find_run,
    model_uri_of,
    parent_run_id_of,
    run_id_of,
)
from sweep.tracking.tracker import MlflowTracker
from sweep.tracking.training import TrainingInfo, TrainingOutcome, TrainingRun
from sweep.tracking.uri import DEFAULT_URI, default_tracking_uri, one_line

__all__ = [
    "DEFAULT_URI",
    "MlflowTracker",
    "TrainingInfo",
    "TrainingOutcome",
    "TrainingRun",
    "artifact_of",
    "default_tracking_uri",
    "find_run",
    "model_uri_of",
    "one_line",
    "parent_run_id_of",
    "run_id_of",
]
