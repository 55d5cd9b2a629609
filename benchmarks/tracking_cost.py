"""What tracking costs a trial: driver CPU and wall milliseconds with a local SQLite store.

    python benchmarks/tracking_cost.py [n_trials n_epochs]

Writes the records of a search (default 50 trials of 10 epochs, each with a checkpoint and a
model of 1 MB in all) to a fresh store in a temporary folder, and waits for their delivery.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from pathlib import Path

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


def main() -> None:
    """Print the cost of each part."""
    n_trials, n_epochs = (int(text) for text in sys.argv[1:3] or ("50", "10"))
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        files = {name: str(Path(folder, name)) for name in ("best.ckpt", "best.pt2")}
        for file in files.values():
            Path(file).write_bytes(b"\0" * 500_000)
        tracker = MlflowTracker(f"sqlite:///{folder}/mlflow.db", Path(folder, "log"))
        began = time.perf_counter()
        study = StudyInfo(
            "cost", n_trials, "val_acc", "maximize", n_epochs, {"a": 1}, "mlp", "x: 1", now_ms(),
            dataset=DATASET,
        )  # fmt: skip
        tracker.open(study)
        print(f"open (import mlflow, make the store): {time.perf_counter() - began:.2f} s")
        began, cpu_began = time.perf_counter(), time.process_time()
        for number in range(n_trials):
            tracker.write(records_of(number, n_epochs, files))
        wrote_s = time.perf_counter() - began
        tracker.close()
        wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
        print(
            f"{n_trials} trials x {n_epochs} epochs: write {wrote_s / n_trials * 1e6:.0f} us, "
            f"delivery {wall_s / n_trials * 1e3:.1f} ms, "
            f"CPU {cpu_s / n_trials * 1e3:.1f} ms a trial"
        )


def records_of(number: int, n_epochs: int, files: dict[str, str]) -> list[Record]:
    """Everything that is written of one completed trial."""
    hyperparameters = {"optimizer": "Adam", "lr": 1e-3, "hidden": (256, 64), "batch_size": 64}
    params = {"n_layers": 2, "hidden.0": 256, "hidden.1": 64, "lr": 1e-3}
    metrics = {"train_loss": 0.3, "val_loss": 0.2, "val_acc": 0.9, "epoch_s": 0.1}
    return [
        TrialStarted(number, f"t{number:03d}", hyperparameters, params, now_ms()),
        *(EpochReport(number, e, metrics, now_ms() + e) for e in range(1, n_epochs + 1)),
        TrialFinished(
            number, TrialState.COMPLETE, now_ms(), 0.9, n_epochs, metrics, n_epochs,
            files["best.ckpt"], files["best.pt2"],
        ),
    ]  # fmt: skip


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


if __name__ == "__main__":
    main()
