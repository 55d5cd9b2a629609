"""Workers of any kind: who is asked, replaced, buried and sent off. A Link says what one is."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sweep.environment import signals
from sweep.errors import StudyFailedError, SweepError
from sweep.executors.memory_limit import MemoryLimit
from sweep.protocols import Exchange
from sweep.redact import redacted
from sweep.trial import (
    FAILURES,
    Failure,
    Orders,
    Report,
    Stop,
    Task,
    TrialResult,
    WorkerReady,
    notice,
)

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
MAX_STILLBORN = 3
"""The search fails after so many workers in a row that died before they were ready."""
MAX_DEATHS = 20
"""The search fails after so many dead workers: something is wrong with the machine."""

Message = tuple[Sequence[Report], int] | SweepError | Failure
"""From a worker: its reports and number of free slots, or last what ended it."""


class Link(Protocol):
    """The driver's end of one worker."""

    @property
    def is_too_large(self) -> bool:
        """Whether it ended because, most likely, memory ran out."""
        ...

    def send(self, orders: Orders) -> None:
        """Answer its last message. A worker that is gone says so in `receive`."""
        ...

    def receive(self) -> Message:
        """Its next message; waits for it. A dead worker's is a Failure."""
        ...

    def resident_bytes(self) -> int | None:
        """Its resident memory; None if unknown."""
        ...

    def last_words(self) -> str:
        """The last line that it printed; "" if it printed none."""
        ...

    def leave(self) -> None:
        """Wait LEAVE_S at most for it to exit by itself."""
        ...

    def end(self) -> None:
        """End it now, with all processes that its user's code started. Repeatable."""
        ...


@dataclass(eq=False)
class _Worker:
    task: Task
    link: Link
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


