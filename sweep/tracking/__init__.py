"""MLflow remembers: runs, curves, data sets, checkpoints and models of every trial.

Light to import; `from sweep.tracking import mirror` loads mlflow, quietly.

    tracker.py   MlflowTracker, the Listener of a search
    keys.py      names and values in MLflow's form
    uri.py       the address of the store
    description.py  a study's description: verdict, best five, next commands
    pages.py     a study's page in MLflow's UI

These load mlflow:

    mirror.py    a study's runs, brought up to its trials
    run_content.py  the content of a run, and the function to write it
    run.py       one run
    model.py     one logged model
    training.py  one run for a downstream training
    artifacts.py checkpoints and models: their places, users, removal
    store.py     the connection
    moved_folders.py  moved or copied folders
"""

from __future__ import annotations

import importlib
from typing import Any

from sweep.tracking.tracker import MlflowTracker, Pace
from sweep.tracking.uri import quiet

__all__ = ["MlflowTracker", "Pace"]

_LOAD_MLFLOW = (
    "artifacts", "mirror", "model", "moved_folders", "run", "run_content", "store", "training",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _LOAD_MLFLOW:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with quiet():
        return importlib.import_module(f"sweep.tracking.{name}")
