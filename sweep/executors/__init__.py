"""Where trials are trained. EXECUTORS is the only place that lists the executors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from sweep.errors import ConfigError
from sweep.protocols import Executor


def _process(n_workers: int | None, **_: Any) -> Executor:
    from sweep.executors.process import ProcessExecutor

    return ProcessExecutor(n_workers)


def _inline(_: int | None, **__: Any) -> Executor:
    from sweep.executors.inline import InlineExecutor

    return InlineExecutor()


def _ray(n_workers: int | None, **cluster: Any) -> Executor:
    try:
        from sweep.executors.ray import RayExecutor
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("ray"):
            raise
        raise ConfigError("--executor ray needs Ray: pip install 'sweep[ray]'") from error
    return RayExecutor(n_workers, **cluster)


class ExecutorKind(NamedTuple):
    """An executor, by name."""

    meaning: str
    """Where trials train, for users."""
    make: Callable[..., Executor]
    """(Number of workers or None, arguments of a cluster) -> executor."""


EXECUTORS = {
    "process": ExecutorKind("local workers", _process),
    "inline": ExecutorKind("this process", _inline),
    "ray": ExecutorKind("a Ray cluster", _ray),
}


def make_executor(name: str, n_workers: int | None, **cluster: Any) -> Executor:
    """The executor called `name`; inline trains in this process and has one worker.

    `cluster`: arguments of `RayExecutor`. Raises ConfigError if its package is missing.
    """
    return EXECUTORS[name].make(n_workers, **cluster)
