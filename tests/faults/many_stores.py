"""Both stores on one PostgreSQL server, many workers: server, worker and driver are killed.

    python tests/faults/many_stores.py --workers 8 --trials 600 --rounds 12

Each round starts the same command, waits for a trial and a while longer, and ends one of the
three. A server or a driver that ends takes the search with it, without a worker it goes on until
Ctrl-C; the next round continues it. At the end
both stores must have every trial's points exactly once. Any line on locks is a fault.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import optuna
from postgres import Postgres, running
from searches import children_of, environment, start_sweep, wait_for_line

STUDY, METRIC = "soak", "val_acc"
VICTIMS = ("server", "worker", "driver")
MAY_LEAVE = (0, 4, 7, 130, -signal.SIGKILL)
"""Exit codes of a search that lost its server, was interrupted, or lost its own process."""
LAST_TRY_S = 900


def main() -> None:
    """Run the rounds, let the search end, look at both stores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--trials", type=int, default=600)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=8.0, help="seconds after a trial")
    args = parser.parse_args()
    with running() as server, tempfile.TemporaryDirectory() as folder:
        faults = soak(server, Path(folder), args)
    print("\n".join(faults) or f"{args.trials} trials, every point once in both stores")
    sys.exit(bool(faults))


def soak(server: Postgres, folder: Path, args: argparse.Namespace) -> list[str]:
    """Faults of a search that is broken off again and again."""
    stores = server.address("optuna"), server.address("mlflow")  # made by the search
    env = {"SWEEP_STORAGE": stores[0], "MLFLOW_TRACKING_URI": stores[1]}
    command = (
        "run", "--study", STUDY, "--space", "mlp_small", "--trials", str(args.trials), "--epochs",
        str(args.epochs), "--workers", str(args.workers), "--population", "1", "--threads", "1",
        "--log-models", "none", "--checkpoint-interval", "1s",
    )  # fmt: skip
    rng, faults = random.Random(args.seed), list[str]()
    for round_, victim in zip(range(args.rounds), itertools.cycle(VICTIMS), strict=False):
        process = start_sweep(folder, *command, env=env)
        wait_for_line(process, "trial=")
        time.sleep(rng.uniform(0.0, args.longest))
        hit(victim, process, server, rng)
        out, err = process.communicate(timeout=LAST_TRY_S)
        told = f"{victim}, exit code {process.returncode}: {err[-200:].strip()}"
        print(f"round {round_ + 1}: {told}", flush=True)
        faults += faults_of(process.returncode, f"{out}\n{err}")
        if process.returncode == 0 and round_ + 1 >= len(VICTIMS):
            break  # it outlived its last blow and came to its end
    done = subprocess.run(
        [sys.executable, "-m", "sweep", *command], cwd=folder, env=environment(**env), text=True,
        capture_output=True, timeout=LAST_TRY_S, check=False,
    )  # fmt: skip
    faults += [f"the last search left with {done.returncode}: {done.stderr}"] * bool(
        done.returncode
    )
    return [*faults, *points_of_optuna(stores[0], args), *points_of_mlflow(stores[1], args)]


def hit(victim: str, process: subprocess.Popen[str], server: Postgres, rng: random.Random) -> None:
    """End the server and start it again, or a worker, or the driver."""
    if process.poll() is not None:
        raise AssertionError("the search was done before it could be hit: ask for more --trials")
    if victim == "server":
        server.stop()
        time.sleep(rng.uniform(0.0, 3.0))
        server.start()
    elif victim == "driver":
        process.kill()
    elif workers := children_of(process.pid):
        os.kill(rng.choice(workers), signal.SIGKILL)
        wait_for_line(process, "trial=")  # the others go on
        process.send_signal(signal.SIGINT)


def faults_of(code: int, said: str) -> list[str]:
    """What a broken-off search must not say, and how it must not leave."""
    words = ("Traceback", "deadlock", "is locked", "lock timeout")
    faults = [f"{word!r} was said: {said[-500:]}" for word in words if word in said]
    return faults + [f"exit code {code}: {said[-500:]}"] * (code not in MAY_LEAVE)


def points_of_optuna(url: str, args: argparse.Namespace) -> list[str]:
    """Trials without all of their epochs, and a wrong number of trials."""
    storage = optuna.storages.RDBStorage(url)
    trials = optuna.load_study(study_name=STUDY, storage=storage).trials
    storage.engine.dispose()
    states = Counter(trial.state.name for trial in trials)
    faults = [f"Optuna has {states}"] * (states != {"COMPLETE": args.trials})
    wanted = list(range(1, args.epochs + 1))
    return faults + [
        f"Optuna: trial {t.number} has epochs {sorted(t.intermediate_values)}"
        for t in trials
        if sorted(t.intermediate_values) != wanted
    ]


def points_of_mlflow(url: str, args: argparse.Namespace) -> list[str]:
    """The same, of MLflow's runs; a run that is there twice is one too many."""
    from sweep.tracking.uri import quiet

    with quiet():
        import mlflow

        client = mlflow.MlflowClient(url)
    experiment = client.get_experiment_by_name(STUDY)
    runs = client.search_runs([experiment.experiment_id], max_results=50_000)
    trials = [run for run in runs if "sweep.trial" in run.data.tags]
    states = Counter(run.info.status for run in trials)
    faults = [f"MLflow has {states}"] * (states != {"FINISHED": args.trials})
    numbers = Counter(run.data.tags["sweep.trial"] for run in trials)
    faults += [f"MLflow: trial {number} has {n} runs" for number, n in numbers.items() if n != 1]
    wanted = list(range(1, args.epochs + 1))
    for run in trials:
        steps = sorted(p.step for p in client.get_metric_history(run.info.run_id, METRIC))
        if steps != wanted:
            faults.append(f"MLflow: trial {run.data.tags['sweep.trial']} has epochs {steps}")
    return faults


if __name__ == "__main__":
    main()
