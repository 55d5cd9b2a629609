"""Stock script, plain path and fused path on the same trials, interleaved, beside the bound.

    python benchmarks/throughput.py --data digits --trials 50 --epochs 10 --rounds 3
    python benchmarks/throughput.py --data mnist --data-dir DIR --trials 50 --epochs 2 --rounds 1

Every contender is a whole command in a folder of its own with fresh stores; `compute` (with
`--only stock,fused,compute`) trains what `fused` trains, in 32 slots, and keeps nothing. Printed
for each: wall time of the command, time without imports, time per trial-step, peak memory (sum of
its processes), and the ratios stock / contender from this run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
N_IN = {"digits": 64, "mnist": 784, "fashion_mnist": 784}
N_TRAIN = {"digits": 1347, "mnist": 55_000, "fashion_mnist": 55_000}


def main() -> None:
    """Measure and print."""
    args = parse()
    configurations = draw(args.trials)
    contenders = {
        "stock": [str(HERE / "stock.py")],
        "plain": [str(HERE / "ours.py"), "--population", "1"],
        "fused": [str(HERE / "ours.py"), "--population", args.population],
        "compute": [str(HERE / "overhead.py"), "--contender", "bare", "--configurations"],
    }
    contenders = {k: v for k, v in contenders.items() if k in args.only.split(",")}
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    with tempfile.TemporaryDirectory() as folder:
        trials = Path(folder, "trials.json")
        trials.write_text(json.dumps(configurations))
        for round_ in range(args.rounds):
            for name, command in contenders.items():
                run_in = Path(folder, f"{name}-{round_}")
                run_in.mkdir()
                result = measure([*command, str(trials), *flags(args)], run_in)
                results[name].append(result)
                print(f"# round {round_ + 1} {name}: {json.dumps(result)}", flush=True)
    report(args, configurations, results)


def draw(n: int) -> list[dict[str, Any]]:
    """`n` seeded configurations of 1-3 layers, widths 16-512 as a search draws them."""
    rng = random.Random(7)
    configurations = []
    for _ in range(n):
        optimizer = rng.choice(["SGD", "Adam", "RMSprop"])
        drawn: dict[str, Any] = {
            "optimizer": optimizer,
            "lr": round(10 ** rng.uniform(-3.5, -2), 6),
            "hidden": [round(2 ** rng.uniform(5, 9)) for _ in range(rng.randint(1, 3))],
        }
        if optimizer != "Adam":
            drawn["momentum"] = round(rng.uniform(0, 0.9), 3)
        configurations.append(drawn)
    return configurations


def flags(args: argparse.Namespace) -> list[str]:
    """What all contenders are told."""
    told = ["--data", args.data, "--epochs", str(args.epochs), "--threads", str(args.threads)]
    return [*told, *(["--data-dir", str(Path(args.data_dir).resolve())] if args.data_dir else [])]


def measure(command: list[str], folder: Path) -> dict[str, Any]:
    """Run one contender; its own figures, wall seconds and peak memory in MB."""
    env = {**os.environ, "PYTHONPATH": str(HERE.parent), "SWEEP_DATA_DIR": ""}
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command], cwd=folder, env=env, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    peak = [0]
    watcher = threading.Thread(target=watch, args=(process, peak), daemon=True)
    watcher.start()
    out, err = process.communicate()
    wall_s = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"{command[0]} failed:\n{err[-3000:]}")
    told = json.loads(out.strip().splitlines()[-1])
    return {"wall_s": round(wall_s, 2), "peak_mb": round(peak[0] / 1e6), **told}


def watch(process: subprocess.Popen[str], peak: list[int]) -> None:
    """Keep the largest sum of resident memory over the session's processes (Linux)."""
    page = os.sysconf("SC_PAGE_SIZE")
    while process.poll() is None and Path("/proc").exists():
        total = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == process.pid:
                total += int(fields[21]) * page
        peak[0] = max(peak[0], total)
        time.sleep(0.1)


def useful_flops(configurations: list[dict[str, Any]], n_in: int) -> float:
    """Floating-point operations of one sample through all trials: forward and backward.

    Per weight 2 forward, 2 for its gradient, and 2 for the gradient of its layer's input, which
    the first layer does not need.
    """
    total = 0.0
    for configuration in configurations:
        widths = [n_in, *configuration["hidden"], 10]
        weights = [a * b for a, b in itertools.pairwise(widths)]
        total += 6 * sum(weights) - 2 * weights[0]
    return total


def report(
    args: argparse.Namespace,
    configurations: list[dict[str, Any]],
    results: dict[str, list[dict[str, Any]]],
) -> None:
    """Print medians, ratios and the bound as a Markdown table."""
    n_steps = -(-N_TRAIN[args.data] // 64) * args.epochs * args.trials
    import torch
    from bare_step import matmul_rate

    torch.set_num_threads(args.threads)
    peak = matmul_rate()
    samples = N_TRAIN[args.data] * args.epochs
    bound_s = useful_flops(configurations, N_IN[args.data]) * samples / peak
    print(f"\n{args.data}, {args.trials} trials x {args.epochs} epochs, batch 64, "
          f"{args.threads} threads, {args.rounds} rounds interleaved, medians")  # fmt: skip
    print(
        f"{date.today()}, {cpu()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        + ", ".join(f"{p} {version(p)}" for p in ("torch", "lightning", "optuna", "mlflow"))
    )
    print("\n| | wall s | without imports s | ms a trial-step | peak MB | stock / it | "
          "without imports | best |")  # fmt: skip
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    medians = {n: {k: statistics.median(r[k] for r in rs) for k in rs[0]}
               for n, rs in results.items()}  # fmt: skip
    for name, m in medians.items():
        whole = medians.get("stock", m)["wall_s"] / m["wall_s"]
        work = medians.get("stock", m)["work_s"] / m["work_s"]
        best = f"{m['best']:.4f}" if "best" in m else ""
        print(f"| {name} | {m['wall_s']:.1f} | {m['work_s']:.1f} | "
              f"{1000 * m['work_s'] / n_steps:.3f} | {m['peak_mb']:.0f} | {whole:.1f} | "
              f"{work:.1f} | {best} |")  # fmt: skip
    print(f"| bound | {bound_s:.1f} | {bound_s:.1f} | {1000 * bound_s / n_steps:.3f} | | | | |")
    for name, m in medians.items():
        if name in ("fused", "compute"):
            print(f"\n{name}: {m['work_s'] / bound_s:.1f} times the bound")
    print(
        f"\nbound: useful operations over torch.mm's peak, measured now, {peak / 1e9:.0f} GFLOP/s"
    )


def cpu() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="digits", choices=sorted(N_IN))
    parser.add_argument("--data-dir")
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--population", default="auto")
    parser.add_argument("--only", default="stock,plain,fused")
    return parser.parse_args()


if __name__ == "__main__":
    main()
