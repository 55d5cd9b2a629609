"""Kill a real search at random instants, run it again until it is done, then check the stores.

    python tests/faults/harness.py --kills 200 --population auto --seed 7
    python tests/faults/harness.py --kills 50 --signals

The seed decides what is killed and when; the same seed repeats a run as far as the machine's own
timing allows. Prints each kill, and every violation. With --signals half of the kills are SIGTERM,
SIGHUP and SIGINT to the whole process group, as GNU timeout, a closed terminal and Ctrl-C send
them, after an epoch: a search that says that everything is saved has a resume file of all epochs
that it recorded.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from searches import query
from waiting import PATIENCE_S

VICTIMS = ("driver", "worker", "both")
GROUP_SIGNALS = ("SIGTERM", "SIGHUP", "SIGINT")
LONGEST_RUN_S = 300.0


@dataclass
class Plan:
    """One soak: what is searched, and how often it is killed."""

    seed: int
    n_kills: int
    n_trials: int = 12
    epochs: int = 4
    population: str = "auto"
    """auto, a number, or mixed: auto and 1, run by run."""
    flags: tuple[str, ...] = ("--sampler", "random", "--checkpoint-interval", "0.2")
    keep: int | None = None
    """Best trials that keep their files."""
    signals: bool = False
    """Whether half of the kills are signals to the process group."""
    span_s: float = 8.0
    """Kills fall into the first so many seconds of a run: start-up, training, hand-over, end; into
    fewer where a whole run is known to take less."""


@dataclass
class Soak:
    """What happened."""

    folder: Path
    kills: list[str] = field(default_factory=list)
    n_runs: int = 0
    violations: list[str] = field(default_factory=list)


def soak(plan: Plan, folder: Path) -> Soak:
    """Kill and continue until `n_kills` hit something, run to the end, check."""
    rng = random.Random(plan.seed)
    done = Soak(folder)
    study, whole_s = 0, [0.0]
    while len(done.kills) < plan.n_kills:
        name, is_begun = f"soak{study}", False
        study += 1
        while len(done.kills) < plan.n_kills:
            span_s = min(plan.span_s, 1.1 * max(whole_s)) or plan.span_s
            after_s, victim = rng.random() * span_s, rng.choice(VICTIMS)
            if plan.signals and rng.random() < 0.5:
                victim = rng.choice(GROUP_SIGNALS)
            began, is_whole = time.monotonic(), not is_begun
            code, is_begun = _run_and_kill(plan, folder, name, after_s, victim, done), True
            if code == 0:  # it came to its end before the kill: check it, begin another
                if is_whole and time.monotonic() - began < after_s:
                    whole_s.append(time.monotonic() - began)
                break
            if code > 0 and code not in (1, 6) and (code, plan.signals) != (130, True):
                done.violations.append(f"{name}: exit code {code} after a kill")
        _finish(plan, folder, name, done)
        done.violations += [f"{name}: {v}" for v in check(folder, name, plan)]
    return done


def command(plan: Plan, study: str, n_runs: int = 0) -> list[str]:
    """The search, as a user types it for the `n_runs`-th time."""
    population = plan.population if plan.population != "mixed" else ("auto", "1")[n_runs % 2]
    return [
        sys.executable, "-m", "sweep", "run", "--study", study, "--trials", str(plan.n_trials),
        "--epochs", str(plan.epochs), "--population", population, "--threads", "1",
        *plan.flags, *(("--keep", str(plan.keep)) if plan.keep else ()),
    ]  # fmt: skip


def _run_and_kill(
    plan: Plan, folder: Path, study: str, after_s: float, victim: str, done: Soak
) -> int:
    """Exit code of the search; negative: it was killed."""
    done.n_runs += 1
    arguments, out_file = command(plan, study, done.n_runs), folder / f"out{done.n_runs}.txt"
    if victim in GROUP_SIGNALS:  # what is saved is saved for the signal
        arguments += ["--checkpoint-interval", "1000", "--verbose"]
        after_s /= 4
    running = _in_state(folder, study, "RUNNING").keys()
    with out_file.open("wb") as out:
        process = subprocess.Popen(
            arguments, cwd=folder, stdout=out, stderr=out, start_new_session=True
        )
    if victim in GROUP_SIGNALS:  # there is nothing to save before the first epoch
        while process.poll() is None and "epoch=" not in out_file.read_text():
            time.sleep(0.02)
    began = time.monotonic()
    while process.poll() is None and time.monotonic() - began < after_s:
        time.sleep(0.01)
    if process.poll() is not None:
        return process.returncode
    workers = _children(process.pid)
    if victim in GROUP_SIGNALS:
        os.killpg(process.pid, signal.Signals[victim])
        done.kills.append(f"{study} {victim} to the group {after_s:.2f} s after an epoch")
        code = process.wait(LONGEST_RUN_S)
        _wait_for_end(workers)
        said = out_file.read_text()
        begun = _in_state(folder, study, "RUNNING").keys() - running
        if code < 0 and begun:
            done.violations.append(f"{done.kills[-1]}: ended by it with trials {begun} RUNNING")
        if "Traceback" in said:
            done.violations.append(f"{done.kills[-1]}: a traceback: {said[-500:]}")
        if "saved" in said:
            done.violations += [f"{done.kills[-1]}: {one}" for one in unsaved(folder, study)]
        return code
    targets = {"driver": [process.pid], "worker": workers, "both": [process.pid, *workers]}[victim]
    if not targets:
        targets, victim = [process.pid], "driver"
    for pid in targets:
        _kill(pid)
    done.kills.append(f"{study} {victim} after {after_s:.2f} s")
    if victim == "worker":
        return process.wait(LONGEST_RUN_S)  # the search must go on by itself
    process.wait()
    _wait_for_end(workers)
    return -9


def _in_state(folder: Path, study: str, state: str) -> dict[int, int]:
    """Trials in that state -> epochs that Optuna has of them."""
    statement = (
        "SELECT number, count(step) FROM trials JOIN studies USING (study_id) "
        "LEFT JOIN trial_intermediate_values USING (trial_id) "
        "WHERE study_name = ? AND state = ? GROUP BY number"
    )
    try:
        return dict(query(folder / "mlruns" / "optuna.db", statement, study, state))
    except sqlite3.OperationalError:  # not made yet
        return {}


def unsaved(folder: Path, study: str) -> list[str]:
    """Interrupted trials whose resume file lacks epochs that Optuna has."""
    import torch

    lost = []
    for number, n_epochs in _in_state(folder, study, "WAITING").items():
        file = folder / "mlruns" / ".sweep" / study / "trials" / f"{number:05d}" / "last.ckpt"
        n_saved = 0
        if file.is_file():
            n_saved = len(torch.load(file, weights_only=True)["sweep"]["history"])
        if n_saved < n_epochs:
            lost.append(f"trial {number} has {n_epochs} epochs, its resume file {n_saved}")
    return lost


def _finish(plan: Plan, folder: Path, study: str, done: Soak) -> None:
    done.n_runs += 1
    result = subprocess.run(
        command(plan, study), cwd=folder, capture_output=True, text=True, timeout=LONGEST_RUN_S
    )
    if result.returncode:
        done.violations.append(
            f"{study}: the last run left with {result.returncode}: {result.stderr}"
        )


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        return [int(child) for child in path.read_text().split() if _is_worker(int(child))]
    except OSError:
        return []


def _is_worker(pid: int) -> bool:
    try:
        return b"sweep.executors.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _wait_for_end(pids: list[int]) -> None:
    """A worker leaves by itself within a second or two of its driver's death."""
    deadline = time.monotonic() + PATIENCE_S
    for pid in pids:
        while _is_worker(pid) and time.monotonic() < deadline:
            time.sleep(0.05)


