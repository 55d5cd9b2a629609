"""What checkpoints and bookkeeping add to a fused search: the whole engine against bare training.

    python benchmarks/overhead.py --data mnist --data-dir DIR --trials 50 --epochs 2 --rounds 3

Interleaved: `bare` trains and validates the same trials with the same populations, slots and
threads, in one process, and keeps nothing. `full` is a search with everything on (Optuna's
storage, the MLflow runs, best checkpoints, exported models, verdicts); `often` also writes
everybody's resume state every `--interval` seconds. Times are from the moment when libraries and
data are loaded.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
SLOTS = 32


def main() -> None:
    """Measure and print."""
    args = parse()
    if args.bare:
        print(json.dumps({"work_s": bare(args)}))
        return
    sys.path.insert(0, str(HERE))
    from throughput import draw

    shared = ["--data", args.data, "--epochs", str(args.epochs), "--threads", str(args.threads)]
    shared += ["--data-dir", str(Path(args.data_dir).resolve())] if args.data_dir else []
    times: dict[str, list[float]] = {"bare": [], "full": [], "often": []}
    with tempfile.TemporaryDirectory() as folder:
        trials = Path(folder, "trials.json")
        trials.write_text(json.dumps(draw(args.trials)))
        ours = [str(HERE / "ours.py"), str(trials), "--population", str(SLOTS)]
        commands = {
            "bare": [str(HERE / "overhead.py"), "--bare", str(trials)],
            "full": ours,
            "often": [*ours, "--checkpoint-interval", str(args.interval)],
        }
        for round_, (name, command) in itertools.product(range(args.rounds), commands.items()):
            run_in = Path(folder, f"{name}-{round_}")
            run_in.mkdir()
            times[name].append(measure([*command, *shared], run_in))
            print(f"# round {round_ + 1} {name}: {times[name][-1]:.2f} s", flush=True)
    print(f"\n{args.data}, {args.trials} trials x {args.epochs} epochs, {SLOTS} slots\n")
    print("| | work s | more than bare |\n| --- | --- | --- |")
    for name, measured in times.items():
        more = median(measured) / median(times["bare"]) - 1
        print(f"| {name} | {median(measured):.2f} | {more:+.1%} |")


def measure(command: list[str], folder: Path) -> float:
    """Seconds that a contender says it worked."""
    env = {**os.environ, "PYTHONPATH": str(HERE.parent), "SWEEP_DATA_DIR": ""}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=env, text=True, capture_output=True, check=True
    )
    return float(json.loads(done.stdout.strip().splitlines()[-1])["work_s"])


def bare(args: argparse.Namespace) -> float:
    """Train the trials in waves of `SLOTS` and keep nothing; seconds."""
    import torch

    from sweep.training.data import epoch_order, load_search_data
    from sweep.training.lanes import Lanes
    from sweep.training.layout import Shape
    from sweep.training.optimizers import make_rule
    from sweep.training.population import Member, Population, Recipe, Samples, nothing
    from sweep.training.products import fastest_linear

    torch.set_num_threads(args.threads)
    data = load_search_data(args.data, args.data_dir, 0)
    samples = Samples(
        data.train.x, data.train.y, data.val.x, data.val.y, data.mean, data.std,
        data.info.n_classes,
    )  # fmt: skip
    n_train = len(samples.x)
    fastest_linear()

    def make(batch_size: int, epoch: int) -> Population:
        return Population(
            samples, batch_size, args.epochs, lambda e: epoch_order(0, e, n_train), epoch
        )

    def member(number: int, configuration: dict[str, Any]) -> Member:
        given = dict(configuration)
        hidden, lr = tuple(given.pop("hidden")), given.pop("lr")
        rule = make_rule(given.pop("optimizer"), given)
        widths = (samples.n_features, *hidden, samples.n_classes)
        weights = [
            (torch.randn(b, a) * a**-0.5, torch.zeros(b)) for a, b in itertools.pairwise(widths)
        ]
        return Member(Recipe(number, Shape(hidden, "relu"), rule, lr), weights)

    lanes, configurations = Lanes(make, args.threads), json.loads(Path(args.bare).read_text())
    began = time.perf_counter()
    numbered = list(enumerate(configurations))
    for wave in (numbered[k : k + SLOTS] for k in range(0, len(numbered), SLOTS)):
        for number, configuration in wave:
            lanes.place(member(number, configuration), 64, None)
        lanes.change()
        for _ in range(args.epochs):
            lanes.train_epoch(nothing)
        for number, _ in wave:
            lanes.leave(number)
        lanes.change()
    return time.perf_counter() - began


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-dir")
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--interval", type=float, default=10.0)
    parser.add_argument("--bare", metavar="TRIALS", help="the bare contender itself")
    return parser.parse_args()


if __name__ == "__main__":
    main()
