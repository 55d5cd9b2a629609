"""How honest the corrected score is: repeated searches with a hidden truth.

    python benchmarks/honesty.py --mnist FOLDER --searches 200

Each search draws 1,797 images (as many as the digits have) of MNIST's training set, averaged to 7x7 pixels; 15 % of them
validate 50 trials of the default search space. The truth of the chosen model is its accuracy on
MNIST's 10,000 test images, which no search sees. All of it runs in one process; MLflow is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gzip
import os
import tempfile
import time
from pathlib import Path

import numpy as np

N_SAMPLES = 1797


def main() -> None:
    """Search again and again; print bias and coverage of raw and corrected scores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", required=True, help="folder with MNIST's four files")
    parser.add_argument("--searches", type=int, default=200)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--keep", help="write a row for each search to this .npy")
    args = parser.parse_args()
    args.mnist = str(Path(args.mnist).resolve())
    began_s, rows = time.perf_counter(), []
    for seed in range(args.searches):
        rows.append(one_search(args, seed))
        if args.keep:
            np.save(args.keep, np.array(rows))
    report(np.array(rows))
    print(f"{args.searches} searches of {args.trials} trials: {time.perf_counter() - began_s:.0f} s")


def one_search(args: argparse.Namespace, seed: int) -> list[float]:
    """Raw, corrected, low, high, truth; the reference's corrected score and truth; gain's low,
    high, and the true gain; the time of search and appraisal."""
    from sweep.config.resolving import resolve
    from sweep.search.study import search
    from sweep.space.catalog import load_space

    os.environ["HONESTY"] = f"{args.mnist}:{seed}"
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        config = resolve({
            "data": "honesty:drawn", "study": "honesty", "trials": args.trials,
            "epochs": args.epochs, "seed": seed, "executor": "inline", "log_models": "none",
        }).config  # fmt: skip
        began_s = time.perf_counter()
        found = search(config, load_space("mlp"), ()).end.appraisal
        took_s = time.perf_counter() - began_s
        assert found is not None and found.corrected is not None, found
        checkpoint = Path(config.study_dir, "trials", f"{found.best_number:05d}", "best.ckpt")
        best = truth(args.mnist, checkpoint)
    gain = found.gain
    return [
        found.best, found.corrected.value, found.corrected.low, found.corrected.high, best,
        gain.low if gain else np.nan, gain.high if gain else np.nan, took_s,
    ]  # fmt: skip


def truth(folder: str, checkpoint: Path) -> float:
    """Accuracy on the 10,000 images that no search sees."""
    import torch

    from sweep.training.mlp import MLPClassifier

    model = MLPClassifier.load_from_checkpoint(checkpoint, map_location="cpu").eval()
    x, y = images(folder, "t10k")
    with torch.no_grad():
        chosen = model(torch.from_numpy(x)).argmax(1).numpy()
    return float((chosen == y).mean())


def drawn() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The data of one search: 1,797 images, drawn by its seed; 15 % of them validate."""
    folder, seed = os.environ["HONESTY"].rsplit(":", 1)
    x, y = images(folder, "train")
    rows = np.random.default_rng(int(seed)).permutation(len(x))[:N_SAMPLES]
    val, train = rows[: round(0.15 * N_SAMPLES)], rows[round(0.15 * N_SAMPLES) :]
    return {"train": (x[train], y[train]), "val": (x[val], y[val])}


@functools.cache
def images(folder: str, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 1, 7, 7) from 0 to 1, each pixel the mean of 4x4, and classes (n,)."""
    with gzip.open(Path(folder, f"{part}-images-idx3-ubyte.gz")) as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 7, 4, 7, 4)
        x = pixels.mean((3, 5), dtype=np.float32) / 255
    with gzip.open(Path(folder, f"{part}-labels-idx1-ubyte.gz")) as file:
        return x, np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int64)


def report(rows: np.ndarray) -> None:
    """Print what came out, in percentage points."""
    raw, corrected, low, high, true = rows[:, :5].T
    print("| score | bias | sd of the error | 95 % interval covers |")
    print("| --- | ---: | ---: | ---: |")
    for name, score in (("raw", raw), ("corrected", corrected)):
        error = 100 * (score - true)
        covers = f"{100 * ((low <= true) & (true <= high)).mean():.1f} %"
        print(
            f"| {name} | {error.mean():+.2f} +- {error.std() / len(error) ** 0.5:.2f} | "
            f"{error.std():.2f} | {covers if name == 'corrected' else ''} |"
        )
    print(f"mean truth {100 * true.mean():.2f}, median time of a search {np.median(rows[:, 7]):.1f} s")


if __name__ == "__main__":
    main()
