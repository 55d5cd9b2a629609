"""The page that a long search leaves in MLflow at its end."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from sweep.config.settings import RunConfig
from sweep.reuse.page import ARTIFACT, LEAST_S, store_page_of
from sweep.search.study import Outcome
from sweep.testing import example_study
from sweep.trial import StudyFinished


def ended(took_s: float, n_new: int = 3) -> Outcome:
    """A search of that study that took so long."""
    study = example_study(name="digits-mlp", time_ms=0)
    end = StudyFinished(int(1000 * took_s), {"COMPLETE": 3}, None, None, None, "done")
    return Outcome(study, end, n_new, None)


def has_page() -> bool:
    """Whether MLflow has it with the study's own run."""
    client = MlflowClient("sqlite:///mlflow.db")
    experiment = client.get_experiment_by_name("digits-mlp")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], "tags.`sweep.role` = 'study'")
    return ARTIFACT in [file.path for file in client.list_artifacts(run.info.run_id)]


def test_a_long_search_leaves_its_page(folder: Path) -> None:
    """A short one or one without new trials does not."""
    store_page_of(ended(LEAST_S - 1), RunConfig())
    store_page_of(ended(LEAST_S, n_new=0), RunConfig())
    assert not has_page()
    store_page_of(ended(LEAST_S), RunConfig())
    assert has_page()


def test_a_page_that_cannot_be_stored_is_said(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In one line; the search is done and stays so."""
    store = Path("mlflow.db").rename("aside.db")
    try:
        Path("mlflow.db").mkdir()
        store_page_of(ended(LEAST_S), RunConfig())
        Path("mlflow.db").rmdir()
    finally:
        store.rename("mlflow.db")
    (record,) = caplog.records
    said = record.getMessage()
    assert said.startswith("the study's page is not in MLflow (")
    assert said.endswith("): `sweep report digits-mlp --log` stores it")
    assert "\n" not in said
