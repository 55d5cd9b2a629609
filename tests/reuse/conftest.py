"""A small search, whose best trial is used."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import sweep
from sweep.reuse import Best


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """A folder with one small search in it, tracked in MLflow."""
    folder = tmp_path_factory.mktemp("reuse")
    shutil.copyfile(empty_store, folder / "mlflow.db")
    with contextlib.chdir(folder):
        sweep.run(trials=3, epochs=3, executor="inline", threads=1, population=1)
    return folder


@pytest.fixture(scope="module")
def folder(searched: Path) -> Iterator[Path]:
    """That folder, which is the current one."""
    with contextlib.chdir(searched):
        yield searched


@pytest.fixture
def best(folder: Path) -> Best:
    """The best trial of that search."""
    return sweep.best("digits-mlp")
