"""What ledger and tracking cost a trial: the driver's processor time with local SQLite stores.

    python benchmarks/tracking_cost.py [n_trials n_epochs [n_before]]

Opens and closes the trials of a search (default 50 of 10 epochs, each with a checkpoint and a
model of 1 MB in all) in a fresh Optuna storage, then writes their records to a fresh MLflow store
and waits for their delivery, in a temporary folder. `n_before` trials of one epoch, without
files, stand in both already (10,000 of them take twenty minutes).
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import optuna

from sweep.ledger.study import Ledger, create_study
from sweep.ledger.trials import HYPERPARAMETERS
from sweep.tracking import MlflowTracker
from sweep.trial import (
    DatasetInfo,
    EpochReport,
    Record,
    StudyInfo,
    TrialFinished,
    TrialStarted,
    TrialState,
)

DATASET = DatasetInfo("digits", "scikit-learn", "0" * 32, (1, 8, 8), 10, 1437, 180)


METRICS = {"train_loss": 0.3, "val_loss": 0.2, "val_acc": 0.9, "epoch_s": 0.1}
HYPERPARAMETERS_OF_ALL = {
    "optimizer": "Adam", "lr": 1e-3, "hidden": (256, 64), "batch_size": 64,
}  # fmt: skip
PARAMS = {"n_layers": 2, "hidden.0": 256, "hidden.1": 64, "lr": 1e-3}
DISTRIBUTIONS = {
    "n_layers": optuna.distributions.IntDistribution(1, 3),
    "hidden.0": optuna.distributions.IntDistribution(16, 512, log=True),
    "hidden.1": optuna.distributions.IntDistribution(16, 512, log=True),
    "lr": optuna.distributions.FloatDistribution(1e-4, 1.0, log=True),
}


def main() -> None:
    """Print the cost of each part."""
    told = [int(text) for text in sys.argv[1:]]
    n_trials, n_epochs, n_before = [*told, *(50, 10, 0)[len(told) :]]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        files = {name: str(Path(folder, name)) for name in ("best.ckpt", "best.pt2")}
        for file in files.values():
            Path(file).write_bytes(b"\0" * 500_000)
        ledger, _ = create_study(f"sqlite:///{folder}/optuna.db", "cost", "maximize")
        began = time.perf_counter()
        tracker = open_tracker(folder, n_trials)
        print(f"open (import mlflow, make the store): {time.perf_counter() - began:.2f} s")
        if n_before:
            for number in range(n_before):
                book(ledger, [number], 1)
                tracker.write(records_of(number, 1, {}))
            tracker.close()
            tracker = open_tracker(folder, n_trials)
        numbers = range(n_before, n_before + n_trials)
        cpu_began = time.process_time()
        book(ledger, numbers, n_epochs)
        booked_s = time.process_time() - cpu_began
        began, cpu_began = time.perf_counter(), time.process_time()
        for number in numbers:
            tracker.write(records_of(number, n_epochs, files))
        wrote_s = time.perf_counter() - began
        tracker.close()
        wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
        print(
            f"{n_trials} trials x {n_epochs} epochs after {n_before}: "
            f"ledger CPU {booked_s / n_trials * 1e3:.1f} ms, "
            f"MLflow write {wrote_s / n_trials * 1e6:.0f} us, "
            f"delivery {wall_s / n_trials * 1e3:.1f} ms, "
            f"CPU {cpu_s / n_trials * 1e3:.1f} ms a trial"
        )
        ledger.close()


def open_tracker(folder: str, n_trials: int) -> MlflowTracker:
    """One that begins or goes on with the study."""
    tracker = MlflowTracker(f"sqlite:///{folder}/mlflow.db", Path(folder, "log"))
    tracker.open(
        StudyInfo(
            "cost", n_trials, "val_acc", "maximize", 10, {"a": 1}, "mlp", "x: 1", now_ms(),
            dataset=DATASET,
        )
    )  # fmt: skip
    return tracker


def book(ledger: Ledger, numbers: Iterable[int], n_epochs: int) -> None:
    """Open and close trials in the ledger."""
    for number in numbers:
        frozen = optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING, params=PARAMS, distributions=DISTRIBUTIONS,
            user_attrs={HYPERPARAMETERS: HYPERPARAMETERS_OF_ALL, "name": f"t{number:03d}"},
        )  # fmt: skip
        ledger.open_trial(number, frozen)
        _, *reports, end = records_of(number, n_epochs, {})
        ledger.close_trial(end, reports, "val_acc")


def records_of(number: int, n_epochs: int, files: dict[str, str]) -> list[Record]:
    """Everything that is written of one completed trial."""
    return [
        TrialStarted(number, f"t{number:03d}", HYPERPARAMETERS_OF_ALL, PARAMS, now_ms()),
        *(EpochReport(number, e, METRICS, now_ms() + e) for e in range(1, n_epochs + 1)),
        TrialFinished(
            number, TrialState.COMPLETE, now_ms(), 0.9, n_epochs, METRICS, n_epochs,
            files.get("best.ckpt"), files.get("best.pt2"),
        ),
    ]  # fmt: skip


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


if __name__ == "__main__":
    main()
