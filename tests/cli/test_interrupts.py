"""Ctrl-C, SIGKILL and the same command again, with real processes and real signals."""

from __future__ import annotations

import os
import shlex
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from searches import (
    Call,
    children_of,
    inline,
    is_alive,
    mlflow_client,
    start_sweep,
    wait_for_line,
)
from waiting import PATIENCE_S, wait_until

from sweep.reporting.lines import parse_line

COMMAND = (
    "run", "--study", "mine", "--space", "mlp_small", "--trials", "4", "--epochs", "40",
    "--population", "1", "--no-baseline", "--storage", "sqlite:///other.db", "--patience", "39",
    "--log-models", "none",
)  # fmt: skip


def trials_of(folder: Path) -> list[optuna.trial.FrozenTrial]:
    """What Optuna has."""
    storage = f"sqlite:///{folder}/other.db"
    return optuna.load_study(study_name="mine", storage=storage).trials


def wait_until_gone(pids: list[int]) -> None:
    """Wait for processes to end."""
    wait_until(lambda: not any(map(is_alive, pids)), "a worker is left")


def settings(call: Call, *command: str) -> dict[str, Any]:
    """What a search would do."""
    values: dict[str, Any] = yaml.safe_load(call(*command, "--print-config")[1])
    return values


def interrupt(folder: Path) -> list[str]:
    """Start a search and send SIGINT, as a terminal does, to its group after trial 1; what it
    said. Exit code 130, no traceback, no worker left."""
    process = start_sweep(folder, *COMMAND)
    lines = [wait_for_line(process, "study="), wait_for_line(process, "trial=1 ")]
    workers = children_of(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err) == (130, "")
    assert workers
    wait_until_gone(workers)
    return [*lines, *out.splitlines()]


def check_what_was_said(call: Call, lines: list[str]) -> None:
    """The first line names study, trials, objective, population and device, one line says when
    the search stops, and the command under "Next:" has every setting of this one."""
    pairs = parse_line(lines[0])
    assert pairs.pop("device")
    assert pairs == {
        "study": "mine", "trials": "4", "epochs": "40", "metric": "val_acc",
        "direction": "maximize", "population": "1",
    }  # fmt: skip
    notices = [parse_line(line)["notice"] for line in lines if line.startswith("notice=")]
    assert notices == ["stopping and saving; Ctrl-C again stops now"]
    assert any(line.startswith("mine: ") for line in lines)
    after = lines[lines.index("Next:") + 1 :]
    going_on = shlex.split(after[0].partition("#")[0])
    assert going_on == ["sweep", "run", "--study", "mine", "--storage", "sqlite:///other.db"]
    assert not any("why trials failed" in line for line in after)
    assert settings(call, *going_on[1:]) == settings(call, *COMMAND)


def kill(folder: Path) -> None:
    """The same command, whose driver is killed after one more trial: its workers leave."""
    process = start_sweep(folder, *COMMAND)
    wait_for_line(process, "trial=")
    workers = children_of(process.pid)
    process.kill()
    process.communicate()
    assert workers
    wait_until_gone(workers)


def check_mlflow(folder: Path) -> None:
    """One parent and four children, all FINISHED, with one point an epoch."""
    client = mlflow_client(folder)
    experiment = client.get_experiment_by_name("mine")
    runs = client.search_runs([experiment.experiment_id])
    children = [r for r in runs if "mlflow.parentRunId" in r.data.tags]
    assert Counter(r.info.status for r in runs) == {"FINISHED": 5}
    assert len(children) == 4
    for run in children:
        points = client.get_metric_history(run.info.run_id, "val_acc")
        assert sorted(m.step for m in points) == list(range(1, 41))


