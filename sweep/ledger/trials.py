"""A trial as the Optuna storage keeps it: its attributes, its curves, its end."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial

from sweep.objective import Objective
from sweep.trial import Direction, EpochReport, TrialState

HYPERPARAMETERS = "sweep:hyperparameters"
RESULT = "sweep:result"
START_EPOCH = "sweep:start_epoch"
SETTINGS = "sweep:settings"
REPORTS = "sweep:reports"
"""Prefix of the system attributes with all metrics of a trial, a list of epochs each."""
N_NUMBERS_A_BLOCK = 2000  # of 25 characters at most: a text in MySQL has 65,535


@dataclass(frozen=True)
class LedgerTrial:
    """A trial as the storage has it."""

    number: int
    state: TrialState
    value: float | None
    params: Mapping[str, Any]
    hyperparameters: Mapping[str, Any]
    """Resolved hyperparameters; lists are tuples."""
    result: Mapping[str, Any]
    """best_epoch, n_epochs, checkpoint, metrics, seconds, failure; empty while it runs."""
    curve: Mapping[int, float]
    """Objective by epoch."""
    start_epoch: int
    """Population epoch that it first started in."""
    frozen: FrozenTrial = field(repr=False)
    report_blocks: Sequence[Any] = field(default=(), repr=False)
    """All metrics by epoch, as they are stored: see `reports`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the study's settings were in its time, where the study took others since."""

    @property
    def reports(self) -> list[EpochReport]:
        """All metrics of its epochs; empty before the trial ended or was interrupted."""
        return [
            EpochReport(self.number, epoch, {k: float(v) for k, v in metrics.items()}, time_ms)
            for block in self.report_blocks
            for epoch, time_ms, metrics in block
        ]

    @property
    def is_foreign(self) -> bool:
        """Whether another program made it, e.g. by `enqueue_trial` or in a dashboard."""
        return not isinstance(self.frozen.user_attrs.get(HYPERPARAMETERS), Mapping)

    @property
    def queued(self) -> Mapping[str, Any]:
        """The parameters that Optuna's `enqueue_trial` asks for; empty where it was not called."""
        fixed = self.frozen.system_attrs.get("fixed_params")
        return fixed if self.state is TrialState.WAITING and isinstance(fixed, Mapping) else {}


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
    """The completed trial with the best value; the earliest of equals; None where none is."""
    return Objective("", direction).best(trials)


def summarise(
    name: str, direction: Direction, config: Mapping[str, Any], trials: Sequence[LedgerTrial]
) -> StudySummary:
    """Counts by state and the best trial."""
    counts = {str(s): sum(t.state is s for t in trials) for s in TrialState}
    best = best_trial(trials, direction)
    value, number = (best.value, best.number) if best else (None, None)
    return StudySummary(name, direction, counts, value, number, config)


def tuples(value: Any) -> Any:
    """`value` with every list, as JSON gives it back, made a tuple."""
    if isinstance(value, list | tuple):
        return tuple(tuples(item) for item in value)
    return value


def report_attrs(reports: Sequence[EpochReport]) -> dict[str, Any]:
    """All metrics of a trial as attributes: [epoch, time in ms, metrics] for each epoch."""
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


def from_frozen(trial: FrozenTrial) -> LedgerTrial:
    """What sweep reads from a trial of the storage."""
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
    """`value`; an empty mapping for anything else, e.g. what a dashboard made of an attribute."""
    return value if isinstance(value, Mapping) else {}
