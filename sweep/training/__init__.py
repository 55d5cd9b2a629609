"""How trials are trained. Importing this package loads nothing heavy."""

from __future__ import annotations

from sweep.trial import Task, Trainer


def make_trainer(task: Task) -> Trainer:
    """The trainer for `task`: fused where it can be, else plain. Loads torch and Lightning.

    A population of 1 asks for the plain path, unless it is what is left of a larger one. A plain
    trainer that was not asked for says why in its first report. A trial that was begun in the
    other path goes on there.
    """
    from sweep.training.paths import BothPaths
    from sweep.training.single import PlainTrainer

    if task.population == 1 and not task.was_larger:
        return BothPaths(task, "plain", PlainTrainer(task))
    from sweep.training.fused import FusedTrainer, why_plain

    reason = why_plain(task)
    if reason is None:
        return BothPaths(task, "fused", FusedTrainer(task))
    return PlainTrainer(task, notice=f"one trial at a time, in the plain path: {reason}")
