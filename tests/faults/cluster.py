"""A search on a Ray cluster whose nodes and whose driver are killed all the time.

    python tests/faults/cluster.py [mlp] [own] [--trials 60] [--drivers 5] [--every 20] [--seed S]

Three nodes of one CPU each, in folders of their own, and a head without: what the driver keeps is
covered by an empty folder for all of them (a mount namespace, so this needs root). Every 20 s one
node is killed and another one joins; the driver is killed by SIGKILL at random instants, and the
same command goes on. At the end there must be exactly so many trials, each with all its epochs,
once; a killed driver leaves no worker behind. The module of one's own writes down each epoch that
it trains, so that those trained twice can be counted.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from harness import Plan, check  # noqa: E402
from ray_nodes import COUNTED, Nodes  # noqa: E402
from searches import SWEEP, environment  # noqa: E402

from sweep.ledger.study import open_study  # noqa: E402

INTERVAL_S = 2.0
"""Between two resume files of a trial."""


def command(case: str, address: str, trials: int) -> list[str]:
    """The search of a case."""
    words = ["run", "--study", "soak", "--trials", str(trials), "--executor", "ray",
             "--ray-address", address, "--checkpoint-interval", str(INTERVAL_S)]  # fmt: skip
    if case == "mlp":
        return [*words, "--epochs", "150", "--keep", "3"]
    return [*words, "--module", "counted.py:Counted", "--vary", "lr=1e-3..0.3:log", "--epochs",
            "10", "--metric", "val_loss", "--keep", "3"]  # fmt: skip


def soak(case: str, args: argparse.Namespace, scratch: Path) -> list[str]:
    """Run it; what is wrong in the end."""
    home, rng = scratch / "home", random.Random(args.seed)
    (home / "mlruns").mkdir(parents=True)
    (home / "counted.py").write_text(COUNTED)
    nodes = Nodes(scratch, 3, home / "mlruns")
    found, n_left = list[str](), args.drivers
    began = time.monotonic()
    killed_node, n_nodes = began, 0
    process, dies_at = start(case, args, home, nodes.address), began + rng.uniform(15, 40)
    while process.poll() is None:
        time.sleep(0.2)
        now = time.monotonic()
        if now - killed_node > args.every:
            nodes.tell("kill")
            nodes.tell("add")
            killed_node, n_nodes = now, n_nodes + 1
        if n_left and now > dies_at:
            process.send_signal(signal.SIGKILL)
            process.wait()
            n_left -= 1
            time.sleep(5.0)
            if left := nodes.workers():
                found.append(f"5 s after its driver's death there are workers: {left}")
            process, dies_at = start(case, args, home, nodes.address), now + rng.uniform(20, 45)
    took_s = time.monotonic() - began
    time.sleep(3.0)
    found += [f"a worker stays: {pid}" for pid in nodes.workers()]
    nodes.close()
    print(f"{case}: {took_s:.0f} s, {n_nodes} nodes and {args.drivers - n_left} drivers killed")
    if process.returncode:
        return [*found, (home / "errors.txt").read_text()[-2000:]]
    return found + wrong(case, args.trials, home) + trained_twice(nodes, n_nodes, args.drivers)


def start(
    case: str, args: argparse.Namespace, home: Path, address: str
) -> subprocess.Popen[bytes]:
    """The driver."""
    return subprocess.Popen(
        [*SWEEP, *command(case, address, args.trials)], cwd=home, env=environment(),
        stdout=subprocess.DEVNULL, stderr=(home / "errors.txt").open("ab"),
    )  # fmt: skip


def wrong(case: str, n_trials: int, home: Path) -> list[str]:
    """Trials that are missing or doubled, and curves with gaps."""
    n_epochs, found = {"mlp": 150, "own": 10}[case], list[str]()
    trials = open_study(f"sqlite:///{home}/mlruns/optuna.db", "soak").trials()
    if [t.number for t in trials] != list(range(n_trials)):
        found.append(f"the trials are {[t.number for t in trials]}")
    for trial in trials:
        epochs = [r.epoch for r in trial.reports]
        if str(trial.state) != "COMPLETE" or epochs != list(range(1, n_epochs + 1)):
            found.append(f"trial {trial.number} is {trial.state} with epochs {epochs}")
    if case == "mlp":
        found += check(home, "soak", Plan(0, 0, n_trials=n_trials, epochs=n_epochs, keep=3))
    return found


def trained_twice(nodes: Nodes, n_nodes: int, n_drivers: int) -> list[str]:
    """More epochs than the kills can have cost."""
    # The first epochs are also what a worker tries to see what pays.
    trained = [(lr, epoch) for _, lr, epoch in nodes.epochs() if epoch != "0"]
    n_twice = len(trained) - len(set(trained))
    # A kill costs each trial of a worker what the last resume file lacks, and a started epoch.
    most = (n_nodes + 3 * n_drivers) * (INTERVAL_S / 0.3 + 2)
    if trained:
        print(f"  {n_twice} of {len(trained)} epochs trained twice, at most {most:.0f}")
    return [f"{n_twice} epochs were trained twice"] if n_twice > most else []


def main(words: Sequence[str]) -> int:
    """Run the cases; the exit code is 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="*", default=["mlp", "own"])
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--drivers", type=int, default=5)
    parser.add_argument("--every", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    args, n_wrong = parser.parse_args(words), 0
    for case in args.cases:
        with tempfile.TemporaryDirectory() as folder:
            found = soak(case, args, Path(folder))
            n_wrong += len(found)
            print("\n".join(found) or f"{case}: all as it should be", flush=True)
            if found and "KEEP" in os.environ:
                shutil.copytree(folder, os.environ["KEEP"], symlinks=True)
    return int(n_wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
