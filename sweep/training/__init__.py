"""Training of trials. Importing this package loads neither torch nor Lightning."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from sweep.data.catalog import MODULES_OWN, is_custom
from sweep.protocols import Trainer
from sweep.training.engine_choice import path_of, precision_of, why_plain
from sweep.training.mlflow_calls import nothing_logged
from sweep.trial import Task

if TYPE_CHECKING:
    from sweep.data.tensors import TensorData

__all__ = ["make_trainer", "why_plain"]


def make_trainer(task: Task) -> Trainer:
    """The trainer for `task`: fused if possible, else plain. Loads torch and Lightning.

    A population of 1 selects the plain path, unless it was halved from a larger one. A plain
    trainer selected for another reason reports it to the user. Raises the errors of
    `sweep.data.tensors.load_search_data`.
    """
    if task.is_deterministic:
        import torch

        torch.use_deterministic_algorithms(True, warn_only=True)
    if task.kind == "objective":
        from sweep.training.plain.function import FunctionTrainer

        return FunctionTrainer(task)
    with ThreadPoolExecutor(2, thread_name_prefix="beside") as beside:
        # Decompressing MNIST takes 0.4 s and mostly releases the GIL, so the imports run beside
        # it. A user's data function is arbitrary code: it runs in the main thread.
        is_users = is_custom(task.data) or task.data == MODULES_OWN
        data = None if is_users else beside.submit(_load, task).result
        if path_of(task) == "fused" and task.accelerator in ("auto", "cpu"):
            beside.submit(_compile, task)
        if path_of(task) == "fused":
            from sweep.training.fused.trainer import FusedTrainer

            with nothing_logged(task.work_dir) if is_users else contextlib.nullcontext():
                return FusedTrainer(task, data)
        from sweep.training.plain.trainer import PlainTrainer

        why = None if task.population == 1 and not task.was_larger else why_plain(task)
        notice = f"one trial at a time, in the plain path: {why}" if why else ""
        return PlainTrainer(task, data, notice=notice)


def _compile(task: Task) -> None:
    """Load the kernel ahead of time: compiling it for an empty cache takes a second."""
    from sweep.training.compiled.kernel import load_kernel

    load_kernel(8 if precision_of(task) == "64-true" else 4)


def _load(task: Task) -> TensorData:
    from sweep.data.tensors import load_search_data

    return load_search_data(task.data, task.data_dir, task.seed)
