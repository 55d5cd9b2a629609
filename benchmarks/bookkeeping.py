"""What tracking, checkpoints and bookkeeping cost a trial: a search against bare fits.

    python benchmarks/bookkeeping.py --trials 20 --epochs 5 --rounds 3

Both train the same configurations with lightning.Trainer in one process, interleaved. The search
has everything on: Optuna's storage, MLflow runs with curves, best checkpoints, logged models.
The bare fits keep nothing. The difference is what sweep adds to a trial.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import sweep
from sweep.data.tensors import Batches, TensorData, load_search_data
from sweep.training.lightning_trainer import hush_lightning, quiet_trainer
from sweep.training.modules import build_mlp
from sweep.trial import Record, StudyInfo, TrialStarted


class Notes:
    """A listener that notes when training began and what was trained."""

    def __init__(self) -> None:
        self.began = 0.0
        self.configurations: list[dict[str, Any]] = []

    def open(self, study: StudyInfo) -> None:
        """Nothing to note."""

    def write(self, records: Sequence[Record]) -> None:
        """Note configurations."""
        for record in records:
            if isinstance(record, TrialStarted):
                self.began = self.began or time.perf_counter()
                self.configurations.append(dict(record.hyperparameters))

    def close(self) -> None:
        """Nothing to close."""


def search(args: argparse.Namespace, seed: int) -> tuple[float, list[dict[str, Any]]]:
    """Seconds from the first trial to everything delivered, and the configurations."""
    notes = Notes()
    with tempfile.TemporaryDirectory() as folder:
        here = Path.cwd()
        os.chdir(folder)
        try:
            sweep.run(
                listeners=[notes], trials=args.trials, epochs=args.epochs, executor="inline",
                population=1, seed=seed, threads=args.threads,
            )  # fmt: skip
        finally:
            os.chdir(here)
    return time.perf_counter() - notes.began, notes.configurations


def bare(
    args: argparse.Namespace, data: TensorData, configurations: list[dict[str, Any]]
) -> float:
    """Seconds for the fits alone."""
    began = time.perf_counter()
    for configuration in configurations:
        module = build_mlp(configuration, data.info, 0)
        trainer = quiet_trainer(tempfile.gettempdir(), max_epochs=args.epochs, accelerator="cpu")
        trainer.fit(module, Batches(data.train, 64, seed=0), Batches(data.val, 4096))
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    hush_lightning()
    torch.set_num_threads(args.threads)
    data = load_search_data("digits", None, 0)
    _, warm_up = search(args, seed=99)
    bare(args, data, warm_up[:2])
    rows = []
    for seed in range(args.rounds):
        full_s, configurations = search(args, seed)
        bare_s = bare(args, data, configurations)
        rows.append((full_s, bare_s, (full_s - bare_s) / args.trials))
        print(f"round {seed + 1}: search {full_s:.2f} s, bare fits {bare_s:.2f} s, "
              f"{1000 * rows[-1][2]:.0f} ms a trial more")  # fmt: skip
    cost = statistics.median(row[2] for row in rows)
    parts = ", ".join(f"{p} {version(p)}" for p in ("torch", "lightning", "optuna", "mlflow"))
    print(f"{date.today()}, {os.cpu_count()} cores, {args.trials} trials x {args.epochs} epochs "
          f"of digits, {parts}: median {1000 * cost:.0f} ms a trial")  # fmt: skip


if __name__ == "__main__":
    main()
