"""How trials are trained. Importing this package loads nothing heavy."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from sweep.data.catalog import is_custom
from sweep.protocols import Trainer
from sweep.training.choice import path_of, precision_of, why_plain
from sweep.training.fluent import nothing_logged
from sweep.trial import Task

if TYPE_CHECKING:
    from sweep.data.tensors import TensorData

__all__ = ["make_trainer", "why_plain"]


def make_trainer(task: Task) -> Trainer:
    """The trainer for `task`: fused where it can be, else plain. Loads torch and Lightning.

    A population of 1 asks for the plain path, unless it is what is left of a larger one. A plain
    trainer that was not asked for says why. Raises what `sweep.data.tensors.load_search_data`
    lists.
    """
    with ThreadPoolExecutor(2, thread_name_prefix="beside") as beside:
        # Unpacking MNIST takes 0.4 s, in which Python's lock is mostly free for the imports.
        # Data of the user's own are a program, which runs in the main thread.
        data = None if is_custom(task.data) else beside.submit(_load, task).result
        if path_of(task) == "fused" and task.accelerator in ("auto", "cpu"):
            beside.submit(_compile, task)
        if path_of(task) == "fused":
            from sweep.training.fused.trainer import FusedTrainer

            is_users = is_custom(task.data)
            with nothing_logged(task.work_dir) if is_users else contextlib.nullcontext():
                return FusedTrainer(task, data)
        from sweep.training.plain.trainer import PlainTrainer

        why = None if task.population == 1 and not task.was_larger else why_plain(task)
        notice = f"one trial at a time, in the plain path: {why}" if why else ""
        return PlainTrainer(task, data, notice=notice)


def _compile(task: Task) -> None:
    """Have the kernel ready, which takes a second where the user's cache does not have it."""
    from sweep.training.compiled.kernel import load_kernel

    load_kernel(8 if precision_of(task) == "64-true" else 4)


def _load(task: Task) -> TensorData:
    from sweep.data.tensors import load_search_data

    return load_search_data(task.data, task.data_dir, task.seed)
