"""How trials are trained. Importing this package loads nothing heavy."""

from __future__ import annotations

from sweep.trial import Task, Trainer


def make_trainer(task: Task) -> Trainer:
    """The trainer for `task`: loads torch and Lightning."""
    from sweep.training.single import PlainTrainer

    return PlainTrainer(task)
