"""A worker process: `python -c "... main()" FD`, started by ProcessExecutor.

It owns torch, Lightning and a device. FD is its end of a socket to the driver: it sends
(reports, n_free) and receives Orders; last it may send the SweepError or Failure that ended it.

A plain command instead of multiprocessing's spawn: spawn imports the user's main script again,
which starts a second search where that script has no `__main__` guard. The worker leads a process
group of its own, together with all processes of the user's code: a terminal and GNU timeout signal
the driver's group.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import cast

from sweep.environment import signals
from sweep.environment.processes import leave_with
from sweep.errors import SweepError
from sweep.loading import collector_paused
from sweep.redact import redacted
from sweep.trial import Failure, Orders, Report, Task


def main() -> None:
    """Receive the task, train until the driver has no more orders, leave."""
    signals.leave_to_driver()
    leave_with(os.getppid())
    pipe = Connection(socket.socket(fileno=int(sys.argv[1])).detach())
    task = cast(Task, pipe.recv())

    def exchange(reports: Sequence[Report], n_free: int) -> Orders:
        """The worker's end of the seam. Leaves the process when the driver is gone."""
        try:
            pipe.send((tuple(reports), n_free))
            return cast(Orders, pipe.recv())
        except (EOFError, OSError):
            os._exit(1)

    try:
        from sweep.training import make_trainer

        with collector_paused():
            trainer = make_trainer(task)
        gc.freeze()  # the libraries stay: 0.4 s less for the first export, and a fast exit
        trainer.train(exchange)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the driver has to know
        text = redacted(traceback.format_exc())
        sys.stderr.write(text)  # into the study's log
        if isinstance(error, SweepError):
            error.add_note(f"In the worker:\n{text}")
            pipe.send(error)
        else:
            pipe.send(Failure("exception", text.strip().rsplit("\n", 1)[-1], text))
        sys.exit(1)
