"""Local worker processes: the seam is a socket, and a worker's death is seen at once."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from sweep.environment import signals
from sweep.environment.surroundings import fill_standard_streams, import_path, without_foreign
from sweep.errors import StudyFailedError
from sweep.executors.memory import MemoryLimit
from sweep.executors.messages import Crash
from sweep.files.trial_folder import make_private_folder
from sweep.protocols import Exchange
from sweep.redact import redacted
from sweep.trial import Failure, Notice, Orders, Report, Stop, Task, TrialResult, now_ms

TICK_S = 0.5
HANG_GRACE_S = 5.0
"""A trial past its limit ends at the next epoch boundary; so much later its worker is killed."""
STOP_GRACE_S = 30.0
"""A search that is stopped waits so long for the end of an epoch, and at least twice as long as
the worker's longest: resume states are written as rarely by default, so that little is lost."""
MOST_TICK_S = 2.0
"""In a longer pause this process was suspended, or waited for a store: no worker is to blame."""
LEAVE_S = 30.0
PROGRAM = (
    "import sys; sys.path[:] = eval(sys.argv.pop()); "
    "from sweep.executors.worker import main; main()"
)
"""Of a worker. It has its import path before it imports anything but `sys`."""
MAX_STILLBORN = 3
"""Workers in a row that may die before they say that they are ready."""
MAX_DEATHS = 20
"""Workers that may die before the search gives up: something is wrong with the machine."""


@dataclass
class _Worker:
    task: Task
    process: subprocess.Popen[bytes]
    pipe: Connection
    log_start: int
    """Where in the log file its own lines begin."""
    running: dict[int, float] = field(default_factory=dict)
    """Trial number -> the executor's time at its start."""
    is_ready: bool = False
    """It has loaded its data and said so."""
    heard: float = 0.0
    """The executor's time when it last spoke, or was last answered."""
    longest_s: float = 0.0
    """The longest that an epoch took."""
    n_free_parked: int | None = None
    """Set while the worker waits for orders that the driver could not give yet."""
    why_replaced: str = ""
    """Set once it is to give its trials back and leave."""


