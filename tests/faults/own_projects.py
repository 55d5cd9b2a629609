"""Twelve projects of users, each searched, killed by SIGKILL, and searched on.

    python tests/faults/own_projects.py [--seed S] [NAME ...]

Driver and worker die at a random instant after the first resume file, within an epoch more likely
than not; the same command goes on. All trials must end as without a kill: same states, and the
same curves but for times. Ends with exit code 1 and what differs.
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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "training" / "project")]

import demos  # noqa: E402
import projects  # noqa: E402
from searches import SWEEP, environment  # noqa: E402
from test_projects import METRICS, PROJECTS  # noqa: E402
from waiting import PATIENCE_S  # noqa: E402

from sweep.ledger.study import open_study  # noqa: E402
from sweep.space.vary import floats  # noqa: E402

LEFT_OUT = ("epoch_s", "loss", "train_loss", "train_loss_epoch", "train_loss_step")
"""Times, and means over training steps, which are of the steps since a resume."""


def command(case: str) -> list[str]:
    """Two trials of a project, one after the other."""
    name, of_data, given = PROJECTS[case]
    words = ["run", "--module", name, "--trials", "2",
             "--metric", METRICS.get(case, "val_loss"), "--epochs", "4", "--study", "s",
             "--checkpoint-interval", "0.001",
             "--vary", f"trainer.gradient_clip_val={floats(1e3, 1e4)}" if "hand" not in case
             and case != "adversarial" else "trainer.log_every_n_steps=10..99"]  # fmt: skip
    words += ["--data", of_data] if of_data else []
    return words + [word for k, v in given.items() for word in ("--set", f"{k}={v}")]


def start(folder: Path, case: str) -> subprocess.Popen[bytes]:
    """The search, in a session of its own."""
    return subprocess.Popen(
        [*SWEEP, *command(case)], cwd=folder, env=environment(), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=(folder / "errors.txt").open("ab"),
    )  # fmt: skip


def outcome(folder: Path) -> list[Any]:
    """State and curves of each trial."""
    storage = f"sqlite:///{folder}/mlruns/optuna.db"
    return [
        (str(t.state), [(r.epoch, kept(r.metrics)) for r in t.reports])
        for t in open_study(storage, "s").trials()
    ]


def kept(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that a kill must not change."""
    return {k: v for k, v in metrics.items() if k not in LEFT_OUT}


def killed(folder: Path, case: str, rng: random.Random) -> bool:
    """Kill a search after its first resume file; whether it was in time."""
    process = start(folder, case)
    trials = folder / "mlruns" / ".sweep" / "s" / "trials"
    while process.poll() is None and not [*trials.glob("*/last.ckpt")]:
        time.sleep(0.01)
    time.sleep(rng.uniform(0.0, 0.6))
    was_alive = process.poll() is None
    own = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)],
        capture_output=True,
        text=True,
        check=False,
    )
    for pid in [process.pid, *map(int, own.stdout.split())]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()
    return was_alive


def main() -> int:
    """Check each project."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", default=[*PROJECTS])
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng, n_wrong = random.Random(args.seed), 0
    for case in args.names:
        with tempfile.TemporaryDirectory() as scratch:
            found = {}
            for way in ("whole", "killed"):
                folder = Path(scratch, way)
                folder.mkdir()
                for module in (projects, demos):
                    shutil.copy(module.__file__, folder)
                n_kills = 0
                while way == "killed" and n_kills < 3 and killed(folder, case, rng):
                    n_kills += 1
                code = start(folder, case).wait(timeout=PATIENCE_S)
                said = (folder / "errors.txt").read_text()
                found[way] = (code, outcome(folder)) if not code else (code, said)
            is_same = found["whole"] == found["killed"] and found["whole"][0] == 0
            n_wrong += not is_same
            print(f"{case}: {n_kills} kills, {'the same' if is_same else found}", flush=True)
    return int(n_wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
