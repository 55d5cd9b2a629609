"""Records of a small search with real checkpoints and models, and real MLflow servers."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from waiting import PATIENCE_S

from sweep.trial import (
    DatasetInfo,
    EpochReport,
    Failure,
    Record,
    StudyFinished,
    StudyInfo,
    TrialFinished,
    TrialHistory,
    TrialStarted,
    TrialState,
)

START_MS = 1_780_000_000_000
N_EPOCHS = 3
DATASET = DatasetInfo("toy", "https://example.org/toy", "d" * 32, (1, 2, 2), 3, 80, 20)


@dataclass(frozen=True)
class Trained:
    """A model as a worker leaves it."""

    checkpoint: str
    model_file: str


def trained(folder: Path) -> Trained:
    """A small MLPClassifier as checkpoint and as torch.export archive."""
    import lightning

    from sweep.training.exports import Example, export_model
    from sweep.training.mlp import MLPClassifier

    folder.mkdir(parents=True, exist_ok=True)
    model = MLPClassifier(4, 3, hidden=(5,), seed=7)
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, barebones=False,
    )  # fmt: skip
    trainer.strategy.connect(model)
    trainer.save_checkpoint(folder / "best.ckpt")
    model_file = export_model(folder / "model.pt2", model, Example((1, 2, 2)))
    return Trained(str(folder / "best.ckpt"), model_file)


def study_info(name: str = "toy-study", **changes: Any) -> StudyInfo:
    """A study of four trials."""
    values: dict[str, Any] = {
        "name": name,
        "n_trials": 4,
        "metric": "val_acc",
        "direction": "maximize",
        "epochs": N_EPOCHS,
        "config": {"seed": 3, "data": {"name": "toy", "split": (80, 20)}},
        "space_name": "mlp",
        "space_text": "lr: {low: 1e-4, high: 1e-1}  # as read\n",
        "time_ms": START_MS,
        "tags": {"git_commit": "abc1234", "torch": "2.13.0"},
        "dataset": DATASET,
    }
    return StudyInfo(**{**values, **changes})


def started(number: int) -> TrialStarted:
    """A trial begins."""
    return TrialStarted(
        number,
        f"t{number:03d} Adam lr=1.2e-3 256-64",
        {"optimizer": "Adam", "lr": 0.0012, "hidden": (256, 64)},
        {"optimizer": "Adam", "lr": 0.0012, "n_layers": 2, "hidden.0": 256, "hidden.1": 64},
        START_MS + 1000 * number,
        {"sweep.seed": str(70 + number)},
    )


def epochs(number: int, first: int = 1, last: int = N_EPOCHS, delay: int = 0) -> list[Record]:
    """Reports of the epochs `first` to `last`."""
    return [
        EpochReport(number, epoch, metrics(number, epoch), START_MS + 100 * epoch + delay)
        for epoch in range(first, last + 1)
    ]


def metrics(number: int, epoch: int) -> dict[str, float]:
    """What a trial reports of an epoch."""
    acc = 0.5 + 0.1 * epoch - 0.01 * number
    return {"train_loss": 1 / epoch, "val_loss": 2 / epoch, "val_acc": acc, "epoch_s": 0.25}


def finished(number: int, state: TrialState, model: Trained | None = None) -> TrialFinished:
    """A trial ends after N_EPOCHS epochs; a failed one says why."""
    is_failed = state is TrialState.FAIL
    best = metrics(number, N_EPOCHS)
    return TrialFinished(
        number, state, START_MS + 60_000 + number, None if is_failed else best["val_acc"],
        None if is_failed else N_EPOCHS, {} if is_failed else best, N_EPOCHS,
        model.checkpoint if model else None, model.model_file if model else None,
        Failure("nan", "train_loss is nan", "Traceback: line 1\n") if is_failed else None,
    )  # fmt: skip


def search(model: Trained | None) -> list[Record]:
    """Two complete trials, one pruned, one failed, and the end of the study."""
    states = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.COMPLETE]
    records: list[Record] = [started(number) for number in range(4)]
    for epoch in range(1, N_EPOCHS + 1):
        for number in range(4):
            records += epochs(number, epoch, epoch)
    for number, state in enumerate(states):
        records.append(finished(number, state, model if state is TrialState.COMPLETE else None))
    return [*records, study_finished()]


def study_finished(**changes: Any) -> StudyFinished:
    """The search is done; trial 0 was best."""
    values: dict[str, Any] = {
        "time_ms": START_MS + 90_000,
        "n_by_state": {"COMPLETE": 2, "PRUNED": 1, "FAIL": 1},
        "best_number": 0,
        "best_value": metrics(0, N_EPOCHS)["val_acc"],
        "baseline_value": 0.8,
        "reason": "done",
    }
    return StudyFinished(**{**values, **changes})


class Remembered:
    """What ledger and files would know of a study that wrote `written`."""

    def __init__(self, study: StudyInfo, written: Sequence[Record]) -> None:
        self._study = study
        self._known: dict[int, TrialHistory] = {}
        self._end = study_finished(time_ms=study.time_ms)
        for record in written:
            if isinstance(record, TrialStarted):
                self._known[record.number] = TrialHistory(record)
            elif isinstance(record, EpochReport):
                before = self._known[record.number]
                reports = (*before.reports, record)
                self._known[record.number] = replace(before, reports=reports)
            elif isinstance(record, TrialFinished):
                before = self._known[record.number]
                self._known[record.number] = replace(before, finished=record)
            elif isinstance(record, StudyFinished):
                self._end = record

    def states(self) -> dict[int, TrialState]:
        ends = {number: known.finished for number, known in self._known.items()}
        return {n: end.state if end else TrialState.RUNNING for n, end in ends.items()}

    def study(self) -> StudyInfo:
        return self._study

    def trial(self, number: int) -> TrialHistory:
        return self._known[number]

    def end(self) -> StudyFinished:
        return self._end


@contextlib.contextmanager
def mlflow_server(folder: Path, command: Sequence[str]) -> Iterator[str]:
    """Run `mlflow <command>` in `folder` on a free port; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    env |= {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_WORKERS": "1",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command, "--port", str(port)],
            cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_for(address, server, folder / "server.log")
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(3)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait(10)


def _wait_for(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and server.poll() is None:
        with (
            contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError),
            urllib.request.urlopen(f"{address}/health", timeout=2),
        ):
            return
        time.sleep(0.1)
    raise RuntimeError(f"no MLflow server: {log.read_text()[-2000:]}")
