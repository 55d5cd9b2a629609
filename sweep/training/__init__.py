"""How trials are trained. Importing this package loads nothing heavy."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from sweep.config import DEFAULT_MODULE
from sweep.datasets import is_custom
from sweep.imports import deferred
from sweep.training.choice import foreseen_slots, path_of, why_plain
from sweep.trial import Task, Trainer

if TYPE_CHECKING:
    from sweep.training.data import SearchData

__all__ = ["foreseen_slots", "make_trainer", "path_of", "why_plain"]


def make_trainer(task: Task) -> Trainer:
    """The trainer for `task`: fused where it can be, else plain. Loads torch and Lightning.

    A population of 1 asks for the plain path, unless it is what is left of a larger one. A plain
    trainer that was not asked for says why in its first report. A trial that was begun in the
    other path goes on there. Raises what `sweep.training.data.load_search_data` lists.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="data") as beside:
        # Unpacking MNIST takes 0.4 s, in which Python's lock is mostly free for the imports.
        # Data of the user's own are a program, which runs in the main thread.
        data = None if is_custom(task.data) else beside.submit(_load, task).result
        if data is not None and task.module == DEFAULT_MODULE:  # nothing of the user's runs here
            with deferred("scipy.signal", "hamming"):
                import lightning  # noqa: F401
        from sweep.training.paths import BothPaths

        if path_of(task) == "fused":
            from sweep.training.fused import FusedTrainer

            return BothPaths(task, "fused", FusedTrainer(task, data))
        from sweep.training.single import PlainTrainer

        if task.population == 1 and not task.was_larger:
            return BothPaths(task, "plain", PlainTrainer(task, data))
        notice = f"one trial at a time, in the plain path: {why_plain(task)}"
        return PlainTrainer(task, data, notice=notice)


def _load(task: Task) -> SearchData:
    from sweep.training.data import load_search_data

    return load_search_data(task.data, task.data_dir, task.seed)
