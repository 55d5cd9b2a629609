"""MLflow remembers: runs, curves, data sets, checkpoints and models of every trial.

Light to import: mlflow itself is loaded when something is opened.

    tracker.py   MlflowTracker, the Listener that a search writes to
    pending.py   trials whose runs may lack something
    reconcile.py MLflow against the ledger, and its repair
    training.py  TrainingRun: one run for a downstream training
    queries.py   the reading side
    keys.py      names and values in the form that MLflow takes
    overview.py  the description on MLflow's pages
    addresses.py a folder that was moved or copied          (loads mlflow)
    references.py  what keeps a trial's files               (loads mlflow)
    uri.py       which store is meant
    mirror.py    a study's runs, brought up to its trials   (loads mlflow)
    run.py       one run                                    (loads mlflow)
    model.py     one logged model                           (loads mlflow)
    store.py     the connection                             (loads mlflow)
    disposal.py  checkpoints and models that go
"""

from sweep.tracking.pending import Pace
from sweep.tracking.queries import (
    artifact_of,
    artifact_place,
    find_run,
    model_uri_of,
    parent_run_id_of,
    run_id_of,
)
from sweep.tracking.reconcile import reconcile_runs
from sweep.tracking.tracker import MlflowTracker, bring_up
from sweep.tracking.training import TrainingInfo, TrainingOutcome, TrainingRun
from sweep.tracking.uri import DEFAULT_URI, default_tracking_uri, one_line

__all__ = [
    "DEFAULT_URI",
    "MlflowTracker",
    "Pace",
    "TrainingInfo",
    "TrainingOutcome",
    "TrainingRun",
    "artifact_of",
    "artifact_place",
    "bring_up",
    "default_tracking_uri",
    "find_run",
    "model_uri_of",
    "one_line",
    "parent_run_id_of",
    "reconcile_runs",
    "run_id_of",
]
