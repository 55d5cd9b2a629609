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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path

from sweep.environment import signals
from sweep.environment.launchers import fill_standard_streams, import_path, without_foreign
from sweep.errors import StudyFailedError, SweepError
from sweep.executors.memory_limit import MemoryLimit
from sweep.files.trial_files import make_private_folder
from sweep.protocols import Exchange
from sweep.redact import redacted
from sweep.trial import Failure, Orders, Report, Stop, Task, TrialResult, WorkerReady, notice

TICK_S = 0.5
HANG_GRACE_S = 5.0
"""A trial past its time limit ends at its epoch's end; this much later its worker is killed."""
STOP_GRACE_S = 30.0
"""Time to wait for an epoch's end after a stop, at least twice the worker's longest epoch. Resume
states are written as rarely by default, so little is lost."""
MOST_TICK_S = 2.0
"""A longer pause means that this process was suspended, or waited for a store."""
LEAVE_S = 30.0
"""Time for a worker to exit by itself."""
PROGRAM = (
    "import sys; sys.path[:] = eval(sys.argv.pop()); "
    "from sweep.executors.worker import main; main()"
)
"""A worker's program: sets its import path before it imports anything but `sys`."""
MAX_STILLBORN = 3
"""The search fails after so many workers in a row that died before they were ready."""
MAX_DEATHS = 20
"""The search fails after so many dead workers: something is wrong with the machine."""


@dataclass
class _Worker:
    task: Task
    process: subprocess.Popen[bytes]
    pipe: Connection
    log_start: int
    """Length of the log file before its first line."""
    running: dict[int, float] = field(default_factory=dict)
    """Trial number -> the executor's time at its start."""
    is_ready: bool = False
    """It has loaded its data and said so."""
    heard: float = 0.0
    """The executor's time of its last message, or of the answer to it."""
    longest_s: float = 0.0
    """Its longest epoch."""
    why_replaced: str = ""
    """Set if it must give its trials back and leave."""


