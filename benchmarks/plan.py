"""How near `sweep plan` comes: predicted and actual time of whole searches, each a command.

    python benchmarks/plan.py
    python benchmarks/plan.py --only many,workers --for 15s

Both are the wall-clock time of a command in a folder of its own, the interpreter's start left out
of the prediction (0.3 s). "of s" is how long was measured, "load" the machine's load average:
others who use it meanwhile spoil the comparison.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CNN = (
    "--module cnn.py:Net --data cnn.py:Images --metric val_acc --epochs 40 "
    "--vary lr=1e-3..1e-1:log --vary channels=8,16"
)
SEARCHES = {
    "digits": "--trials 50 --epochs 10",
    "many": "--trials 400 --epochs 20",
    "module": f"{CNN} --trials 24",
    "workers": f"{CNN} --trials 16 --workers 2 --population 2",
}


def main() -> None:
    """Plan and run each search; print both times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(SEARCHES))
    parser.add_argument("--for", dest="for_time", default="25s")
    args = parser.parse_args()
    print("| search | load before | after | predicted s | between | of s | actual s | ratio |")
    print("| --- | ---: | ---: | ---: | --- | ---: | ---: | ---: |")
    for name in args.only.split(","):
        flags = SEARCHES[name].split()
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(ROOT / "examples" / "cnn.py", folder)
            load = os.getloadavg()[0]
            said, _ = timed(folder, "plan", *flags, "--for", args.for_time, "--format", "json")
            _, actual_s = timed(folder, "run", *flags, "--quiet")
        plan = json.loads(said)
        (one,) = plan["estimates"]
        cells = (
            name, f"{load:.1f}", f"{os.getloadavg()[0]:.1f}", f"{one['time_s']:.1f}",
            f"{one['low_s']:.0f} to {one['high_s']:.0f}",
            f"{plan['measured']['measured_s']:.1f}", f"{actual_s:.1f}",
            f"{one['time_s'] / actual_s:.2f}",
        )  # fmt: skip
        print(f"| {' | '.join(cells)} |", flush=True)


def timed(folder: str, *command: str) -> tuple[str, float]:
    """What a command of sweep printed, and how long it took in seconds."""
    began_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "sweep", *command], cwd=folder, check=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
    )  # fmt: skip
    return done.stdout, time.monotonic() - began_s


if __name__ == "__main__":
    main()
