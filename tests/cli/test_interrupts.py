"""Ctrl-C, SIGKILL and the same command again, with real processes and real signals."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
from searches import (
    children_of,
    is_alive,
    mlflow_client,
    start_sweep,
    sweep,
    wait_for_line,
)

COMMAND = ("run", "--trials", "5", "--epochs", "40", "--population", "1")


def trials_of(folder: Path) -> list[optuna.trial.FrozenTrial]:
    """What Optuna has."""
    storage = f"sqlite:///{folder}/mlruns/optuna.db"
    return optuna.load_study(study_name="digits-mlp", storage=storage).trials


def wait_until_gone(pids: list[int], seconds: float) -> list[int]:
    """Those of `pids` that are still there after so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(map(is_alive, pids)):
        time.sleep(0.05)
    return [pid for pid in pids if is_alive(pid)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """One folder for the tests below, which follow each other on one study."""
    folder = tmp_path_factory.mktemp("interrupted")
    shutil.copyfile(empty_store, folder / "mlflow.db")
    return folder


@pytest.fixture(scope="module")
def interrupted(folder: Path) -> tuple[int, str, str, list[int]]:
    """A search that was sent SIGINT, as a terminal does, to the whole group, after trial 1."""
    process = start_sweep(folder, *COMMAND)
    wait_for_line(process, "trial=1 ")
    workers = children_of(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err, workers


Interrupted = tuple[int, str, str, list[int]]


def test_ctrl_c_stops_cleanly(interrupted: Interrupted, folder: Path) -> None:
    """Exit code 130, no traceback, no worker left, and a summary of what there is."""
    code, out, err, workers = interrupted
    assert code == 130
    assert "Traceback" not in out + err
    assert workers
    assert wait_until_gone(workers, 3.0) == []
    assert "digits-mlp: " in out


def test_the_interrupted_trial_waits(interrupted: Interrupted, folder: Path) -> None:
    """In Optuna it is WAITING; those before it are complete."""
    states = [t.state.name for t in trials_of(folder)]
    assert states[-1] == "WAITING"
    assert set(states[:-1]) == {"COMPLETE"}


@pytest.fixture(scope="module")
def killed(interrupted: Interrupted, folder: Path) -> tuple[list[int], list[str]]:
    """The same command, killed with SIGKILL after one more trial: (workers left, states)."""
    process = start_sweep(folder, *COMMAND)
    wait_for_line(process, "trial=")
    workers = children_of(process.pid)
    process.kill()
    process.communicate()
    assert workers
    return wait_until_gone(workers, 3.0), [t.state.name for t in trials_of(folder)]


def test_workers_die_with_their_driver(killed: tuple[list[int], list[str]]) -> None:
    """Three seconds after the driver's SIGKILL no worker is left."""
    assert killed[0] == []


def test_the_same_command_finishes_the_exact_total(
    killed: tuple[list[int], list[str]], folder: Path
) -> None:
    """After Ctrl-C and SIGKILL: five complete trials, nothing RUNNING, nothing twice."""
    assert "RUNNING" in killed[1]
    said = sweep(folder, *COMMAND)
    assert (said.returncode, said.stderr) == (0, "")
    trials = trials_of(folder)
    assert Counter(t.state.name for t in trials) == {"COMPLETE": 5}
    configurations = [str(t.user_attrs["sweep:hyperparameters"]) for t in trials]
    assert len(set(configurations)) == 5
    assert "nothing to do" in sweep(folder, *COMMAND).stdout


def test_mlflow_agrees_after_all_that(folder: Path) -> None:
    """One parent and five children, all FINISHED, with one point an epoch."""
    assert [t.state.name for t in trials_of(folder)] == ["COMPLETE"] * 5
    client = mlflow_client(folder)
    experiment = client.get_experiment_by_name("digits-mlp")
    runs = client.search_runs([experiment.experiment_id])
    children = [r for r in runs if "mlflow.parentRunId" in r.data.tags]
    assert Counter(r.info.status for r in runs) == {"FINISHED": 6}
    assert len(children) == 5
    for run in children:
        points = client.get_metric_history(run.info.run_id, "val_acc")
        assert sorted(m.step for m in points) == list(range(1, 41))


SLOW = """
import time
from pathlib import Path
from torch.utils.data import DataLoader, TensorDataset
import torch
from sweep import MLPClassifier

class Slow(MLPClassifier):
    def __init__(self, lr):
        super().__init__(64, 10, hidden=(8,), lr=lr)
    def train_dataloader(self):
        data = TensorDataset(torch.rand(40, 1, 8, 8), torch.arange(40) % 10)
        return DataLoader(data, batch_size=20, num_workers=1)
    def on_train_epoch_start(self):
        super().on_train_epoch_start()
        time.sleep(0.2)
"""


def epoch_of(line: str) -> int:
    """3, of "trial=0 state=RUNNING ... epoch=3/8 ..."."""
    return int(line.split(" epoch=")[1].split("/")[0])


@pytest.mark.usefixtures("ready_store")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_every_process_is_an_interruption(
    tmp_path: Path, number: signal.Signals
) -> None:
    """To the group and to the worker itself, as timeout, systemd, Slurm and a lost terminal send
    it, where a DataLoader has processes of its own: "everything is saved" is true."""
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "slow.yaml").write_text("# Slow.\nparameters:\n  lr: {float: [0.1, 0.2]}\n")
    command = (
        "run", "--module", "slow:Slow", "--space", "slow.yaml", "--trials", "1", "--epochs", "8",
        "--study", "s", "-v", "--metric", "train_loss", "--direction", "minimize",
    )  # fmt: skip
    process = start_sweep(tmp_path, *command)
    assert process.stdout is not None
    third = next(line for line in process.stdout if " epoch=3/8 " in line)
    workers = children_of(process.pid)
    os.killpg(process.pid, number)
    for worker in workers:
        os.kill(worker, number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert "everything is saved" in out
    assert (tmp_path / "mlruns/.sweep/s/trials/00000/last.ckpt").is_file()
    assert wait_until_gone(workers, 3.0) == []
    said = sweep(tmp_path, *command)
    told, again = (
        [line for line in text.splitlines() if "state=RUNNING" in line]
        for text in (f"{third}\n{out}", said.stdout)
    )
    assert epoch_of(again[0]) == epoch_of(told[-1]) + 1
    assert said.returncode == 0


@pytest.mark.usefixtures("ready_store")
def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    """In the midst of an epoch that never ends: exit code 130 within seconds, no worker left."""
    (tmp_path / "slow.py").write_text(
        "import time\nfrom pathlib import Path\nfrom sweep import MLPClassifier\n"
        "class Slow(MLPClassifier):\n"
        "    def __init__(self, lr):\n"
        "        super().__init__(64, 10, hidden=(8,), lr=lr)\n"
        "    def training_step(self, batch, batch_idx):\n"
        "        Path('training').touch()\n"
        "        time.sleep(600)\n"
    )
    (tmp_path / "slow.yaml").write_text("# Slow.\nparameters:\n  lr: {float: [0.1, 0.2]}\n")
    process = start_sweep(tmp_path, "run", "--module", "slow:Slow", "--space", "slow.yaml")
    deadline = time.monotonic() + 60
    while not (tmp_path / "training").exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    workers = children_of(process.pid)
    process.send_signal(signal.SIGINT)
    time.sleep(0.8)
    assert process.poll() is None, "the first one waits for the end of the epoch"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=15)
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("sweep: interrupted")
    assert "Traceback" not in err
    assert wait_until_gone(workers, 3.0) == []
