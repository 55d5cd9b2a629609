"""What Ray costs: one search by local workers and by workers on a Ray cluster, on the same cores.

    python benchmarks/cluster.py [--rounds 3]

The table network of benchmarks/populations.py (32 trials, 5 epochs of 32,000 samples), whole
commands with imports, stores and tracking, in turn. Locally two workers of one thread; on Ray two
nodes of one CPU on this machine (tests/ray_nodes.py), which are there before the clock starts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

from populations import measured  # noqa: E402
from ray_nodes import Nodes  # noqa: E402


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=32)
    args = parser.parse_args()
    os.environ["PYTHONPATH"] = str(HERE)  # of the nodes
    with tempfile.TemporaryDirectory() as scratch:
        nodes = Nodes(Path(scratch), 2)
        ways = {
            "local": {"workers": 2, "threads": 1},
            "ray": {"executor": "ray", "ray_address": nodes.address},
        }
        found: dict[str, list[float]] = {way: [] for way in ways}
        for i in range(args.rounds):
            for way in sorted(ways, reverse=bool(i % 2)):
                given = argparse.Namespace(
                    mnist="", settings=json.dumps(ways[way]), trials=args.trials, verbose=False
                )
                found[way].append(measured("sweep", "table", given)["wall_s"])
        nodes.close()
    local, ray = (statistics.median(found[way]) for way in ("local", "ray"))
    pairs = zip(found["ray"], found["local"], strict=True)
    ratios = sorted(one / other for one, other in pairs)
    print(
        f"{date.today()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch "
        f"{version('torch')}, ray {version('ray')}: local {local:.1f} s, Ray {ray:.1f} s, "
        f"Ray / local {ray / local:.3f} (rounds {', '.join(f'{r:.3f}' for r in ratios)})"
    )


if __name__ == "__main__":
    main()
