"""MLflow remembers: runs, curves, data sets, checkpoints and models of every trial.

Light to import; `from sweep.tracking import mirror` loads mlflow, quietly.

    tracker.py   MlflowTracker, the Listener that a search writes to
    keys.py      names and values in the form that MLflow takes
    uri.py       which store is meant

These load mlflow:

    mirror.py    a study's runs, brought up to its trials
    picture.py   what a run is to show, and the function that brings it up to that
    run.py       one run
    model.py     one logged model
    training.py  one run for a downstream training
    artifacts.py checkpoints and models: where they are, what keeps them, how they go
    store.py     the connection
    addresses.py a folder that was moved or copied
"""

from __future__ import annotations

import importlib
from typing import Any

from sweep.tracking.tracker import MlflowTracker, Pace
from sweep.tracking.uri import DEFAULT_URI, default_tracking_uri, one_line, quiet

__all__ = ["DEFAULT_URI", "MlflowTracker", "Pace", "default_tracking_uri", "one_line"]

_LOAD_MLFLOW = (
    "addresses", "artifacts", "mirror", "model", "picture", "run", "store", "training",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _LOAD_MLFLOW:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with quiet():
        return importlib.import_module(f"sweep.tracking.{name}")
