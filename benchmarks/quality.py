"""Does a population cost search quality? Best of 50 trials with it, against one at a time.

    python benchmarks/quality.py [--seeds 10] [--slots 1 32] [--trials 50] [--epochs 10]

All searches train with the fused trainer on digits, so that only the number of proposals that are
under way at the same time differs. Driver, sampler and trainer are the real ones; nothing goes to
MLflow, and Optuna's storage is in memory. The reference network is not tried first.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from datetime import date
from pathlib import Path

import optuna

from sweep.config.settings import RunConfig
from sweep.data.tensors import load_search_data
from sweep.ledger.study import Ledger
from sweep.search.driver import Driver
from sweep.search.proposals import Proposals
from sweep.search.tasks import make_task
from sweep.space import load_space
from sweep.testing import RecordingListener
from sweep.training.fused.trainer import FusedTrainer
from sweep.trial import TrialState


def best_of(seed: int, n_slots: int, args: argparse.Namespace) -> float:
    """The best validation accuracy (0 to 1) of one search."""
    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig(trials=args.trials, epochs=args.epochs, seed=seed, baseline=False)
        # A population of 1 asks for the plain path; here it is the fused one with one slot.
        task = replace(make_task(config), population=n_slots, work_dir=folder)
        storage = optuna.storages.InMemoryStorage()
        optuna.create_study(storage=storage, study_name="quality", direction="maximize")
        proposals = Proposals(load_space(args.space), config)
        ledger, listener = Ledger(storage, "quality"), RecordingListener()
        config = replace(config, work_dir=str(Path(folder)))
        driver = Driver(config, ledger, proposals, [listener])
        driver.plan([], [])
        FusedTrainer(task, load_search_data("digits", None, args.split)).train(driver.exchange)
        done = [t.value for t in ledger.trials() if t.state is TrialState.COMPLETE and t.value]
        return max(done)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--space", default="mlp")
    parser.add_argument("--split", type=int, default=0, help="seed of the data split, for all")
    args = parser.parse_args()
    found: dict[int, list[float]] = {n_slots: [] for n_slots in args.slots}
    for seed in range(args.seeds):
        for n_slots, values in found.items():
            began = time.perf_counter()
            values.append(100 * best_of(seed, n_slots, args))
            print(f"# seed {seed}, {n_slots} slots: {values[-1]:.2f} % "
                  f"in {time.perf_counter() - began:.0f} s", flush=True)  # fmt: skip
    print(f"\n{date.today()}, digits, best of {args.trials} trials x {args.epochs} epochs, "
          f"{args.seeds} seeds, optuna {optuna.__version__}\n")  # fmt: skip
    print("| slots | mean % | standard error | least | most | against one at a time |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    alone = statistics.mean(found[args.slots[0]])
    for n_slots, values in found.items():
        error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
        print(f"| {n_slots} | {statistics.mean(values):.2f} | {error:.2f} | {min(values):.2f} | "
              f"{max(values):.2f} | {statistics.mean(values) - alone:+.2f} |")  # fmt: skip


if __name__ == "__main__":
    main()
