"""A store and a model for the tests of what is in MLflow."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tracking_records as records


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> records.Trained:
    return records.trained(tmp_path_factory.mktemp("model"))


@pytest.fixture
def uri(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"