class Crew(ABC):
    """An executor of `n_workers` workers. A subclass says how one is started and heard.

    Workers that reach no epoch's end within `stop_grace_s` seconds of a stop are killed.
    """

    def __init__(self, n_workers: int, stop_grace_s: float = STOP_GRACE_S) -> None:
        self._n_wanted, self._stop_grace_s = n_workers, stop_grace_s
        self._workers: list[_Worker] = []
        self._leaving: list[_Worker] = []
        """Told that no trial will come; exiting takes 0.2 s with Lightning and torch."""
        self._task: Task
        """What the next worker is to do."""
        self._is_settled = False
        """Whether a worker has said how many there are to be, and what they are to do."""
        self._memory = MemoryLimit(None)
        self._n_started = 0
        """Trials that began, by their numbers."""
        self._n_dismissed = 0
        """Workers that left since no trial was to come; the user may extend the search."""
        self._n_deaths = 0
        self._n_stillborn = 0
        self._has_served = False
        """Whether any worker was ready."""
        self._now = 0.0
        """Seconds that this executor watched its workers."""
        self._stopped_at: float | None = None
        """Its time at the stop of the search."""
        self._is_last = False
        """Whether no trial will come, as far as the driver knows now."""

    @abstractmethod
    def _start(self, task: Task) -> Link:
        """A new worker, which loads while the caller goes on."""

    @abstractmethod
    def _wait(self, links: Sequence[Link], timeout_s: float) -> Collection[Link]:
        """Those that have a message, after `timeout_s` at most."""

    def pids(self) -> Sequence[int]:
        """Process ids of the workers on this machine, whose groups Ctrl-Z suspends."""
        return ()

    def _count(self) -> int:
        """How many workers there are to be now."""
        return self._n_wanted

    def warm_up(self, task: Task) -> None:
        """Start the workers; they import torch and Lightning while the driver goes on."""
        if not self._workers:
            self._task, self._memory = task, MemoryLimit(task.worker_memory_gb)
        self._fill()

    def _fill(self) -> None:
        while len(self._workers) < self._n_wanted:
            self._hire(self._task)

    def _hire(self, task: Task) -> None:
        self._workers.append(_Worker(task, self._start(task), heard=self._now))

    def run(self, exchange: Exchange) -> None:
        """Carry reports and orders until every worker was told that no trial will come.

        Workers exit while the caller goes on; `kill` waits for them.
        """
        self._exchange = exchange
        try:
            with signals.suspending(self.pids):
                self._watch()
        except BaseException:
            self._workers += self._leaving
            self._leaving.clear()
            self.kill()
            raise

    def kill(self) -> None:
        """End all workers now; those that are exiting by themselves have LEAVE_S."""
        self.kill_workers()
        self._see_off()

    def kill_workers(self) -> None:
        """End all workers now, but for those that are exiting."""
        for worker in self._workers:
            worker.link.end()
        self._workers.clear()

    def _see_off(self) -> None:
        while self._leaving:
            worker = self._leaving.pop()
            try:
                worker.link.leave()
            finally:
                worker.link.end()

    def _watch(self) -> None:
        seen = time.monotonic()
        while self._workers or not self._is_last:
            ready = self._wait([w.link for w in self._workers], TICK_S)
            seen, before = time.monotonic(), seen
            self._now += min(seen - before, MOST_TICK_S)
            for worker in [w for w in self._workers if w.link in ready]:
                self._serve(worker)
            if not ready:  # the driver raises what it cannot record, also in a long epoch
                self._ask((), 0)
            self._end_silent()
            self._end_hung()
            self._adjust()

    def _adjust(self) -> None:
        """Start workers where there is more room now; end those that load and are not needed."""
        before, self._n_wanted = self._n_wanted, self._count()
        if (self._n_wanted > before or self._n_dismissed) and not self._is_last:
            self._n_dismissed = 0
            self._fill()
        loading = [w for w in self._workers if not w.is_ready]
        n_surplus = len(self._workers) - (0 if self._is_last else self._n_wanted)
        if self._leaving or len(loading) < len(self._workers):
            for worker in loading[: max(0, n_surplus)]:
                worker.link.end()
                self._workers.remove(worker)

    def _ask(self, reports: Sequence[Report], n_free: int) -> Orders:
        orders = self._exchange(reports, n_free)
        self._is_last = orders.is_last
        if orders.is_stopping and self._stopped_at is None:
            self._stopped_at = self._now
        return orders

    def _serve(self, worker: _Worker) -> None:
        message = worker.link.receive()
        if isinstance(message, SweepError):
            if worker.is_ready or not self._has_served:
                raise message
            message = Failure("exception", str(message))  # its machine's own: others have begun
        if isinstance(message, Failure):
            self._bury(worker, message)
            return
        worker.is_ready, self._has_served, self._n_stillborn = True, True, 0
        self._answer(worker, *message)

    def _answer(self, worker: _Worker, reports: Sequence[Report], n_free: int) -> None:
        if worker.running:
            worker.longest_s = max(worker.longest_s, self._now - worker.heard)
        worker.heard = self._now
        for report in reports:
            if isinstance(report, TrialResult):
                worker.running.pop(report.number, None)
            elif isinstance(report, WorkerReady) and not self._is_settled:
                self._settle(worker, report)
        if not worker.why_replaced:
            is_too_large, said = self._memory.check(worker, worker.link.resident_bytes, reports)
            if is_too_large:
                worker.why_replaced = said
            elif said:
                reports = (notice(said), *reports)
        if worker.why_replaced:
            self._relieve(worker, reports)
        else:
            self._send(worker, self._ask(reports, min(n_free, self._share(worker))))
            self._n_dismissed += worker not in self._workers

    def _share(self, worker: _Worker) -> int:
        """How many more trials are one worker's: the first must not take those of all."""
        n_trials = self._task.n_trials
        if self._n_wanted < 2 or n_trials is None or self._n_started > n_trials:  # extended
            return sys.maxsize
        return max(0, math.ceil(n_trials / self._n_wanted) - len(worker.running))

    def _settle(self, worker: _Worker, ready: WorkerReady) -> None:
        """Start the other workers that the first one's measurements ask for; all later ones do
        what it does, without measuring again."""
        self._is_settled = True
        task = dataclasses.replace(worker.task, probes=(), may_share_steps=ready.may_share_steps)
        if task.population is None:  # a population of one trial still shares its data's order
            is_one = ready.n_slots == 1
            task = dataclasses.replace(task, population=ready.n_slots, was_larger=is_one)
        if ready.n_threads is not None:
            task = dataclasses.replace(task, n_threads=ready.n_threads)
        if ready.n_workers > 1:
            task = dataclasses.replace(task, may_add_workers=False)
        worker.task = self._task = task
        if task.may_add_workers or ready.n_workers > 1:
            self._n_wanted = max(self._n_wanted, ready.n_workers)
            self._fill()

    def _relieve(self, worker: _Worker, reports: Sequence[Report]) -> None:
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
            self._hire(worker.task)

    def _send(self, worker: _Worker, orders: Orders) -> None:
        worker.running |= {spec.number: self._now for spec in orders.start}
        self._n_started = max([self._n_started, *(spec.number + 1 for spec in orders.start)])
        worker.heard = self._now
        worker.link.send(orders)
        if orders.is_last and not worker.running:
            self._workers.remove(worker)
            self._leaving.append(worker)

    def _bury(self, worker: _Worker, failure: Failure) -> None:
        """Report a dead worker's trials as failed and start a new worker.

        One that was too large: the next trains half as many trials. One that left with its
        machine is nobody's fault.
        """
        task, said = worker.task, []
        n_fewer = max(1, len(worker.running) // 2)
        if worker.link.is_too_large and len(worker.running) > n_fewer:
            task = dataclasses.replace(task, population=n_fewer, was_larger=True)
            what = f"a worker with {len(worker.running)} trials was ended by SIGKILL"
            said = [notice(f"{what}: the next trains {n_fewer} at a time")]
        worker.link.end()
        self._workers.remove(worker)
        self._n_dismissed = 0  # its trials that are tried again need one worker
        self._n_deaths += FAILURES[failure.kind].costs_a_try
        self._n_stillborn += not worker.is_ready
        is_hopeless = self._n_deaths > MAX_DEATHS or self._n_stillborn >= MAX_STILLBORN
        is_ours = failure.kind == "exception" and not (worker.running or self._has_served)
        if is_hopeless or is_ours:
            words = "" if worker.is_ready else worker.link.last_words()
            said_last = f": {redacted(words)[:300]}" if words else ""
            raise StudyFailedError(f"a worker cannot start: {failure.message}{said_last}")
        if failure.kind == "exception":
            said.append(notice(f"a worker ended: {failure.message}"))
        orders = self._ask([*said, *_failed(worker.running, failure)], 0)
        if not orders.is_last:
            self._hire(task)

    def _end_hung(self) -> None:
        """Kill workers with a trial past its time limit; their other trials are tried again."""
        limit = self._task.trial_timeout_s
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
            worker.link.end()
            self._workers.remove(worker)
            said = f"a worker was ended: no epoch ended within {silent_s:.0f} s of the stop"
            notices = [notice(said)] if worker.is_ready else []
            self._ask([*notices, *_failed(worker.running, Failure("killed", said))], 0)


def _failed(numbers: Iterable[int], failure: Failure) -> list[Report]:
    return [TrialResult(number, "failed", n_epochs=0, failure=failure) for number in numbers]