def check(folder: Path, study: str, plan: Plan) -> list[str]:
    """Everything that Optuna, MLflow and the files must say of a finished study."""
    import optuna

    from sweep.tracking.uri import quiet

    with quiet():  # MLflow warns of itself while it is loaded
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
        client.search_experiments(max_results=1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder}/mlruns/optuna.db")
    trials = optuna.load_study(study_name=study, storage=storage).trials
    found = _check_trials(trials, plan)
    experiment = client.get_experiment_by_name(study)
    if experiment is None:
        return [*found, "MLflow has no experiment"]
    runs = list(client.search_runs([experiment.experiment_id], max_results=1000))
    complete = [t for t in trials if t.state.name == "COMPLETE"]
    best = sorted(complete, key=lambda t: (-t.value, t.number))[: plan.keep]
    kept = {t.number for t in best}
    found += _check_runs(client, trials, runs, kept)
    models = client.search_logged_models([experiment.experiment_id], max_results=1000)
    of_run = Counter(model.source_run_id for model in models)
    found += [f"run {run} has {n} models" for run, n in of_run.items() if n != 1]
    if len(of_run) != len(kept):
        found.append(f"{len(of_run)} logged models for {len(kept)} trials that keep theirs")
    return found + _check_files(folder, study, kept)


def _check_files(folder: Path, study: str, kept: set[int]) -> list[str]:
    """The work folder has files of kept trials only, and the doctor finds nothing."""
    from sweep.config.settings import RunConfig
    from sweep.ledger.study import open_study
    from sweep.repair.doctor import examine
    from sweep.reuse.best import located

    trials = folder / "mlruns" / ".sweep" / study / "trials"
    here = {int(path.name) for path in trials.iterdir()}
    found = [f"{study} still has files of {sorted(here - kept)}"] if here - kept else []
    where = RunConfig(
        storage=f"sqlite:///{folder}/mlruns/optuna.db",
        tracking_uri=f"sqlite:///{folder}/mlflow.db",
        work_dir=f"{folder}/mlruns/.sweep",
    )
    ledger = open_study(where.storage, study)
    found += [str(one) for one in examine(located(where, ledger), ledger, fix=False)]
    ledger.close()
    return found


