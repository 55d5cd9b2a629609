"""Which path trains a task's trials, said without loading torch: the driver asks, too."""

from __future__ import annotations

from sweep.config import DEFAULT_MODULE
from sweep.trial import Task, TrainerName

FUSED_PRECISIONS = ("32-true", "64-true")
"""Precisions that the hand-written backward pass knows."""
MOST_SLOTS = 32
"""A judgement, not a measurement: more proposals at a time teach a sampler too little, and past
16 slots a model-step gets no cheaper (benchmarks/NOTES.md)."""


def path_of(task: Task) -> TrainerName:
    """The path in which a worker trains new trials."""
    is_asked_for = task.population == 1 and not task.was_larger
    return "plain" if is_asked_for or why_plain(task) else "fused"


def why_plain(task: Task) -> str | None:
    """Why no trial of `task` can be fused, in a few words; None: they can."""
    if task.module != DEFAULT_MODULE:
        return f"{task.module} is not {DEFAULT_MODULE}"
    if precision_of(task) not in FUSED_PRECISIONS:
        return f"precision {task.precision} is not one of {', '.join(FUSED_PRECISIONS)}"
    if task.devices.isdigit() and int(task.devices) > 1:
        return f"{task.devices} devices for one trial"
    return None


def precision_of(task: Task) -> str:
    """The precision in Lightning's longer words.

    >>> from sweep.testing import example_task
    >>> from pathlib import Path
    >>> precision_of(example_task(Path(), precision="64"))
    '64-true'
    """
    return {"32": "32-true", "64": "64-true"}.get(str(task.precision), str(task.precision))


def most_slots(task: Task) -> int:
    """How many trials one worker trains at a time at most; memory may leave room for fewer."""
    return 1 if path_of(task) == "plain" else task.population or MOST_SLOTS
