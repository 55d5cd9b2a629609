"""A worker process: `python -c "... main()" FD`, started by ProcessExecutor.

It owns torch, Lightning and a device, and talks over one socket whose other end the driver
holds. A plain command instead of multiprocessing's spawn: spawn imports the user's main script
again, which starts a second search where that script has no `__main__` guard. It leads a process
group of its own, with all that the user's code starts in it: a terminal and GNU timeout signal the
driver's group.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import cast

from sweep.environment import signals
from sweep.errors import SweepError
from sweep.executors.messages import Crash
from sweep.loading import collector_paused
from sweep.redact import redacted
from sweep.trial import Orders, Report, Task

PARENT_POLL_S = 1.0


class PipeExchange:
    """The worker's end of the seam."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def __call__(self, reports: Sequence[Report], n_free: int) -> Orders:
        """Send reports, wait for orders. Leaves the process when the driver is gone."""
        try:
            self._pipe.send((tuple(reports), n_free))
            answer = self._pipe.recv()
        except (EOFError, OSError):
            os._exit(1)
        if isinstance(answer, BaseException):
            os._exit(1)
        return cast(Orders, answer)


def main() -> None:
    """Receive the task, train what is ordered, leave."""
    signals.leave_to_driver()
    _leave_with(os.getppid())
    pipe = Connection(socket.socket(fileno=int(sys.argv[1])).detach())
    task = cast(Task, pipe.recv())
    try:
        from sweep.training import make_trainer

        with collector_paused():
            trainer = make_trainer(task)
        gc.freeze()  # the libraries stay: 0.4 s less for the first export, and a fast exit
        trainer.train(PipeExchange(pipe))
    except BaseException as error:  # noqa: BLE001 - whatever it is, the driver has to know
        text = redacted(traceback.format_exc())
        sys.stderr.write(text)  # into the study's log
        pipe.send(Crash(text, error if isinstance(error, SweepError) else None))
        sys.exit(1)


def _leave_with(parent: int) -> None:
    """End this process within a second of the driver's death, also in the midst of an epoch."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_POLL_S)
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)  # a DataLoader's workers, too
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()
