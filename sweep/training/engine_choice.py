"""Choice of the training path (fused or plain). Free of torch: the driver imports it, too."""

from __future__ import annotations

from typing import Literal

from sweep.environment.sources import calls_mlflow
from sweep.hyperparameters import DEFAULT_MODULE
from sweep.trial import Task

FUSED_PRECISIONS = ("32-true", "64-true")
"""Precisions supported by the fused trainer."""
MOST_SLOTS = 32
"""Most trials in a population. A judgement, not a measurement: a sampler learns too little from
more proposals at a time, and past 16 slots a model-step gets no cheaper (benchmarks/NOTES.md)."""


def path_of(task: Task) -> Literal["plain", "fused"]:
    """The training path for a worker's new trials."""
    is_asked_for = task.population == 1 and not task.was_larger
    is_users = task.module != DEFAULT_MODULE
    return "plain" if is_asked_for or is_users or why_plain(task) else "fused"


def why_plain(task: Task) -> str | None:
    """The reason against training several trials of `task` at a time, in a few words; None: there
    is none."""
    if task.module != DEFAULT_MODULE:
        return _why_plain_module(task)
    if precision_of(task) not in FUSED_PRECISIONS:
        return f"precision {task.precision} is not one of {', '.join(FUSED_PRECISIONS)}"
    if task.n_devices > 1:
        return f"{task.n_devices} devices for one trial"
    return None


def _why_plain_module(task: Task) -> str | None:
    """The reason for a module of the user's."""
    if task.population == 1 and not task.was_larger:
        return "--population 1"
    if task.n_devices > 1:
        return f"{task.n_devices} devices for one trial"
    if calls_mlflow(task.module) or calls_mlflow(task.data):
        return "its metrics come by MLflow's own calls"
    return None


def precision_of(task: Task) -> str:
    """The precision under its longer name in Lightning.

    >>> from sweep.testing import example_task
    >>> from pathlib import Path
    >>> precision_of(example_task(Path(), precision="64"))
    '64-true'
    """
    return {"32": "32-true", "64": "64-true"}.get(str(task.precision), str(task.precision))
