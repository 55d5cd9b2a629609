"""A search whose trials train on two devices each, and what is killed in it."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import optuna
import pytest
from searches import TESTS, children_of, is_alive, start_sweep
from waiting import PATIENCE_S, wait_until

from sweep.files.trial_files import RESUME_STATE, TrialFiles

SPACE = """
first: defaults
parameters:
  lr: {choices: [0.05, 1.0e-6]}
fixed: {nap_s: 0.2, batch_size: 8}
"""


def worker_of(search: subprocess.Popen[str]) -> int:
    """The search's worker, once there is one."""
    wait_until(lambda: children_of(search.pid))
    return children_of(search.pid)[0]


def ranks_of(worker: int) -> list[int]:
    """The processes of its trial, rank 0 first, once they train."""

    def found() -> dict[bytes, int]:
        try:
            ranks = {}
            for pid in children_of(worker):
                content = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                ranks |= {line: pid for line in content if line.startswith(b"LOCAL_RANK=")}
            return ranks
        except OSError:
            return {}

    wait_until(lambda: len(found()) == 2)
    return [pid for _, pid in sorted(found().items())]


@pytest.mark.usefixtures("ready_store")
def test_a_search_on_two_devices_survives_kills(tmp_path: Path) -> None:
    """A rank and then the worker are killed: the trial goes on, the next one is pruned, and no
    process is left."""
    (tmp_path / "space.yaml").write_text(SPACE)
    (tmp_path / "rank_code.py").write_bytes((TESTS / "rank_code.py").read_bytes())
    search = start_sweep(
        tmp_path, "run", "--module", "rank_code:Shared", "--data", "rank_code:Rows", "--space",
        "space.yaml", "--metric", "val_loss", "--trials", "2", "--epochs", "4", "--devices", "2",
        "--strategy", "ddp", "--accelerator", "cpu", "--pruner", "asha", "--study", "two",
        "--checkpoint-interval", "0.001s",
    )  # fmt: skip
    kept = TrialFiles(tmp_path / "mlruns" / ".sweep" / "two", 0).path(RESUME_STATE)
    worker = worker_of(search)
    first = ranks_of(worker)
    wait_until(kept.exists)
    os.kill(first[1], signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, first)))
    second = ranks_of(worker)
    written = kept.stat().st_mtime
    wait_until(lambda: kept.exists() and kept.stat().st_mtime > written)
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, second)))
    out, err = search.communicate(timeout=PATIENCE_S)
    assert search.returncode == 0, out + err
    study = optuna.load_study(
        study_name="two", storage=f"sqlite:///{tmp_path / 'mlruns' / 'optuna.db'}"
    )
    states = [(trial.state.name, max(trial.intermediate_values)) for trial in study.trials]
    assert states == [("COMPLETE", 4), ("PRUNED", 1)]
