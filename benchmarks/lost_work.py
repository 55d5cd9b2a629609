"""What a kill costs: SIGKILL of driver and worker at random instants, then the same command again.

    python benchmarks/lost_work.py --kills 6 --interval 2

A search of one generation of trials is killed once and run again. Epochs that were reported before
the kill and had to be trained once more are lost work. Printed for each kill: how many epochs and
seconds of training that was, beside the bound that the README states.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--interval", type=float, default=2.0)
    parser.add_argument("--epochs", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    worst = 0.0
    for kill in range(args.kills):
        with tempfile.TemporaryDirectory() as folder:
            lost, epoch_s = measure(Path(folder), rng.uniform(2.0, 8.0), args)
        worst = max(worst, lost * epoch_s)
        print(f"kill {kill + 1}: {lost} epochs of {epoch_s:.2f} s lost", flush=True)
    print(f"{date.today()}, {os.cpu_count()} cores: at most {worst:.1f} s of training lost in "
          f"{args.kills} kills, with a checkpoint every {args.interval:g} s")  # fmt: skip


def measure(folder: Path, after_s: float, args: argparse.Namespace) -> tuple[int, float]:
    """Epochs trained twice, and seconds an epoch took."""
    command = [
        sys.executable, "-m", "sweep", "run", "--trials", "12", "--epochs", str(args.epochs), "-v",
        "--checkpoint-interval", f"{args.interval:g}s", "--study", "lost",
    ]  # fmt: skip
    log = folder / "out.txt"
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=folder, stdout=out, start_new_session=True)
        while "state=RUNNING" not in log.read_text() and process.poll() is None:
            time.sleep(0.05)
        time.sleep(after_s)
        if process.poll() is not None:
            raise SystemExit("the search ended before it could be killed: ask for more --epochs")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    reached = max((epoch_of(line) for line in log.read_text().splitlines()), default=0)
    with (folder / "again.txt").open("w") as out:
        subprocess.run(command, cwd=folder, stdout=out, check=True)
    trained = [line for line in (folder / "again.txt").read_text().splitlines()
               if "state=RUNNING" in line and line.startswith("trial=0 ")]  # fmt: skip
    first_new = min((epoch_of(line) for line in trained), default=reached + 1)
    return max(0, reached + 1 - first_new), after_s / max(1, reached)


def epoch_of(line: str) -> int:
    """The epoch of a line about trial 0 that runs; 0 for other lines."""
    if not line.startswith("trial=0 ") or "state=RUNNING" not in line:
        return 0
    return int(line.partition("epoch=")[2].partition("/")[0])


if __name__ == "__main__":
    main()
