"""A trial as the Optuna storage keeps it: attributes, curves, result."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial

from sweep.objective import Objective
from sweep.trial import Direction, EpochReport, TrialFinished, TrialState, seconds_of

HYPERPARAMETERS = "sweep:hyperparameters"
RESULT = "sweep:result"
START_EPOCH = "sweep:start_epoch"
BASELINE = "sweep:baseline"
"""User attribute of a trial with the constructors' defaults, the first of its study."""
SETTINGS = "sweep:settings"
REPORTS = "sweep:reports"
"""Prefix of the system attributes with all metrics of a trial, a list of epochs each."""
FIXED_PARAMS = "fixed_params"
"""Optuna's system attribute of a queued trial (`enqueue_trial`)."""
N_NUMBERS_A_BLOCK = 2000  # of 25 characters at most: a text in MySQL has 65,535
RESULT_FIELDS = (
    "name", "best_epoch", "n_epochs", "metrics", "seconds", "has_checkpoint", "has_model",
    "failure", "time_ms",
)  # fmt: skip
"""Entries of a trial's result; all others are tags."""
LONGEST_TRACEBACK = 20_000
"""Characters of a traceback in the ledger; MLflow's traceback.txt has all of them."""


@dataclass(frozen=True)
class LedgerTrial:
    """A trial in the storage."""

    number: int
    state: TrialState
    value: float | None
    params: Mapping[str, Any]
    hyperparameters: Mapping[str, Any]
    """Resolved hyperparameters; lists are tuples."""
    result: Mapping[str, Any]
    """RESULT_FIELDS and tags; empty while the trial runs."""
    curve: Mapping[int, float]
    """Objective by epoch."""
    start_epoch: int
    """Epoch of the population at the trial's first start."""
    frozen: FrozenTrial = field(repr=False)
    report_blocks: Sequence[Any] = field(default=(), repr=False)
    """All metrics by epoch, as they are stored: see `reports`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The study's settings at that time, if they have changed since."""

    @property
    def reports(self) -> list[EpochReport]:
        """All metrics by epoch; empty until the trial ends or is interrupted."""
        return [
            EpochReport(self.number, epoch, {k: float(v) for k, v in metrics.items()}, time_ms)
            for block in self.report_blocks
            for epoch, time_ms, metrics in block
        ]

    @property
    def is_foreign(self) -> bool:
        """Whether another program created it, e.g. by `enqueue_trial`."""
        return not isinstance(self.frozen.user_attrs.get(HYPERPARAMETERS), Mapping)

    @property
    def queued(self) -> Mapping[str, Any] | None:
        """The parameters given to Optuna's `enqueue_trial`; None if the trial is not queued."""
        fixed = self.frozen.system_attrs.get(FIXED_PARAMS)
        return fixed if self.state is TrialState.WAITING and isinstance(fixed, Mapping) else None


@dataclass(frozen=True)
class StudySummary:
    """One line of `sweep list`."""

    name: str
    direction: Direction
    n_by_state: Mapping[str, int]
    best_value: float | None
    best_number: int | None
    config: Mapping[str, Any] = field(repr=False)


def best_trial(trials: Sequence[LedgerTrial], direction: Direction) -> LedgerTrial | None:
    """The completed trial with the best value, the earliest of equals; None without any."""
    return Objective("", direction).best(trials)


def tuples(value: Any) -> Any:
    """`value` with tuples in place of JSON's lists, at any depth."""
    if isinstance(value, list | tuple):
        return tuple(tuples(item) for item in value)
    return value


def report_attrs(reports: Sequence[EpochReport]) -> dict[str, Any]:
    """System attributes with all metrics of a trial, [epoch, time in ms, metrics] per epoch."""
    attrs: dict[str, list[Any]] = {}
    n_numbers = N_NUMBERS_A_BLOCK
    for report in reports:
        if n_numbers + len(report.metrics) + 2 > N_NUMBERS_A_BLOCK and report.metrics:
            attrs[f"{REPORTS}:{len(attrs)}"] = []
            n_numbers = 0
        # JSON has no NaN and no infinity: those go as words.
        metrics = {k: v if math.isfinite(v) else str(v) for k, v in report.metrics.items()}
        attrs[f"{REPORTS}:{len(attrs) - 1}"].append([report.epoch, report.time_ms, metrics])
        n_numbers += len(report.metrics) + 2
    return attrs


def result_of(
    record: TrialFinished, name: str, epochs: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    """The result of an ended trial (RESULT_FIELDS and tags); `epochs` are its metrics."""
    failure = record.failure
    return {
        "name": name,
        "best_epoch": record.best_epoch,
        "n_epochs": record.n_epochs,
        "metrics": dict(record.best_metrics),
        "seconds": seconds_of(epochs),
        "has_checkpoint": record.checkpoint is not None,
        "has_model": record.model_file is not None,
        "time_ms": record.time_ms,
        "failure": failure and {
            "kind": failure.kind, "message": failure.message,
            "traceback": _last_lines(failure.traceback),
        },
        **record.tags,
    }  # fmt: skip


def _last_lines(text: str) -> str:
    """The end of a traceback, which names the error, at most LONGEST_TRACEBACK characters."""
    if len(text) <= LONGEST_TRACEBACK:
        return text
    _, _, rest = text[-LONGEST_TRACEBACK:].partition("\n")
    return f"...\n{rest}"


def from_frozen(trial: FrozenTrial) -> LedgerTrial:
    """A trial of the storage."""
    user, system = trial.user_attrs, trial.system_attrs
    hyperparameters = _mapping(user.get(HYPERPARAMETERS)) or trial.params
    names = [key for key in system if key.startswith(f"{REPORTS}:")]
    frozen = copy.copy(trial)  # a sampler copies what a trial has: without its curves
    frozen.system_attrs = {key: value for key, value in system.items() if key not in names}
    return LedgerTrial(
        number=trial.number,
        state=TrialState(trial.state.name),
        value=trial.value if trial.values is not None else None,
        params=trial.params,
        hyperparameters={k: tuples(v) for k, v in hyperparameters.items()},
        result=_mapping(user.get(RESULT)),
        curve=trial.intermediate_values,
        report_blocks=[system[f"{REPORTS}:{at}"] for at in range(len(names))],
        start_epoch=user.get(START_EPOCH, 0),
        settings=_mapping(user.get(SETTINGS)),
        frozen=frozen,
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    """`value`; an empty mapping for anything else, e.g. an attribute damaged by a dashboard."""
    return value if isinstance(value, Mapping) else {}