@pytest.mark.usefixtures("ready_store")
def test_the_same_command_finishes_what_was_interrupted_and_killed(
    tmp_path: Path, call: Call
) -> None:
    """After Ctrl-C, which lets the trial at hand wait, and SIGKILL of the driver: four complete
    trials, nothing RUNNING, nothing twice, and MLflow agrees."""
    lines = interrupt(tmp_path)
    states = [t.state.name for t in trials_of(tmp_path)]
    assert states[-1] == "WAITING"
    assert set(states[:-1]) == {"COMPLETE"}
    check_what_was_said(call, lines)
    kill(tmp_path)
    assert "RUNNING" in [t.state.name for t in trials_of(tmp_path)]
    said = inline(tmp_path, *COMMAND)
    assert (said.returncode, said.stderr) == (0, "")
    trials = trials_of(tmp_path)
    assert Counter(t.state.name for t in trials) == {"COMPLETE": 4}
    configurations = [str(t.user_attrs["sweep:hyperparameters"]) for t in trials]
    assert len(set(configurations)) == 4
    code, out, errors = call(*COMMAND)
    assert (code, errors) == (0, [])
    assert "nothing to do" in out
    check_mlflow(tmp_path)


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


def running(text: str) -> list[int]:
    """The epochs that lines of a search tell of."""
    return [epoch_of(line) for line in text.splitlines() if "state=RUNNING" in line]


@pytest.mark.usefixtures("ready_store")
def test_a_signal_to_every_process_is_an_interruption(tmp_path: Path) -> None:
    """To the group and to the worker itself, as timeout, systemd, Slurm and a lost terminal send
    it, where a DataLoader has processes of its own: "everything is saved" is true."""
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "slow.yaml").write_text("# Slow.\nparameters:\n  lr: {float: [0.1, 0.2]}\n")
    command = (
        "run", "--module", "slow:Slow", "--space", "slow.yaml", "--trials", "1", "--epochs", "6",
        "--study", "s", "-v", "--metric", "train_loss", "--direction", "minimize",
    )  # fmt: skip
    last = 0
    for number, epoch in ((signal.SIGTERM, 1), (signal.SIGHUP, 3)):
        process = start_sweep(tmp_path, *command)
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if max(running(line), default=0) >= epoch:
                break
        workers = children_of(process.pid)
        os.killpg(process.pid, number)
        for worker in workers:
            os.kill(worker, number)
        out, err = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, err) == (130, "")
        assert "everything is saved" in out
        assert (tmp_path / "mlruns/.sweep/s/trials/00000/last.ckpt").is_file()
        wait_until_gone(workers)
        told = running(said + out)
        assert told[0] == last + 1
        last = told[-1]
    done = inline(tmp_path, *command)
    assert done.returncode == 0, done.stderr
    assert running(done.stdout)[0] == last + 1


@pytest.mark.usefixtures("ready_store")
def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    """In the midst of an epoch that never ends: exit code 130 within seconds, no worker left."""
    (tmp_path / "slow.py").write_text(
        "import time\nfrom pathlib import Path\nfrom sweep import MLPClassifier\n"
        "class Slow(MLPClassifier):\n"
        "    def __init__(self, lr):\n"
        "        super().__init__(64, 10, hidden=(8,), lr=lr)\n"
        "    def training_step(self, batch, batch_idx):\n"
        "        if self.trainer.max_epochs == 1:  # before the first trial\n"
        "            return super().training_step(batch, batch_idx)\n"
        "        Path('training').touch()\n"
        "        time.sleep(600)\n"
    )
    (tmp_path / "slow.yaml").write_text("# Slow.\nparameters:\n  lr: {float: [0.1, 0.2]}\n")
    process = start_sweep(tmp_path, "run", "--module", "slow:Slow", "--space", "slow.yaml")
    wait_until(lambda: process.poll() is not None or (tmp_path / "training").exists())
    workers = children_of(process.pid)
    process.send_signal(signal.SIGINT)
    time.sleep(0.8)
    assert process.poll() is None, "the first one waits for the end of the epoch"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("sweep: interrupted")
    assert "Traceback" not in err
    wait_until_gone(workers)
