"""Train in this process: the seam is a function call. For debugging, tests and notebooks."""

from __future__ import annotations

from sweep.protocols import Exchange
from sweep.trial import Task


class InlineExecutor:
    """One worker, this very process. A crash of a trial's native code takes the driver with it."""

    def __init__(self) -> None:
        self._task: Task | None = None

    def warm_up(self, task: Task) -> None:
        """Remember the task; there is nothing to start."""
        self._task = task

    def run(self, exchange: Exchange) -> None:
        """Train until `exchange` says that nothing more will come."""
        from sweep.training import make_trainer

        if self._task is None:
            raise RuntimeError("warm_up comes before run")
        make_trainer(self._task).train(exchange)

    def kill(self) -> None:
        """Nothing to end."""
