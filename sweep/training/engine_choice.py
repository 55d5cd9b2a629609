"""Choice of the training path (fused or plain). Free of torch: the driver imports it, too."""

from __future__ import annotations

from typing import Literal

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
    return "plain" if is_asked_for or why_plain(task) else "fused"


def why_plain(task: Task) -> str | None:
    """The reason against fused training of `task`, in a few words; None: there is none."""
    if task.module != DEFAULT_MODULE:
        return f"{task.module} is not {DEFAULT_MODULE}"
    if precision_of(task) not in FUSED_PRECISIONS:
        return f"precision {task.precision} is not one of {', '.join(FUSED_PRECISIONS)}"
    if task.devices.isdigit() and int(task.devices) > 1:
        return f"{task.devices} devices for one trial"
    return None


def precision_of(task: Task) -> str:
    """The precision under its longer name in Lightning.

    >>> from sweep.testing import example_task
    >>> from pathlib import Path
    >>> precision_of(example_task(Path(), precision="64"))
    '64-true'
    """
    return {"32": "32-true", "64": "64-true"}.get(str(task.precision), str(task.precision))
