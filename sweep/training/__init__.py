"""How trials are trained. Importing this package loads nothing heavy."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from sweep.config import DEFAULT_MODULE
from sweep.datasets import is_custom
from sweep.imports import deferred
from sweep.training.choice import foreseen_slots, path_of, precision_of, why_plain
from sweep.training.fluent import nothing_logged
from sweep.trial import Task, Trainer

if TYPE_CHECKING:
    from sweep.training.data import SearchData

__all__ = ["foreseen_slots", "make_trainer", "path_of", "why_plain"]


def make_trainer(task: Task, *, is_own_process: bool = False) -> Trainer:
    """The trainer for `task`: fused where it can be, else plain. Loads torch and Lightning.

    A population of 1 asks for the plain path, unless it is what is left of a larger one. A plain
    trainer that was not asked for says why in its first report. A trial that was begun in the
    other path goes on there. Raises what `sweep.training.data.load_search_data` lists.

    Args:
        task: What all trials share.
        is_own_process: Nobody else will ever use torch and Lightning in this process.
    """
    with ThreadPoolExecutor(2, thread_name_prefix="beside") as beside:
        # Unpacking MNIST takes 0.4 s, in which Python's lock is mostly free for the imports.
        # Data of the user's own are a program, which runs in the main thread.
        data = None if is_custom(task.data) else beside.submit(_load, task).result
        if path_of(task) == "fused" and task.accelerator in ("auto", "cpu"):
            beside.submit(_compile, task)
        if data is not None and task.module == DEFAULT_MODULE:  # nothing of the user's runs here
            _load_lightning(is_own_process=is_own_process)
        from sweep.training.paths import BothPaths

        if path_of(task) == "fused":
            from sweep.training.fused import FusedTrainer

            is_users = is_custom(task.data)
            with nothing_logged(task.work_dir) if is_users else contextlib.nullcontext():
                return BothPaths(task, "fused", FusedTrainer(task, data))
        from sweep.training.single import PlainTrainer

        if task.population == 1 and not task.was_larger:
            return BothPaths(task, "plain", PlainTrainer(task, data))
        notice = f"one trial at a time, in the plain path: {why_plain(task)}"
        return PlainTrainer(task, data, notice=notice)


def _load_lightning(*, is_own_process: bool) -> None:
    """Import it without what it does not need to train modules of ours, 1 of 2.2 s.

    torchmetrics imports scipy.signal to give it `hamming`, which a package for sound misses there.
    Lightning imports torch's compiler for two names: what compiled modules are instances of, and a
    mark on functions that it is to leave alone. In a process that compiles nothing, no module is
    one and no function needs the mark.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(deferred("scipy.signal", hamming=None))
        if is_own_process:
            compiler = deferred("torch._dynamo", OptimizedModule=_Compiled, disable=_unmarked)
            stack.enter_context(compiler)
        with contextlib.suppress(ImportError, TypeError):  # of a version that wants more of it
            import lightning
    import lightning  # noqa: F401


class _Compiled:
    """Has no instances."""


def _unmarked(function: Any = None, *args: object, **more: object) -> Any:
    """The mark itself, or, without a function, what would set it."""
    return _unmarked if function is None else function


def _compile(task: Task) -> None:
    """Have the kernel ready, which takes a second where the user's cache does not have it."""
    from sweep.training.kernel import load_kernel

    load_kernel(8 if precision_of(task) == "64-true" else 4)


def _load(task: Task) -> SearchData:
    from sweep.training.data import load_search_data

    return load_search_data(task.data, task.data_dir, task.seed)
