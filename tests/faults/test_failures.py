"""Trials that fail in different ways: each has its class, and the search goes on."""

import json
from pathlib import Path

import eater
import pytest
from searches import inline, sweep

CLASSES = {"fine": None, "eat": "oom", "die": "killed"}
"""A module that raises, hangs or gives NaN has its bad day in `executors/test_executors.py`."""


@pytest.mark.usefixtures("ready_store")
def test_each_failure_has_its_class_and_the_search_finishes(tmp_path: Path) -> None:
    """One that eats memory, or is killed again and again: three trials end, one completes."""
    (tmp_path / "eater.py").write_text(Path(eater.__file__).read_text())
    (tmp_path / "bad.yaml").write_text(eater.SPACE)
    done = sweep(
        tmp_path, "run", "--module", "eater:Model", "--space", "bad.yaml", "--metric", "acc",
        "--sampler", "grid", "--trials", "3", "--epochs", "3", "--study", "bad",
        "--max-failures", "9", "--threads", "1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    rows = json.loads(inline(tmp_path, "trials", "bad", "--format", "json").stdout)
    assert {row["mode"]: row["failure"] for row in rows} == CLASSES
