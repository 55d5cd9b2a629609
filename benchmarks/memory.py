"""Memory of populations of one's own modules: foreseen from one trial, and taken.

    python benchmarks/memory.py [--mnist FOLDER]

Each population trains some minibatches and a validation in a process of its own, with one heap as
workers have it. Taken is the peak of resident memory over that before the population.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

CASES = {
    "table network, 64 units": ("TableNet", "Rows", {"width": 64}),
    "table network, 256 units": ("TableNet", "Rows", {"width": 256}),
    "CNN on MNIST": ("SmallCnn", "Mnist", {"lr": 1e-3}),
}
POPULATIONS = (8, 32)


class Peak:
    """Most resident memory of this process within, in bytes over that before."""

    def __enter__(self) -> Peak:
        self._is_over, self.n_bytes = False, 0
        self._before = _resident()
        self._watch = threading.Thread(target=self._look)
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._watch.join()

    def _look(self) -> None:
        while not self._is_over:
            self.n_bytes = max(self.n_bytes, _resident() - self._before)
            time.sleep(0.002)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measured(case: str, n: int, mnist: str) -> tuple[float, float]:
    """Bytes foreseen, and taken, of n trials."""
    from sweep.testing import example_task
    from sweep.training.plain.ladder import train_a_little, trained_alone
    from sweep.training.project.project import Project
    from sweep.trial import TrialSpec

    module, data, given = CASES[case]
    config: dict[str, Any] = {"data": {"mnist": mnist}} if data == "Mnist" else {}
    with tempfile.TemporaryDirectory() as folder:
        task = example_task(
            Path(folder), module=f"populations:{module}", data=f"populations:{data}",
            metric="val_loss", direction="minimize", log_models="none", names=tuple(given),
            config=config,
        )  # fmt: skip
        project = Project(task, None)
        specs = [TrialSpec(k, given, seed=k) for k in range(n)]
        one = trained_alone(task, project, specs[0])
        assert one is not None
        foreseen = n * one.n_bytes
        train_a_little(task, project, specs[:2], 2, 8)
        with Peak() as peak:
            train_a_little(task, project, specs, n, 12)
    return foreseen, peak.n_bytes


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--mnist", default="", help="folder with MNIST's files")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        import logging

        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        print(*measured(args.one[0], int(args.one[1]), args.mnist))
        return
    print(
        f"{date.today()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        + ", ".join(f"{p} {version(p)}" for p in ("torch", "lightning"))
    )
    for case in CASES:
        if case.endswith("MNIST") and not args.mnist:
            continue
        for n in POPULATIONS:
            mnist = str(Path(args.mnist).resolve())
            done = subprocess.run(
                [sys.executable, __file__, "--one", case, str(n), "--mnist", mnist],
                env={**os.environ, "MALLOC_ARENA_MAX": "1"}, capture_output=True, text=True,
                check=False,
            )  # fmt: skip
            if done.returncode:
                raise SystemExit(done.stderr)
            foreseen, taken = map(float, done.stdout.splitlines()[-1].split())
            print(f"{case}, {n} trials: foreseen {foreseen / 1e6:.0f} MB, taken "
                  f"{taken / 1e6:.0f} MB, taken / foreseen {taken / foreseen:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
