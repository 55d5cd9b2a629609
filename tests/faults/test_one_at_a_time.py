"""Fused trials that no worker can hold side by side, or whose user changes --population."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from harness import Plan, check
from searches import children_of, inline, start_sweep
from waiting import PATIENCE_S

from sweep.files.trial_files import TrialFiles
from sweep.trial import EpochReport, TrialResult

EPOCHS = 40


def flags(n_trials: int, population: str) -> tuple[str, ...]:
    return (
        "run", "--study", "s", "--trials", str(n_trials), "--epochs", str(EPOCHS),
        "--population", population, "--checkpoint-interval", "0.05", "--threads", "1", "-v",
    )  # fmt: skip


def notices(out: str) -> list[str]:
    found = re.findall(r'^notice="(.*)"$', out, re.MULTILINE)
    return [text for text in found if ": loading " not in text]


def wait_for_epoch(process: subprocess.Popen[str], number: int, epoch: int) -> str:
    """What a search prints until it tells of that epoch of that trial."""
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith(f"trial={number} ") and f" epoch={epoch}/" in line:
            break
    return "".join(said)


def ended(folder: Path, number: int) -> tuple[list[EpochReport], TrialResult]:
    """A trial's epochs, as each was trained, and its last word."""
    verdict = TrialFiles(folder / "mlruns/.sweep/s", number).verdict()
    assert verdict is not None
    return verdict


def first_epoch_since(folder: Path, number: int, time_ms: float) -> int:
    """The first epoch of a trial that was trained after `time_ms` (Unix milliseconds)."""
    return min(report.epoch for report in ended(folder, number)[0] if report.time_ms > time_ms)


@pytest.mark.usefixtures("ready_store")
def test_killed_down_to_one_trial_at_a_time(tmp_path: Path) -> None:
    """3 trials at a time, then 1: each goes on from its checkpoint, in the fused path."""
    process = start_sweep(tmp_path, *flags(3, "3"))
    said = wait_for_epoch(process, 2, 20)
    (worker,) = children_of(process.pid)
    os.kill(worker, signal.SIGKILL)
    killed_ms = time.time() * 1000
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert [line for line in notices(said + out) if "is tried again" not in line] == [
        "a worker with 3 trials was ended by SIGKILL: the next trains 1 at a time"
    ]
    assert [ended(tmp_path, n)[1].notes["sweep.trainer"] for n in range(3)] == ["fused"] * 3
    assert min(first_epoch_since(tmp_path, n, killed_ms) for n in range(3)) > 1
    assert check(tmp_path, "s", Plan(0, 0, n_trials=3, epochs=EPOCHS)) == []


@pytest.mark.usefixtures("ready_store")
def test_a_study_goes_on_with_another_population(tmp_path: Path) -> None:
    """auto, then 1, then auto again: each trial goes on from its last checkpoint, in the engine
    of the day, and there is nothing to say about it."""
    stopped_ms, heard = [], []
    for n_trials, population in ((2, "auto"), (3, "1")):
        process = start_sweep(tmp_path, *flags(n_trials, population))
        heard += notices(wait_for_epoch(process, n_trials - 1, 10))
        os.killpg(process.pid, signal.SIGINT)
        stopped_ms.append(time.time() * 1000)
        process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 130
    done = inline(tmp_path, *flags(4, "auto"))
    assert done.returncode == 0, done.stderr
    assert heard + notices(done.stdout) == []
    engines = [ended(tmp_path, n)[1].notes["sweep.trainer"] for n in range(4)]
    assert engines == ["plain", "plain", "fused", "fused"]
    since = [first_epoch_since(tmp_path, n, stopped_ms[n == 2]) for n in range(3)]
    assert min(since) > 10
    assert check(tmp_path, "s", Plan(0, 0, n_trials=4, epochs=EPOCHS)) == []
