"""Runs of a small search in MLflow, written by a tracker and read back."""

from __future__ import annotations

from typing import Any

import pytest
import tracking_records as records
from mlflow import MlflowClient
from mlflow.entities import Run

from sweep.tracking import MlflowTracker
from sweep.trial import Record

MLFLOWS_OWN = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType")
"""What importing mlflow.pyfunc warns of."""


def track(uri: str, written: list[Record], **changes: Any) -> None:
    tracker = MlflowTracker(uri)
    tracker.open(records.study_info(**changes))
    tracker.write(written)
    tracker.close()


def runs_of(uri: str, study: str = "toy-study") -> dict[str, Run]:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(study)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    return {run.data.tags.get("sweep.trial", "parent"): run for run in found}