class ProcessExecutor:
    """`n_workers` processes on this machine, each with its own torch.

    Those that do not answer are ended `stop_grace_s` seconds after a stop.
    """

    def __init__(self, n_workers: int, stop_grace_s: float = STOP_GRACE_S) -> None:
        self._n_workers, self._stop_grace_s = n_workers, stop_grace_s
        self._workers: list[_Worker] = []
        self._leaving: list[_Worker] = []
        """Told that nothing more will come; with Lightning and torch that takes 0.2 s."""
        self._task: Task | None = None
        self._memory = MemoryLimit(None)
        self._n_deaths = 0
        self._n_stillborn = 0
        self._now = 0.0
        """Seconds that this executor watched its workers."""
        self._stopped_at: float | None = None
        """Since when workers are to stop."""

    def warm_up(self, task: Task) -> None:
        """Start the workers; they import torch and Lightning while the driver goes on."""
        self._task, self._memory = task, MemoryLimit(task.worker_memory_gb)
        fill_standard_streams()
        while len(self._workers) < self._n_workers:
            self._workers.append(_start(task))

    def run(self, exchange: Exchange) -> None:
        """Carry reports and orders until every worker was told that nothing more will come.

        Workers leave while the caller goes on; `kill` waits for them.
        """
        try:
            with signals.suspending(lambda: [w.process.pid for w in self._workers]):
                self._watch(exchange)
        except BaseException:
            self._workers += self._leaving
            self._leaving.clear()
            self.kill()
            raise

    def _watch(self, exchange: Exchange) -> None:
        seen = time.monotonic()
        while self._workers:
            ready = wait([w.pipe for w in self._workers], TICK_S)
            seen, before = time.monotonic(), seen
            self._now += min(seen - before, MOST_TICK_S)
            self._serve(exchange, ready)
            # Asked also while no worker speaks: what cannot be recorded is to be noticed.
            if not ready and exchange((), 0).is_stopping:
                self._end_silent(exchange)
            self._end_hung(exchange)

    def kill(self) -> None:
        """End all workers now; those that are leaving by themselves are given a while."""
        for worker in self._workers:
            _end(worker)
        self._workers.clear()
        self._see_off()

    def _see_off(self) -> None:
        while self._leaving:
            worker = self._leaving.pop()
            try:
                worker.process.wait(timeout=LEAVE_S)
            except subprocess.TimeoutExpired:
                pass
            finally:
                _end(worker)

    def _serve(self, exchange: Exchange, ready: Iterable[Any]) -> None:
        is_ready = set(map(id, ready))
        for worker in list(self._workers):
            if id(worker.pipe) not in is_ready:
                continue
            try:
                message = worker.pipe.recv()
            except (EOFError, OSError):
                self._bury(worker, exchange, _why_dead(worker))
                continue
            if isinstance(message, Crash):
                if message.error is not None:
                    message.error.add_note(f"In the worker:\n{message.traceback}")
                    raise message.error
                failure = Failure("exception", message.message, message.traceback)
                self._bury(worker, exchange, failure)
                continue
            reports, n_free = message
            worker.is_ready, self._n_stillborn = True, 0
            self._answer(worker, exchange, reports, n_free)
        if any(w.n_free_parked is not None for w in self._workers):
            self._answer_parked(exchange)

    def _answer(
        self, worker: _Worker, exchange: Exchange, reports: tuple[Report, ...], n_free: int
    ) -> None:
        if worker.running:
            worker.longest_s = max(worker.longest_s, self._now - worker.heard)
        worker.heard = self._now
        for report in reports:
            if isinstance(report, TrialResult):
                worker.running.pop(report.number, None)
        if not worker.why_replaced:
            found = self._memory.check(worker.process.pid, reports)
            if found.is_too_large:
                worker.why_replaced = found.message
            elif found.message:
                reports = (Notice(now_ms(), found.message), *reports)
        if worker.why_replaced:
            self._relieve(worker, exchange, reports)
            return
        orders = exchange(reports, n_free)
        is_idle = not worker.running and not orders.start and not orders.is_last
        if is_idle and not orders.stop:
            worker.n_free_parked = n_free
            return
        self._send(worker, orders)

    def _relieve(self, worker: _Worker, exchange: Exchange, reports: tuple[Report, ...]) -> None:
        """Ask a worker that is too large for its trials; when it has none, put a new one there.

        A stopped trial keeps its resume state, and the driver hands it out again.
        """
        # So many too few are free: what the driver stops makes no room for others.
        orders = exchange(reports, -len(worker.running))
        stopped = {stop.number for stop in orders.stop}
        moved = [Stop(n, "interrupted") for n in worker.running if n not in stopped]
        self._send(worker, Orders((*orders.stop, *moved), is_last=True))
        if worker not in self._workers and not orders.is_last:
            self._see_off()  # its memory is what the new one needs
            exchange([Notice(now_ms(), worker.why_replaced)], 0)
            self._workers.append(_start(worker.task))

    def _answer_parked(self, exchange: Exchange) -> None:
        for worker in list(self._workers):
            if worker.n_free_parked is not None:
                n_free, worker.n_free_parked = worker.n_free_parked, None
                self._answer(worker, exchange, (), n_free)

    def _send(self, worker: _Worker, orders: Orders) -> None:
        worker.running |= {spec.number: self._now for spec in orders.start}
        worker.heard = self._now
        try:
            worker.pipe.send(orders)
        except OSError:
            return  # its death is seen at the next wait, with these trials among its running
        if orders.is_last and not worker.running:
            self._workers.remove(worker)
            self._leaving.append(worker)

    def _bury(self, worker: _Worker, exchange: Exchange, failure: Failure) -> None:
        """Report a dead worker's trials and put a new worker in its place.

        One that SIGKILL ended was most likely too large: the next trains half as many at a time.
        """
        task, said = worker.task, []
        n_fewer = max(1, len(worker.running) // 2)
        if worker.process.poll() == -signal.SIGKILL and len(worker.running) > n_fewer:
            task = dataclasses.replace(task, population=n_fewer, was_larger=True)
            what = f"a worker with {len(worker.running)} trials was ended by SIGKILL"
            said = [Notice(now_ms(), f"{what}: the next trains {n_fewer} at a time")]
        _end(worker)
        self._workers.remove(worker)
        self._n_deaths += 1
        self._n_stillborn += not worker.is_ready
        results = [_failed(number, failure) for number in worker.running]
        is_hopeless = self._n_deaths > MAX_DEATHS or self._n_stillborn >= MAX_STILLBORN
        if is_hopeless or (not results and failure.kind == "exception"):
            said_last = "" if worker.is_ready else _last_words(worker)
            raise StudyFailedError(f"a worker cannot start: {failure.message}{said_last}")
        orders = exchange([*said, *results], 0)
        if not orders.is_last:
            self._workers.append(_start(task))

    def _end_hung(self, exchange: Exchange) -> None:
        limit = self._task.trial_timeout_s if self._task else None
        if limit is None:
            return
        latest = self._now - limit - HANG_GRACE_S
        for worker in list(self._workers):
            late = [number for number, since in worker.running.items() if since < latest]
            if late:
                timeout = Failure("timeout", f"no epoch ended within {limit:g} s")
                exchange([_failed(number, timeout) for number in late], 0)
                for number in late:
                    del worker.running[number]
                self._bury(worker, exchange, Failure("killed", "its worker hung and was ended"))

    def _end_silent(self, exchange: Exchange) -> None:
        """End workers that come to no epoch's end though the search stops.

        One that is not ready has nothing to keep: it is ended at once.
        """
        if self._stopped_at is None:
            self._stopped_at = self._now
        for worker in list(self._workers):
            silent_s = self._now - max(self._stopped_at, worker.heard)
            if worker.is_ready and silent_s < max(self._stop_grace_s, 2 * worker.longest_s):
                continue
            _end(worker)
            self._workers.remove(worker)
            said = f"a worker was ended: no epoch ended within {silent_s:.0f} s of the stop"
            failure = Failure("killed", said)
            notices = [Notice(now_ms(), said)] if worker.is_ready else []
            exchange([*notices, *(_failed(number, failure) for number in worker.running)], 0)


def _failed(number: int, failure: Failure) -> TrialResult:
    return TrialResult(number, "failed", n_epochs=0, failure=failure)


def _start(task: Task) -> _Worker:
    make_private_folder(Path(task.log_file).parent)
    with contextlib.ExitStack() as open_here:
        log = open_here.enter_context(Path(task.log_file).open("ab"))
        log_start = log.seek(0, os.SEEK_END)
        ours, theirs = socket.socketpair()
        open_here.enter_context(theirs)
        open_here.enter_context(signals.held_back())
        process = subprocess.Popen(
            [
                sys.executable, "-P", "-c", PROGRAM, str(theirs.fileno()),
                repr(import_path()),
            ],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[theirs.fileno()],
            env=_environment(task), process_group=0,
        )  # fmt: skip
    pipe = Connection(ours.detach())
    pipe.send(task)
    return _Worker(task, process, pipe, log_start)


def _environment(task: Task) -> dict[str, str]:
    env = without_foreign(os.environ)
    if task.n_threads:  # before torch is loaded, so that its pools have this size
        env["OMP_NUM_THREADS"] = str(task.n_threads)
    return env


def _end(worker: _Worker) -> None:
    if worker.process.poll() is None:
        os.killpg(worker.process.pid, signal.SIGKILL)  # with a DataLoader's workers
    worker.process.wait()
    worker.pipe.close()


def _why_dead(worker: _Worker) -> Failure:
    code = worker.process.wait()
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return Failure("killed", f"its worker was ended by {name}{hint}")
    return Failure("killed", f"its worker left with exit code {code}")


def _last_words(worker: _Worker) -> str:
    """The last line that a worker printed, behind a colon; empty where it printed none."""
    try:
        with Path(worker.task.log_file).open("rb") as log:
            log.seek(worker.log_start)
            lines = log.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f": {redacted(last)[:300]}" if last else ""
