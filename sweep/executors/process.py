"""Local worker processes: the seam is a socket, and a worker's death is seen at once."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Collection, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import cast

from sweep.environment.launchers import fill_standard_streams, without_foreign
from sweep.environment.processes import how_it_ended, started
from sweep.executors.crew import LEAVE_S, STOP_GRACE_S, Crew, Link, Message
from sweep.executors.devices import VISIBLE, gpus
from sweep.executors.memory_limit import resident_bytes
from sweep.files.trial_files import make_private_folder
from sweep.trial import Failure, Orders, Task


class ProcessExecutor(Crew):
    """Workers on this machine, each a process with its own torch.

    Args:
        n_workers: Number of workers; None: one a GPU that they may use, else one.
        stop_grace_s: See `Crew`.
    """

    def __init__(self, n_workers: int | None, stop_grace_s: float = STOP_GRACE_S) -> None:
        super().__init__(n_workers or 1, stop_grace_s)
        self._is_auto, self._gpus = n_workers is None, list[str]()

    def warm_up(self, task: Task) -> None:
        """Start the workers; they import torch and Lightning while the driver goes on."""
        fill_standard_streams()
        if task.accelerator in ("auto", "gpu", "cuda") and task.devices.isdigit():
            found, n = gpus(os.environ), task.n_devices  # a worker has those of one trial
            self._gpus = [",".join(found[i : i + n]) for i in range(0, len(found) - n + 1, n)]
        if self._is_auto and self._gpus:
            self._n_wanted = len(self._gpus)
        super().warm_up(task)

    def _start(self, task: Task) -> Link:
        if len(self._gpus) < 2:
            return ProcessLink(task)
        taken = [cast(ProcessLink, w.link).gpu for w in self._workers]
        gpu = min(self._gpus, key=taken.count)  # the first that fewest workers have
        return ProcessLink(task, {VISIBLE: gpu})

    def _wait(self, links: Sequence[Link], timeout_s: float) -> Collection[Link]:
        by_pipe = {link.pipe: link for link in cast(Sequence[ProcessLink], links)}
        return [by_pipe[cast(Connection, pipe)] for pipe in wait([*by_pipe], timeout_s)]

    def pids(self) -> Sequence[int]:
        """Process ids of the workers that train or load."""
        return [cast(ProcessLink, w.link).process.pid for w in self._workers]


class ProcessLink:
    """A worker process of this machine, started at once; it loads while the caller goes on.

    Args:
        task: What it is to do. What it prints goes to the task's log file.
        variables: Of its environment, beside those of this process.
    """

    def __init__(self, task: Task, variables: Mapping[str, str] | None = None) -> None:
        self.gpu = (variables or {}).get(VISIBLE)
        """The only one that it sees; None: any."""
        self._log_file = Path(task.log_file)
        make_private_folder(self._log_file.parent)
        self._log_start = self._log_file.stat().st_size if self._log_file.exists() else 0
        environment = _environment(task) | dict(variables or {})
        self.process, self.pipe = started("sweep.executors.worker", self._log_file, environment)
        self.pipe.send(task)

    @property
    def is_too_large(self) -> bool:
        """Whether it was ended by SIGKILL: most likely by the system, out of memory."""
        return self.process.poll() == -signal.SIGKILL

    def send(self, orders: Orders) -> None:
        """Answer its last message."""
        with contextlib.suppress(OSError):  # its death is seen at the next `receive`
            self.pipe.send(orders)

    def receive(self) -> Message:
        """Its next message; waits for it."""
        try:
            return cast(Message, self.pipe.recv())
        except (EOFError, OSError):
            return self._why_dead()

    def _why_dead(self) -> Failure:
        return Failure("killed", f"its worker {how_it_ended(self.process.wait())}")

    def resident_bytes(self) -> int | None:
        """Its resident memory; None if unknown."""
        return resident_bytes(self.process.pid)

    def last_words(self) -> str:
        """The last line that it printed; "" if it printed none."""
        try:
            with self._log_file.open("rb") as log:
                log.seek(self._log_start)
                lines = log.read().decode(errors="replace").split("\n")
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def leave(self) -> None:
        """Wait for it to exit by itself."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=LEAVE_S)

    def end(self) -> None:
        """End it now, with a DataLoader's workers."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.pipe.close()


def _environment(task: Task) -> dict[str, str]:
    env = without_foreign(os.environ)
    if task.is_deterministic:  # what torch asks for, where it computes on a GPU
        env.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if task.n_threads:  # before torch is loaded, so that its pools have this size
        env["OMP_NUM_THREADS"] = str(task.n_threads)
    # Trials train in turns, each in a thread of its own: with a heap a thread, glibc would keep
    # for each of them what the largest minibatch took.
    env.setdefault("MALLOC_ARENA_MAX", "1")
    env.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no pool of processes to leave behind
    return env
