"""What the engine costs a trial, and how that grows with trials and slots.

    python benchmarks/scaling.py [--trials 10 100 1000 10000] [--slots 1 4 16 64 256]

Everything but training is real: space, sampler, pruner, driver and Optuna's SQLite storage, and
with --mlflow also MLflow's store. The trainer is scripted (sweep.testing): it needs no time and
no torch. Processor time is printed beside wall time: on a machine that others use, only that is
the program's own.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

from sweep.config.settings import RunConfig
from sweep.ledger.study import create_study
from sweep.protocols import Listener
from sweep.search.driver import Driver
from sweep.search.proposals import Proposals
from sweep.space import load_space
from sweep.testing import RecordingListener, ScriptedTrainer
from sweep.trial import Orders, Report, StudyInfo, TrialSpec

EPOCHS = 2


class Clock:
    """Times every exchange of a driver and keeps what the whole search took."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.exchange_s: list[float] = []
        self.wall_s = self.cpu_s = 0.0

    def __call__(self, reports: Sequence[Report], n_free: int) -> Orders:
        """Pass on, timed."""
        began = time.perf_counter()
        orders = self._driver.exchange(reports, n_free)
        self.exchange_s.append(time.perf_counter() - began)
        return orders


def script(spec: TrialSpec) -> list[Mapping[str, float]]:
    """Two epochs with an accuracy that depends on the configuration."""
    lr, widths = float(spec.hyperparameters["lr"]), spec.hyperparameters["hidden"]
    value = 1.0 / (1.0 + abs(lr - 0.003) * 100.0) + sum(widths) * 1e-5
    metrics = {"train_loss": 1.0 - value, "val_loss": 1.0 - value, "val_acc": value}
    return [metrics] * EPOCHS


def search(n_trials: int, n_slots: int, sampler: str, *, mlflow: bool) -> Clock:
    """One search in a fresh folder."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        config = RunConfig(trials=n_trials, epochs=EPOCHS, sampler=sampler, baseline=False)
        space = load_space("mlp")
        ledger, _ = create_study("sqlite:///optuna.db", "scaling", "maximize")
        proposals = Proposals(space, config)
        listener: Listener = RecordingListener()
        if mlflow:
            from sweep.tracking import MlflowTracker

            listener = MlflowTracker("sqlite:///mlflow.db", Path("log"))
        listener.open(
            StudyInfo("scaling", n_trials, "val_acc", "maximize", EPOCHS, {}, "mlp", "", 0)
        )
        driver = Driver(config, ledger, proposals, [listener])
        driver.plan([], [])
        clock = Clock(driver)
        began, cpu_began = time.perf_counter(), time.process_time()
        ScriptedTrainer(script, n_slots).train(clock)
        listener.close()
        clock.wall_s = time.perf_counter() - began
        clock.cpu_s = time.process_time() - cpu_began
        ledger.close()
        return clock


def main() -> None:
    """Measure and print."""
    args = parse()
    parts = ", ".join(f"{p} {version(p)}" for p in ("optuna", "mlflow"))
    print(f"{date.today()}, {os.cpu_count()} cores, {EPOCHS} epochs a trial, {parts}")
    print("\n| trials | slots | sampler | MLflow | wall ms a trial | CPU ms a trial |")
    print("| ---: | ---: | --- | --- | ---: | ---: |")
    for n_trials in args.trials:
        with_mlflow = [False, True] if args.mlflow and n_trials <= 1000 else [False]
        for mlflow in with_mlflow:
            line(n_trials, args.population, args.sampler, mlflow=mlflow)
    print(f"\n| slots | trials | exchanges | ms an exchange | largest |\n{'| ---: ' * 5}|")
    for n_slots in args.slots:
        clock = search(max(64, 2 * n_slots), n_slots, args.sampler, mlflow=False)
        times = clock.exchange_s
        print(f"| {n_slots} | {max(64, 2 * n_slots)} | {len(times)} | "
              f"{1e3 * sum(times) / len(times):.1f} | {1e3 * max(times):.0f} |")  # fmt: skip


def line(n_trials: int, n_slots: int, sampler: str, *, mlflow: bool) -> None:
    """Measure one search and print its line."""
    clock = search(n_trials, n_slots, sampler, mlflow=mlflow)
    print(f"| {n_trials} | {n_slots} | {sampler} | {'yes' if mlflow else 'no'} | "
          f"{1e3 * clock.wall_s / n_trials:.1f} | {1e3 * clock.cpu_s / n_trials:.1f} |",
          flush=True)  # fmt: skip


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, nargs="+", default=[10, 100, 1000, 10_000])
    parser.add_argument("--slots", type=int, nargs="*", default=[1, 4, 16, 64, 256])
    parser.add_argument("--population", type=int, default=32)
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--mlflow", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
