"""Where trials are trained. EXECUTORS is the only place that lists the executors."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from sweep.protocols import Executor


def _process(n_workers: int) -> Executor:
    from sweep.executors.process import ProcessExecutor

    return ProcessExecutor(n_workers)


def _inline(_: int) -> Executor:
    from sweep.executors.inline import InlineExecutor

    return InlineExecutor()


class ExecutorKind(NamedTuple):
    """An executor, by name."""

    meaning: str
    """Where trials train, for users."""
    make: Callable[[int], Executor]
    """Number of workers -> executor."""


EXECUTORS = {
    "process": ExecutorKind("local workers", _process),
    "inline": ExecutorKind("this process", _inline),
}


def make_executor(name: str, n_workers: int) -> Executor:
    """The executor called `name`; inline trains in this process and has one worker."""
    return EXECUTORS[name].make(n_workers)