class ProcessExecutor:
    """`n_workers` processes on this machine, each with its own torch.

    Workers that reach no epoch's end within `stop_grace_s` seconds of a stop are killed.
    """

    def __init__(self, n_workers: int, stop_grace_s: float = STOP_GRACE_S) -> None:
        self._n_workers, self._stop_grace_s = n_workers, stop_grace_s
        self._workers: list[_Worker] = []
        self._leaving: list[_Worker] = []
        """Told that no trial will come; exiting takes 0.2 s with Lightning and torch."""
        self._task: Task | None = None
        self._is_settled = False
        """Whether a worker has said how many there are to be, and what they are to do."""
        self._memory = MemoryLimit(None)
        self._n_deaths = 0
        self._n_stillborn = 0
        self._now = 0.0
        """Seconds that this executor watched its workers."""
        self._stopped_at: float | None = None
        """Its time at the stop of the search."""

    def warm_up(self, task: Task) -> None:
        """Start the workers; they import torch and Lightning while the driver goes on."""
        self._task, self._memory = task, MemoryLimit(task.worker_memory_gb)
        fill_standard_streams()
        while len(self._workers) < self._n_workers:
            self._workers.append(_start(task))

    def run(self, exchange: Exchange) -> None:
        """Carry reports and orders until every worker was told that no trial will come.

        Workers exit while the caller goes on; `kill` waits for them.
        """
        self._exchange = exchange
        try:
            with signals.suspending(lambda: [w.process.pid for w in self._workers]):
                self._watch()
        except BaseException:
            self._workers += self._leaving
            self._leaving.clear()
            self.kill()
            raise

    def kill(self) -> None:
        """End all workers now; those that are exiting by themselves have LEAVE_S."""
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

    def _watch(self) -> None:
        seen = time.monotonic()
        while self._workers:
            ready = wait([w.pipe for w in self._workers], TICK_S)
            seen, before = time.monotonic(), seen
            self._now += min(seen - before, MOST_TICK_S)
            for worker in [w for w in self._workers if w.pipe in ready]:
                self._serve(worker)
            if not ready:  # the driver raises what it cannot record, also in a long epoch
                self._ask((), 0)
            self._end_silent()
            self._end_hung()

    def _ask(self, reports: Sequence[Report], n_free: int) -> Orders:
        orders = self._exchange(reports, n_free)
        if orders.is_stopping and self._stopped_at is None:
            self._stopped_at = self._now
        return orders

    def _serve(self, worker: _Worker) -> None:
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):
            message = _why_dead(worker)
        if isinstance(message, SweepError):
            raise message
        if isinstance(message, Failure):
            self._bury(worker, message)
            return
        worker.is_ready, self._n_stillborn = True, 0
        self._answer(worker, *message)

    def _answer(self, worker: _Worker, reports: tuple[Report, ...], n_free: int) -> None:
        if worker.running:
            worker.longest_s = max(worker.longest_s, self._now - worker.heard)
        worker.heard = self._now
        for report in reports:
            if isinstance(report, TrialResult):
                worker.running.pop(report.number, None)
            elif isinstance(report, WorkerReady) and not self._is_settled:
                self._settle(worker, report)
        if not worker.why_replaced:
            is_too_large, said = self._memory.check(worker.process.pid, reports)
            if is_too_large:
                worker.why_replaced = said
            elif said:
                reports = (notice(said), *reports)
        if worker.why_replaced:
            self._relieve(worker, reports)
        else:
            self._send(worker, self._ask(reports, n_free))

    def _settle(self, worker: _Worker, ready: WorkerReady) -> None:
        """Start the other workers that the first one's measurements ask for; all later ones do
        what it does, without measuring again."""
        self._is_settled = True
        task = dataclasses.replace(worker.task, probes=(), may_share_steps=ready.may_share_steps)
        if task.population is None:  # a population of one trial still shares its data's order
            is_one = ready.n_slots == 1
            task = dataclasses.replace(task, population=ready.n_slots, was_larger=is_one)
        if ready.n_workers > 1:
            n_threads = max(1, (task.n_threads or os.cpu_count() or 1) // ready.n_workers)
            task = dataclasses.replace(task, n_threads=n_threads, may_add_workers=False)
        worker.task = task
        if task.may_add_workers or ready.n_workers > 1:
            for _ in range(ready.n_workers - len(self._workers)):
                self._workers.append(_start(task))

    def _relieve(self, worker: _Worker, reports: tuple[Report, ...]) -> None:
        """Interrupt the trials of a worker that is too large; replace it when it has none.

        Its trials keep their resume states, and the driver hands them out again.
        """
        orders = self._ask(reports, -len(worker.running))  # no new trials for stopped ones
        stopped = {stop.number for stop in orders.stop}
        moved = [Stop(n, "interrupted") for n in worker.running if n not in stopped]
        self._send(worker, Orders((*orders.stop, *moved), is_last=True))
        if worker not in self._workers and not orders.is_last:
            self._see_off()  # its memory is what the new one needs
            self._ask([notice(worker.why_replaced)], 0)
            self._workers.append(_start(worker.task))

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

    def _bury(self, worker: _Worker, failure: Failure) -> None:
        """Report a dead worker's trials as failed and start a new worker.

        A worker ended by SIGKILL was most likely too large: the next trains half as many trials.
        """
        task, said = worker.task, []
        n_fewer = max(1, len(worker.running) // 2)
        if worker.process.poll() == -signal.SIGKILL and len(worker.running) > n_fewer:
            task = dataclasses.replace(task, population=n_fewer, was_larger=True)
            what = f"a worker with {len(worker.running)} trials was ended by SIGKILL"
            said = [notice(f"{what}: the next trains {n_fewer} at a time")]
        _end(worker)
        self._workers.remove(worker)
        self._n_deaths += 1
        self._n_stillborn += not worker.is_ready
        is_hopeless = self._n_deaths > MAX_DEATHS or self._n_stillborn >= MAX_STILLBORN
        if is_hopeless or (not worker.running and failure.kind == "exception"):
            said_last = "" if worker.is_ready else _last_words(worker)
            raise StudyFailedError(f"a worker cannot start: {failure.message}{said_last}")
        orders = self._ask([*said, *_failed(worker.running, failure)], 0)
        if not orders.is_last:
            self._workers.append(_start(task))

    def _end_hung(self) -> None:
        """Kill workers with a trial past its time limit; their other trials are tried again."""
        limit = self._task.trial_timeout_s if self._task else None
        if limit is None:
            return
        latest = self._now - limit - HANG_GRACE_S
        for worker in list(self._workers):
            late = [number for number, since in worker.running.items() if since < latest]
            if late:
                timeout = Failure("timeout", f"no epoch ended within {limit:g} s")
                self._ask(_failed(late, timeout), 0)
                for number in late:
                    del worker.running[number]
                self._bury(worker, Failure("killed", "its worker hung and was ended"))

    def _end_silent(self) -> None:
        """After a stop, kill workers that reach no epoch's end.

        A worker that is not ready has nothing to save: it is killed at once.
        """
        if self._stopped_at is None:
            return
        for worker in list(self._workers):
            silent_s = self._now - max(self._stopped_at, worker.heard)
            if worker.is_ready and silent_s < max(self._stop_grace_s, 2 * worker.longest_s):
                continue
            _end(worker)
            self._workers.remove(worker)
            said = f"a worker was ended: no epoch ended within {silent_s:.0f} s of the stop"
            notices = [notice(said)] if worker.is_ready else []
            self._ask([*notices, *_failed(worker.running, Failure("killed", said))], 0)


def _failed(numbers: Iterable[int], failure: Failure) -> list[Report]:
    return [TrialResult(number, "failed", n_epochs=0, failure=failure) for number in numbers]


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
    # Trials train in turns, each in a thread of its own: with a heap a thread, glibc would keep
    # for each of them what the largest minibatch took.
    env.setdefault("MALLOC_ARENA_MAX", "1")
    env.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no pool of processes to leave behind
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
    """ ": LINE" with the last line that a worker printed; "" if it printed none."""
    try:
        with Path(worker.task.log_file).open("rb") as log:
            log.seek(worker.log_start)
            lines = log.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f": {redacted(last)[:300]}" if last else ""
