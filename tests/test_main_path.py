"""The main path by commands: a search that is killed, the best trial, training, doctor.

`make test-lowest` and `make test-newest` run it with other versions of the libraries.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from searches import in_this_process
from waiting import PATIENCE_S

RUN = ("run", "--trials", "6", "--epochs", "12", "--study", "main", "--checkpoint-interval", "0.1")


@pytest.fixture
def sweep(tmp_path: Path):
    """Runs a command in an empty folder, a search with its worker; returns what it prints."""

    def call(*arguments: str) -> str:
        done = in_this_process(tmp_path, {}, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return call


def kill_in_the_middle(folder: Path) -> None:
    """Start the search and kill it, workers and all, once a trial has a resume file."""
    command = [sys.executable, "-m", "sweep", *RUN, "--population", "1"]
    search = subprocess.Popen(command, cwd=folder, start_new_session=True,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    ends_s = time.monotonic() + PATIENCE_S
    try:
        while not any(folder.glob("mlruns/.sweep/main/trials/*/last.ckpt")):
            assert search.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < ends_s
            time.sleep(0.02)
    finally:
        os.killpg(search.pid, signal.SIGKILL)
        search.wait()


def test_the_main_path(tmp_path: Path, sweep) -> None:
    """A killed search is continued; its best trial is trained again; the stores agree."""
    kill_in_the_middle(tmp_path)
    assert "6 of 6 trials" in sweep(*RUN)
    (tmp_path / "best.yaml").write_text(sweep("best", "main"))
    assert "test_acc" in sweep("train", "--config", "best.yaml", "--data", "digits")
    assert "0 disagreements" in sweep("doctor", "main")
