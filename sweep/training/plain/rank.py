"""One process of a trial on several devices: `python -c "... main()" FD`, started by `several.py`.

All ranks train the trial in the same way and agree wherever a clock or an order decides
(`Fit.agreed`). FD is this rank's end of a socket to the worker: rank 0 sends its reports and gets
an order to stop, or none; any rank sends what it failed with. The trial's files are rank 0's.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from sweep.environment import signals
from sweep.environment.processes import leave_with
from sweep.errors import SweepError
from sweep.loading import collector_paused
from sweep.trial import Orders, Report, Task, TrialSpec


def main() -> None:
    """Train the trial, then stay until the worker has all that it needs."""
    signals.leave_to_driver()
    leave_with(os.getppid())
    pipe = Connection(socket.socket(fileno=int(sys.argv[1])).detach())
    with contextlib.suppress(EOFError, OSError):  # the worker is gone
        with collector_paused():
            from sweep.training.failures import classify
            from sweep.training.lightning_trainer import hush_lightning
            from sweep.training.plain import engine  # noqa: F401 - with all that it needs
            from sweep.training.resuming import UnusableError

        gc.freeze()  # the libraries stay: a fast exit
        hush_lightning()
        task, spec, choice = pipe.recv()
        try:
            _train(task, spec, choice, pipe)
        except BaseException as error:  # noqa: BLE001 - user code may raise anything
            is_known = isinstance(error, SweepError | UnusableError)
            pipe.send(error if is_known else classify(error, task.module))
        pipe.recv()


def _train(task: Task, spec: TrialSpec, choice: Any, pipe: Connection) -> None:
    import torch

    from sweep.training.mlflow_calls import FluentCalls
    from sweep.training.plain.engine import PlainEngine
    from sweep.training.project.project import Project
    from sweep.training.run import Run
    from sweep.training.slot_loop import Slots

    is_first = os.environ["LOCAL_RANK"] == "0"

    def exchange(reports: Sequence[Report], n_free: int) -> Orders:
        """Rank 0's end of the seam; the others are told by rank 0."""
        if not is_first:
            return Orders(is_last=True)
        pipe.send((tuple(reports), slots.choice))
        stop = pipe.recv()
        return Orders(() if stop is None else (stop,), is_last=True)

    torch.set_num_threads(task.n_threads or 1)
    if task.is_deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
    slots, run, calls = Slots(task, exchange), Run(spec, task), FluentCalls(task.work_dir)
    slots.choice, slots.running[spec.number] = choice, run
    try:
        with calls.caught():
            engine = PlainEngine(task, Project(task), slots, calls)
            slots.begin(engine)
            engine.fit(run)
            if is_first:
                slots.conclude(run)
                slots.tell()
    finally:
        calls.remove()
