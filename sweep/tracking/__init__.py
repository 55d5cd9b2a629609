"""MLflow remembers: runs, curves, data sets, checkpoints and models of every trial.

Light to import: mlflow itself is loaded when something is opened.

    tracker.py   MlflowTracker, the Listener that a search writes to
    training.py  TrainingRun, the same for one downstream training
    queries.py   the reading side
    delivery.py  the thread that hands records over
    held.py      what it does with records that MLflow refuses
    sink.py      what it hands them to, and how often
    spool.py     where records wait: a file that outlives the driver
    aside.py     where refused records wait
    codec.py     records as lines of text
    marker.py    what a study's folder says of its place in MLflow
    reconcile.py MLflow against Optuna's states, and its repair
    study.py     records -> runs           (loads mlflow)
    run.py       one run                   (loads mlflow)
    model.py     one logged model          (loads mlflow)
    store.py     the connection            (loads mlflow)
    addresses.py a folder that was moved or copied   (loads mlflow)
    references.py  what keeps a trial's files       (loads mlflow)
    uri.py       which store is meant
"""

from sweep.tracking.aside import STUDY, waiting, waiting_numbers
from sweep.tracking.queries import (
    artifact_of,
    find_run,
    model_uri_of,
    parent_run_id_of,
    run_id_of,
)
from sweep.tracking.reconcile import reconcile_runs
from sweep.tracking.sink import Pace
from sweep.tracking.tracker import MlflowTracker, deliver_pending
from sweep.tracking.training import TrainingInfo, TrainingOutcome, TrainingRun
from sweep.tracking.uri import DEFAULT_URI, default_tracking_uri, one_line

__all__ = [
    "DEFAULT_URI",
    "STUDY",
    "MlflowTracker",
    "Pace",
    "TrainingInfo",
    "TrainingOutcome",
    "TrainingRun",
    "artifact_of",
    "default_tracking_uri",
    "deliver_pending",
    "find_run",
    "model_uri_of",
    "one_line",
    "parent_run_id_of",
    "reconcile_runs",
    "run_id_of",
    "waiting",
    "waiting_numbers",
]
