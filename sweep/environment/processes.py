"""Python processes that sweep starts: their command, their end, and what an end means."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

from sweep.environment import signals
from sweep.environment.launchers import import_path

PARENT_POLL_S = 1.0
_PROGRAM = "import sys; sys.path[:] = eval(sys.argv.pop()); from {} import main; main()"


def command_of(module: str, *arguments: object) -> list[str]:
    """The command for `main()` of a module: it sets its import path before it imports anything
    but `sys`."""
    program = _PROGRAM.format(module)
    return [sys.executable, "-P", "-c", program, *map(str, arguments), repr(import_path())]


def started(
    module: str, log_file: Path, environment: Mapping[str, str], group: int = 0
) -> tuple[subprocess.Popen[bytes], Connection]:
    """`main()` of a module in a new process, with our end of a socket; its argument is the other.

    What it prints goes to the end of the log. `group`: the process group to join; 0: one of its
    own. It gets none of the signals that stop a search before it asks for them.
    """
    with contextlib.ExitStack() as open_here:
        log = open_here.enter_context(log_file.open("ab"))
        ours, theirs = socket.socketpair()
        open_here.enter_context(theirs)
        open_here.enter_context(signals.held_back())
        process = subprocess.Popen(
            command_of(module, theirs.fileno()), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            pass_fds=[theirs.fileno()], env=dict(environment), process_group=group,
        )  # fmt: skip
    return process, Connection(ours.detach())


def leave_with(parent: int) -> None:
    """End this process within a second of its parent's death, also in the midst of an epoch.

    So does every process of its group, unless that is the parent's own.
    """
    is_own_group = os.getpgrp() != os.getpgid(parent)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_POLL_S)
        if is_own_group:
            os.killpg(0, signal.SIGKILL)  # a DataLoader's workers, too
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


def how_it_ended(code: int) -> str:
    """A process's end, by `Popen.returncode`.

    >>> how_it_ended(-9)
    'was ended by SIGKILL (out of memory?)'
    >>> how_it_ended(3)
    'left with exit code 3'
    """
    if code >= 0:
        return f"left with exit code {code}"
    name = signal.Signals(-code).name
    return f"was ended by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}"
