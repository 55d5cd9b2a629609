"""`--deterministic`: the same 50 configurations and curves for 1, 2 and 8 workers, and on Ray.

    python tests/faults/same_everywhere.py [mlp] [own] [--trials 50]

Whole commands with a pruner. Prints how long each took, and the first trial that differs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import user_code  # noqa: E402
from ray_nodes import Nodes  # noqa: E402
from searches import sweep  # noqa: E402

from sweep.ledger.study import open_study  # noqa: E402


def curves(folder: Path) -> list[Any]:
    """State, configuration and curve of each trial, all but times."""
    trials = open_study(f"sqlite:///{folder}/mlruns/optuna.db", "s").trials()
    return [
        (str(t.state), t.hyperparameters,
         [{k: v for k, v in r.metrics.items() if k != "epoch_s"} for r in t.reports])
        for t in trials
    ]  # fmt: skip


def main() -> int:
    """Run each way in a folder of its own; the exit code is 1 if two differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="*", default=["mlp", "own"])
    parser.add_argument("--trials", type=int, default=50)
    args, n_wrong = parser.parse_args(), 0
    with tempfile.TemporaryDirectory() as scratch:
        nodes = Nodes(Path(scratch), 2)
        ways = {"1 worker": ["--workers", "1"], "2 workers": ["--workers", "2"],
                "8 workers": ["--workers", "8", "--population", "2"],
                "Ray, 2 nodes": ["--executor", "ray", "--ray-address", nodes.address]}  # fmt: skip
        for case in args.cases:
            found: dict[str, list[Any]] = {}
            for way, words in ways.items():
                folder = Path(scratch, case, way.replace(" ", ""))
                folder.mkdir(parents=True)
                (folder / "user_code.py").write_text(Path(user_code.__file__).read_text())
                project = ["--module", "user_code:Model", "--metric", "val_f1", "--vary",
                           "width=2..200"]  # fmt: skip
                began_s = time.perf_counter()
                done = sweep(
                    folder, "run", "--study", "s", "--trials", str(args.trials), "--epochs", "4",
                    "--deterministic", "--pruner", "median", *words,
                    *(project if case == "own" else []),
                )  # fmt: skip
                if done.returncode:
                    print(done.stderr)
                    return 1
                found[way] = curves(folder)
                states = [state for state, _, _ in found[way]]
                print(
                    f"{case}, {way}: {len(states)} trials, {states.count('PRUNED')} pruned, "
                    f"{time.perf_counter() - began_s:.0f} s", flush=True,
                )  # fmt: skip
            first = found["1 worker"]
            for way, other in found.items():
                differ = [n for n, (a, b) in enumerate(zip(first, other, strict=True)) if a != b]
                n_wrong += bool(differ)
                print(f"  {way}: {f'trial {differ[0]} differs' if differ else 'the same'}")
        nodes.close()
    return int(n_wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