def _check_trials(trials, plan: Plan) -> list[str]:
    states = Counter(t.state.name for t in trials)
    found = []
    if states["COMPLETE"] + states["PRUNED"] + states["FAIL"] != plan.n_trials:
        found.append(f"{dict(states)} instead of {plan.n_trials} finished trials")
    if states["FAIL"]:
        found.append(f"{states['FAIL']} trials failed")
    seen = Counter(str(t.user_attrs["sweep:hyperparameters"]) for t in trials)
    found += [f"trained {n} times: {h}" for h, n in seen.items() if n > 1]
    for trial in trials:
        if sorted(trial.intermediate_values) != list(range(1, plan.epochs + 1)):
            found.append(f"trial {trial.number} has epochs {sorted(trial.intermediate_values)}")
    return found


def _check_runs(client, trials, runs, kept) -> list[str]:
    status = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}
    by_number = {}
    found = []
    for run in runs:
        if run.data.tags.get("sweep.role") == "study":
            if run.info.status != "FINISHED":
                found.append(f"the study's run is {run.info.status}")
            continue
        by_number.setdefault(int(run.data.tags["sweep.trial"]), []).append(run)
    for trial in trials:
        of_trial = by_number.pop(trial.number, [])
        if len(of_trial) != 1:
            found.append(f"trial {trial.number} has {len(of_trial)} runs")
            continue
        run = of_trial[0]
        if run.info.status != status.get(trial.state.name):
            found.append(f"trial {trial.number} is {trial.state.name}, its run {run.info.status}")
        for metric in ("train_loss", "val_loss", "val_acc"):
            points = client.get_metric_history(run.info.run_id, metric)
            if sorted(p.step for p in points) != sorted(trial.intermediate_values):
                found.append(f"trial {trial.number} {metric}: steps {[p.step for p in points]}")
        values = {p.step: p.value for p in client.get_metric_history(run.info.run_id, "val_acc")}
        if values != trial.intermediate_values:
            found.append(f"trial {trial.number}: MLflow's curve is not Optuna's")
        if trial.state.name == "COMPLETE":
            files = [f.path for f in client.list_artifacts(run.info.run_id, "checkpoint")]
            if files != ["checkpoint/best.ckpt"] * (trial.number in kept):
                found.append(f"trial {trial.number} has artifacts {files}")
    found += [f"runs of unknown trial {number}" for number in by_number]
    return found


def main() -> None:
    """Soak from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--population", default="auto")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--keep", type=int)
    parser.add_argument("--signals", action="store_true", help="also signals to the group")
    args = parser.parse_args()
    print(f"seed {args.seed}")
    plan = Plan(
        args.seed, args.kills, n_trials=args.trials, epochs=args.epochs, keep=args.keep,
        population=args.population, signals=args.signals,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        done = soak(plan, Path(folder))
    print("\n".join(done.kills))
    print(f"{len(done.kills)} kills in {done.n_runs} runs, {len(done.violations)} violations")
    print("\n".join(done.violations))
    sys.exit(bool(done.violations))


if __name__ == "__main__":
    main()
