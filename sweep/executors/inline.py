"""Train in this process: the seam is a function call. For debugging, tests and notebooks."""

from __future__ import annotations

import os
from collections.abc import Sequence

from sweep.protocols import Exchange
from sweep.trial import Task


class InlineExecutor:
    """One worker: this process. A crash of a trial's native code ends the driver, too."""

    _task: Task

    def warm_up(self, task: Task) -> None:
        """Remember the task; there is nothing to start."""
        self._task = task

    def run(self, exchange: Exchange) -> None:
        """Train until `exchange` says is_last."""
        from sweep.training import make_trainer

        make_trainer(self._task).train(exchange)

    def kill(self) -> None:
        """Nothing to end."""

    def pids(self) -> Sequence[int]:
        """This process."""
        return [os.getpid()]
