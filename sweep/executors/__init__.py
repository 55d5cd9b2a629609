"""Where trials are trained: one table of executors."""

from __future__ import annotations

from sweep.trial import Executor


def make_executor(name: str, n_workers: int) -> Executor:
    """The executor called `name`; inline trains in this process and has one worker."""
    if name == "inline":
        from sweep.executors.inline import InlineExecutor

        return InlineExecutor()
    from sweep.executors.process import ProcessExecutor

    return ProcessExecutor(n_workers)
