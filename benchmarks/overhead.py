"""What checkpoints and bookkeeping add to a fused search: the engine against bare training.

    python benchmarks/overhead.py --data mnist --data-dir DIR --trials 50 --epochs 2 --rounds 3

Four contenders, interleaved, with the same trials, populations, slots and threads:

* `bare` trains and validates in one process, and keeps nothing.
* `tracked` does the same in a worker process; beside it a driver process writes what the stock
  script of `throughput.py` has in MLflow, too: runs, parameters, curves, best checkpoints, models.
  No proposals, no Optuna storage, no spool, no verdicts, no locks: a kill loses all of it.
* `full` is a search as users run it.
* `often` writes everybody's resume state every `--interval` seconds as well.

Times are from the moment when libraries and data are loaded.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
SLOTS = 32


def main() -> None:
    """Measure and print."""
    args = parse()
    if args.contender:
        print(json.dumps({"work_s": {"bare": bare, "tracked": tracked}[args.contender](args)}))
        return
    sys.path.insert(0, str(HERE))
    from throughput import draw

    shared = ["--data", args.data, "--epochs", str(args.epochs), "--threads", str(args.threads)]
    shared += ["--data-dir", str(Path(args.data_dir).resolve())] if args.data_dir else []
    with tempfile.TemporaryDirectory() as folder:
        trials = Path(folder, "trials.json")
        trials.write_text(json.dumps(draw(args.trials)))
        ours = [str(HERE / "ours.py"), str(trials), "--population", str(SLOTS)]
        own = [str(HERE / "overhead.py"), "--configurations", str(trials), "--contender"]
        commands = {
            "bare": [*own, "bare"],
            "tracked": [*own, "tracked"],
            "full": ours,
            "often": [*ours, "--checkpoint-interval", str(args.interval)],
        }
        commands = {name: commands[name] for name in args.only.split(",")}
        times: dict[str, list[float]] = {name: [] for name in commands}
        for round_, (name, command) in itertools.product(range(args.rounds), commands.items()):
            run_in = Path(folder, f"{name}-{round_}")
            run_in.mkdir()
            times[name].append(measure([*command, *shared], run_in))
            print(f"# round {round_ + 1} {name}: {times[name][-1]:.2f} s", flush=True)
    print(f"\n{args.data}, {args.trials} trials x {args.epochs} epochs, {SLOTS} slots\n")
    names = list(times)
    print(f"| | work s |{''.join(f' more than {name} |' for name in names[:-1])}")
    print("| --- |" + " --- |" * len(names))
    for name, measured in times.items():
        more = [median(measured) / median(times[than]) - 1 for than in names[: names.index(name)]]
        print(f"| {name} | {median(measured):.2f} |{''.join(f' {m:+.1%} |' for m in more)}")


def measure(command: list[str], folder: Path) -> float:
    """Seconds that a contender says it worked."""
    env = {**os.environ, "PYTHONPATH": str(HERE.parent), "SWEEP_DATA_DIR": ""}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=env, text=True, capture_output=True, check=True
    )
    return float(json.loads(done.stdout.strip().splitlines()[-1])["work_s"])


Tell = Callable[[Iterable[Any]], object]
"""Takes records as `sweep.trial` has them."""


def bare(args: argparse.Namespace) -> float:
    """Train the trials in waves of `SLOTS` and keep nothing; seconds."""
    train = load(args)
    began = time.perf_counter()
    train(None)
    return time.perf_counter() - began


def tracked(args: argparse.Namespace) -> float:
    """Train them in a worker, and write what it tells to MLflow; seconds."""
    from sweep.tracking import MlflowTracker
    from sweep.trial import StudyInfo

    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    worker = context.Process(target=tell, args=(args, there))
    worker.start()
    there.close()
    n_trials = len(json.loads(Path(args.configurations).read_text()))
    tracker = MlflowTracker("sqlite:///mlflow.db", Path("log"))
    study = StudyInfo(
        "tracked", n_trials, "val_acc", "maximize", args.epochs, {}, "", "", now_ms()
    )
    tracker.open(study)
    (ready,) = here.recv()
    tracker.write([ready])
    try:
        while True:
            tracker.write(here.recv())
    except EOFError:
        worker.join()
    tracker.close()
    work_s = time.time() - ready.time_ms / 1e3
    if worker.exitcode:
        sys.exit(f"the worker left with {worker.exitcode}")
    return work_s


def tell(args: argparse.Namespace, there: Connection) -> None:
    """The worker of `tracked`."""
    load(args, there.send)(there.send)
    there.close()


def load(args: argparse.Namespace, greet: Tell | None = None) -> Callable[[Tell | None], None]:
    """Libraries and data; returns what trains."""
    import torch

    from sweep.data.tensors import load_search_data
    from sweep.training.compiled.kernel import load_kernel
    from sweep.training.fused.engine import MOST_LANES
    from sweep.training.fused.population import Population, run_jobs
    from sweep.training.members import Member
    from sweep.training.mlp import MLPClassifier
    from sweep.training.optimizers import make_rule
    from sweep.trial import EpochReport, TrialFinished, TrialStarted, TrialState, WorkerReady

    torch.set_num_threads(args.threads)
    data = load_search_data(args.data, args.data_dir, 0)
    configurations = json.loads(Path(args.configurations).read_text())
    kernel = load_kernel(4).kernel
    gc.freeze()  # as sweep's workers do
    if greet is not None:
        greet([WorkerReady(data.info, "cpu", SLOTS, now_ms())])

    n_lanes = min(args.threads, MOST_LANES if kernel is None else SLOTS)
    population = Population(data, 64, args.epochs, kernel=kernel, n_lanes=n_lanes)
    pool = ThreadPoolExecutor(n_lanes)

    def member(number: int, configuration: dict[str, Any]) -> Member:
        given = dict(configuration)
        hidden, lr = tuple(given.pop("hidden")), given.pop("lr")
        rule = make_rule(given.pop("optimizer"), given)
        widths = data.widths(hidden)
        weights = [
            (torch.randn(b, a) * a**-0.5, torch.zeros(b)) for a, b in itertools.pairwise(widths)
        ]
        return Member(number, hidden, "relu", rule, lr, weights)

    def started(number: int, configuration: dict[str, Any]) -> TrialStarted:
        return TrialStarted(number, f"t{number:03d}", configuration, configuration, now_ms())

    def finished(number: int, best: tuple[int, dict[str, float]]) -> TrialFinished:
        """With the best epoch's weights in files that MLflow stores."""
        from sweep.training.exports import Example, export_model

        model = MLPClassifier(
            data.n_features, data.info.n_classes, input_mean=data.info.mean,
            input_std=data.info.std, **configurations[number],
        )  # fmt: skip
        linears = (layer for layer in model.layers if isinstance(layer, torch.nn.Linear))
        with torch.no_grad():
            for layer, (weight, bias) in zip(
                linears, population.best_weights(number), strict=True
            ):
                layer.weight.copy_(weight)
                layer.bias.copy_(bias)
        folder = Path("kept", str(number))
        folder.mkdir(parents=True)
        torch.save(
            {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)},
            folder / "best.ckpt",
        )
        model_file = export_model(folder / "model.pt2", model, Example(data.info.feature_shape))
        epoch, metrics = best
        return TrialFinished(
            number, TrialState.COMPLETE, now_ms(), metrics["val_acc"], epoch, metrics,
            args.epochs, str(folder / "best.ckpt"), model_file,
        )  # fmt: skip

    def train(tell: Tell | None) -> None:
        numbered = list(enumerate(configurations))
        for wave in (numbered[k : k + SLOTS] for k in range(0, len(numbered), SLOTS)):
            best: dict[int, tuple[int, dict[str, float]]] = {}
            for number, configuration in wave:
                population.join(member(number, configuration))
            if tell is not None:
                tell([started(*trial) for trial in wave])
            for epoch in range(1, args.epochs + 1):
                began = time.perf_counter()
                scored = run_jobs(population.start_epoch(), pool, n_lanes, args.threads)
                if tell is None:
                    continue
                epoch_s, reports = time.perf_counter() - began, []
                for number, score in scored.items():
                    metrics = {name: getattr(score, name) for name in score.__slots__}
                    reports.append(
                        EpochReport(number, epoch, {**metrics, "epoch_s": epoch_s}, now_ms())
                    )
                    if number not in best or score.val_acc > best[number][1]["val_acc"]:
                        best[number] = epoch, metrics
                        with torch.no_grad():
                            population.keep_best(number)
                tell(reports)
            if tell is not None:
                tell([finished(number, best[number]) for number, _ in wave])
            for number, _ in wave:
                population.leave(number)

    return train


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


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
    parser.add_argument("--only", default="bare,tracked,full,often")
    parser.add_argument("--contender", choices=["bare", "tracked"], help="run this one itself")
    parser.add_argument("--configurations", metavar="FILE", help="of the contender's trials")
    return parser.parse_args()


if __name__ == "__main__":
    main()
