"""A real MLflow server that tests kill and start again, and what its store has of a study."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import tracking_records as records
from mlflow import MlflowClient
from mlflow.entities import Run

from sweep.repair.reconcile import reconcile_runs
from sweep.tracking import Pace
from sweep.trial import Record, StudyInfo, TrialState

FAST = Pace(flush_s=0.05, first_retry_s=0.05, retry_s=0.2, grace_s=0.5)
PATIENT = Pace(flush_s=0.05, first_retry_s=0.05, retry_s=0.2, grace_s=30.0)


class Server:
    """An `mlflow server` on one port and one store, to be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        env = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
        env |= {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        command = ["server", "--backend-store-uri", "sqlite:///store.db", "--workers", "1"]
        log_file = self.folder / "server.log"
        with log_file.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", *command, "--port", str(self.port)],
                cwd=self.folder, env=env, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        records._wait_for(self.address, self._process, log_file)

    def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)
            self._process = None


def store_uri(server: Server) -> str:
    return f"sqlite:///{server.folder}/store.db"


def runs_of(uri: str, study: str) -> dict[str, Run]:
    """Each run of a study under its number; two of one number fail."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(study)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    by_number = {run.data.tags.get("sweep.trial", "parent"): run for run in found}
    assert len(by_number) == len(found), "two runs of one trial"
    return by_number


def curves(uri: str, study: str) -> dict[str, list[tuple[int, float]]]:
    """Every trial's val_acc as (epoch, value), in the order of the store."""
    client = MlflowClient(uri)
    return {
        number: [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, "val_acc")]
        for number, run in runs_of(uri, study).items()
        if number != "parent"
    }


def whole_curve(number: int, last: int = records.N_EPOCHS) -> list[tuple[int, float]]:
    return [(e, records.metrics(number, e)["val_acc"]) for e in range(1, last + 1)]


def a_trial(number: int) -> list[Record]:
    return [
        records.started(number),
        *records.epochs(number),
        records.finished(number, TrialState.PRUNED),
    ]


def bring_up(uri: str, study: StudyInfo, written: list[Record], **how: Any) -> list[str]:
    """What the next search does: MLflow brought up to what the ledger has; what is left."""
    memory = records.Remembered(study, written)
    found = reconcile_runs(uri, memory, fix=True, is_deep=False, **how)
    return [one.sentence for one in found if not one.is_fixed]


def statuses(server: Server, study: str) -> dict[str, str]:
    return {number: run.info.status for number, run in runs_of(store_uri(server), study).items()}
