"""Studies for the tests of the report: written by the real ledger, trained by a formula."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sweep.config.settings import RunConfig
from sweep.ledger.study import Ledger, create_study
from sweep.ledger.trials import BASELINE
from sweep.search.proposals import Proposals
from sweep.search.study import stored_config
from sweep.space import parse_space
from sweep.trial import DatasetInfo, EpochReport, Failure, TrialFinished, TrialState

SPACE = """parameters:
  optimizer: {choices: [SGD, Adam, RMSprop]}
  lr: {float: [1e-4, 0.3], log: true}
  hidden: {widths: [32, 512], layers: [1, 3]}
  dropout: {float: [0.0, 0.5]}
  batch_size: {choices: [32, 64, 128]}
  momentum: {float: [0.0, 0.95], when: {optimizer: [SGD, RMSprop]}}
"""
START_MS = 1_780_000_000_000
Score = Callable[[dict[str, Any], random.Random], float]


def accuracy(values: dict[str, Any], rng: random.Random) -> float:
    """Depends on lr, on the optimizer and on the first width; not on dropout."""
    off = math.log10(values["lr"] / (3e-3 if values["optimizer"] == "Adam" else 3e-2))
    width = math.log2(values["hidden"][0] / 32) / 4 if values.get("hidden") else 0.5
    bonus = {"Adam": 0.01, "RMSprop": 0.005}.get(values["optimizer"], 0.0)
    return 0.95 - 0.02 * off * off + 0.02 * width + bonus + rng.gauss(0, 0.004)


def folder_config(folder: Path, **settings: Any) -> RunConfig:
    """Settings of a study whose stores are in `folder`, with the usual names."""
    given: dict[str, Any] = {
        "study": "digits-mlp", "sampler": "random",
        "storage": f"sqlite:///{folder}/mlruns/optuna.db", "work_dir": f"{folder}/mlruns/.sweep",
        "tracking_uri": f"sqlite:///{folder}/mlflow.db",
    }  # fmt: skip
    return RunConfig(**(given | settings))


def write_study(
    folder: Path, n_trials: int, *, space: str = SPACE, score: Score = accuracy,
    has_baseline: bool = True, states: str = "CCCPCCCCFCCPCCCC", **settings: Any,
) -> RunConfig:  # fmt: skip
    """Trials with a curve each; `states` are repeated, C complete, P pruned, F failed."""
    config = folder_config(folder, trials=n_trials, **settings)
    (folder / "mlruns").mkdir(exist_ok=True)
    parsed = parse_space(space, "mlp", is_mlp=False)
    ledger, _ = create_study(config.storage, config.study_name, config.resolved_direction)
    ledger.describe(stored_config(config), space)
    ledger.note_tags({"mlflow.source.git.commit": "0123abc", "sweep.version.torch": "2.13.0"})
    ledger.note_data(DatasetInfo("digits", "scikit-learn", "d" * 32, (1, 8, 8), 10, 1347, 270))
    proposals = Proposals(parsed, config)
    for number in range(n_trials):
        proposal = proposals.ask(number)
        assert proposal is not None
        if has_baseline and number == 0:
            proposal.frozen.user_attrs[BASELINE] = True
        ledger.open_trial(number, proposal.frozen)
        values = dict(proposal.hyperparameters)
        letter = "C" if number == 0 else states[number % len(states)]
        close(ledger, config, number, values, letter, score)
    ledger.close()
    return config


def close(
    ledger: Ledger, config: RunConfig, number: int, values: dict[str, Any], letter: str,
    score: Score,
) -> None:  # fmt: skip
    """A curve that rises to its score, and the trial's end."""
    rng = random.Random(number)
    final, n_epochs = score(values, rng), config.epochs if letter == "C" else 3
    best_at = max(1, min(n_epochs, round(0.6 * config.epochs)))
    reports = []
    for epoch in range(1, n_epochs + 1):
        rest = 0.3 * abs(final) * (math.exp(-epoch) - math.exp(-best_at)) if epoch < best_at else 0
        rest = rest + 0.001 * (epoch > best_at) if math.isfinite(final) else 0
        value = final - rest if config.resolved_direction == "maximize" else final + rest
        metrics = {config.metric: value, "epoch_s": 0.05}
        reports.append(EpochReport(number, epoch, metrics, START_MS + 1000 * number + epoch))
    if letter == "F":
        kind, message = ("nan", "train_loss is nan") if number % 3 else ("oom", "out of memory")
        record = TrialFinished(
            number, TrialState.FAIL, START_MS, None, None, {}, n_epochs,
            failure=Failure(kind, message),
        )  # fmt: skip
    else:
        state = TrialState.COMPLETE if letter == "C" else TrialState.PRUNED
        best = reports[best_at - 1].metrics
        record = TrialFinished(
            number, state, START_MS, best[config.metric], best_at, best, n_epochs
        )
    ledger.close_trial(record, reports, config.metric, f"t{number:03d} {values.get('optimizer')}")
