"""Records out of the driver's way: one backlog, one thread, nothing lost without a word."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from sweep.errors import UndeliveredError
from sweep.sqlite import is_disk_full
from sweep.tracking.aside import Aside, number_of
from sweep.tracking.codec import Entry
from sweep.tracking.held import HeldTrials, named
from sweep.tracking.sink import Pace, Sink
from sweep.tracking.spool import Backlog
from sweep.tracking.uri import one_line, without_credentials
from sweep.trial import EpochReport, TrialFinished

MAX_SHARE = 0.05
"""Share of the time that gathering may let the metrics of running trials cost."""

MAX_GATHERED = 5_000
"""Epoch reports that are gathered at most: after an outage many come at once."""

UPLOAD_PATIENCE = 6
"""Times the grace that a call may take at the end where it stores files."""

_log = logging.getLogger("sweep.tracking")


class Delivery:
    """Hands records to a sink in a thread of its own, in order within each trial.

    A store that does not answer keeps the backlog waiting and is asked again. A record that no
    store will ever take is dropped, counted and written to the log. One that is refused while
    the store takes others holds up its own trial only: it is tried again, then set aside.

    Args:
        connect: Makes the sink, in the thread; asked again after it raised.
        backlog: Where records wait; closed at the end.
        pace: How often and how long the store is asked.
        aside: Where refused records are kept, closed at the end; None: they are lost.
        again: Whether what is set aside already is delivered first.
    """

    def __init__(
        self,
        connect: Callable[[], Sink],
        backlog: Backlog,
        pace: Pace,
        aside: Aside | None = None,
        *,
        again: bool = False,
    ) -> None:
        self._connect, self._backlog, self._pace, self._aside = connect, backlog, pace, aside
        self._sink: Sink | None = None
        self._todo: deque[Entry] = deque(aside.retry() if aside and again else ())
        self._n_again = len(self._todo)
        self._held = HeldTrials(pace, aside, set(map(number_of, self._todo)), self._give_up)
        self._gathered: dict[int, list[EpochReport]] = {}
        self._n_lost = 0
        self._error: Exception | None = None
        self._flush_at = self._retry_at = self._away_since = 0.0
        self._next_retry_s = pace.first_retry_s
        self._alive_at = time.monotonic()
        self._is_storing_files = False
        self._is_closing = False
        self._wake = threading.Event()
        self._wake.set()
        self._thread = threading.Thread(target=self._run, name="sweep-tracking", daemon=True)
        self._thread.start()

    @property
    def is_offline(self) -> bool:
        """Whether the store did not answer when it was last asked."""
        return self._away_since > 0

    def put(self, entries: Sequence[Entry]) -> None:
        """Take records; returns at once."""
        self._backlog.append(entries)
        self._wake.set()

    def close(self) -> None:
        """Deliver what is left and end the thread.

        Raises:
            UndeliveredError: Says how many records were not delivered, where they wait, and the
                first reason.
        """
        self._is_closing = True
        self._wake.set()
        began = time.monotonic()
        grace_s = self._pace.grace_s
        while self._thread.is_alive():
            self._thread.join(0.2)
            patience_s = grace_s * (UPLOAD_PATIENCE if self._is_storing_files else 1) + 1.0
            if time.monotonic() - max(began, self._alive_at) > patience_s:
                break  # it hangs in a call; being a daemon, it ends with the process
        n_waiting = self._n_waiting()
        n_homeless = min(n_waiting, self._backlog.close())
        n_aside = self._aside.close() if self._aside else 0
        self._raise_if_left(n_waiting - n_homeless, n_homeless, n_aside)

    def _raise_if_left(self, n_waiting: int, n_homeless: int, n_aside: int) -> None:
        n_lost = self._n_lost + self._backlog.n_dropped + n_homeless
        n_lost += self._aside.n_dropped if self._aside else 0
        n_waiting -= min(self._n_again, n_aside)  # those wait in the other file
        why = one_line(self._error) if self._error else "see the log"
        if self._backlog.file is None:
            n_lost, n_waiting = n_lost + n_waiting, 0
        said = []
        if n_lost:
            said.append(f"{_records(n_lost)} could not be delivered to MLflow: {why}")
        if n_waiting > 0:
            said.append(
                f"{_records(n_waiting)} for MLflow {_wait(n_waiting)} in {self._backlog.file}: "
                "the same command delivers them once MLflow answers"
                + ("" if n_lost else f" ({why})")
            )
        if self._aside is not None and n_aside:
            refusal = self._held.refusal
            said.append(
                f"{_records(n_aside)} of {named(self._aside.numbers)} that MLflow refused "
                f"{_wait(n_aside)} in {self._aside.file}: the same command and `sweep doctor "
                "--fix` try them again" + (f" ({one_line(refusal)})" if refusal else "")
            )
        if said:
            raise UndeliveredError("; ".join(said)) from self._error or self._held.refusal

    def _run(self) -> None:
        while not self._is_closing:
            self._wait()
            self._deliver(is_last=False)
        deadline = time.monotonic() + self._pace.grace_s
        self._retry_at = 0.0
        while not self._deliver(is_last=True) and time.monotonic() < deadline:
            if self._error is not None and is_disk_full(self._error):
                break  # waiting makes no room
            left_s = min(self._retry_at, deadline) - time.monotonic()
            time.sleep(max(0.02, min(1.0, left_s)))
            self._retry_at = 0.0

    def _wait(self) -> None:
        """Until records come, or the next flush or try is due."""
        due = self._retry_at if self._away_since else min(self._flush_at, self._held.due())
        wait_s = max(0.0, due - time.monotonic())
        self._wake.wait(wait_s if self._n_waiting() or self._sink is None else None)
        self._wake.clear()

    def _deliver(self, *, is_last: bool) -> bool:
        """Work through what waits; False where the store did not answer, or not take all of it."""
        if time.monotonic() < self._retry_at:
            return False
        try:
            sink = self._sink = self._sink or self._connect()
            while self._todo or self._take():
                if not self._hand_over(sink, self._todo[0]):
                    return False
                self._todo.popleft()
                self._n_again = max(0, self._n_again - 1)
                if self._n_gathered() > MAX_GATHERED and not self._flush(sink):
                    return False
            if (is_last or time.monotonic() >= self._flush_at) and not self._flush(sink):
                return False
            error = self._held.try_again(sink, is_closing=self._is_closing)
            if error is not None:
                self._away(error)
                return False
        except Exception as error:  # noqa: BLE001 - the thread must live: it is asked again
            self._away(error)
            return False
        if not self._gathered and not self._held.n_records:
            self._backlog.settle()
            if self._aside is not None:
                self._aside.settle()
        self._back()
        return not self._held.n_records

    def _take(self) -> bool:
        while not self._todo and self._backlog.n_untaken:
            self._todo.extend(self._backlog.take())
        return bool(self._todo)

    def _hand_over(self, sink: Sink, entry: Entry) -> bool:
        """Give the sink an entry, or put it where older ones of its trial are."""
        number = number_of(entry)
        if self._held.takes(number, entry):
            return True
        if isinstance(entry, EpochReport):
            if not self._gathered:
                self._flush_at = max(self._flush_at, time.monotonic() + self._pace.flush_s)
            self._gathered.setdefault(number, []).append(entry)
            return True
        return self._apply(sink, entry, number)

    def _apply(self, sink: Sink, entry: Entry, number: int) -> bool:
        reports = self._gathered.get(number, [])
        self._is_storing_files = isinstance(entry, TrialFinished)
        try:
            sink.apply(entry, reports)
        except Exception as error:  # noqa: BLE001 - kept, counted, raised by close()
            if not self._refused(sink, error, number, [*reports, entry]):
                return False
        finally:
            self._is_storing_files = False
        self._alive_at = time.monotonic()
        self._gathered.pop(number, None)
        return True

    def _flush(self, sink: Sink) -> bool:
        began = time.monotonic()
        for number, reports in list(self._gathered.items()):
            try:
                sink.log_epochs(number, reports)
            except Exception as error:  # noqa: BLE001 - as above
                if not self._refused(sink, error, number, reports):
                    return False
            self._alive_at = time.monotonic()
            del self._gathered[number]
        now = time.monotonic()
        # With many trials a round takes long (2-7 ms each): then it comes round less often.
        self._flush_at = now + max(self._pace.flush_s, (now - began) / MAX_SHARE)
        return True

    def _refused(
        self, sink: Sink, error: Exception, number: int, entries: Sequence[Entry]
    ) -> bool:
        """Take records out of the others' way; False where it is the store that is away."""
        if sink.is_lasting(error):
            self._give_up(error, len(entries))
        elif not sink.answers(number):
            self._away(error)
            return False
        else:
            self._held.hold(number, entries, error)
        return True

    def _give_up(self, error: Exception, n_records: int) -> None:
        without_credentials(error)
        _log.error("%s refused by MLflow for good", _records(n_records), exc_info=error)
        self._error = self._error if self._n_lost else error
        self._n_lost += n_records

    def _away(self, error: Exception) -> None:
        """The store did not answer: ask again later, less and less often."""
        now = time.monotonic()
        without_credentials(error)
        if not self._away_since:
            self._away_since = now
            _log.warning("MLflow does not answer, records wait", exc_info=error)
        if not self._n_lost:
            self._error = error
        self._retry_at = now + self._next_retry_s
        self._next_retry_s = min(2 * self._next_retry_s, self._pace.retry_s)

    def _back(self) -> None:
        if self._away_since:
            _log.warning("MLflow answers again after %.0f s", time.monotonic() - self._away_since)
            self._away_since = 0.0
            self._next_retry_s = self._pace.first_retry_s
            if not self._n_lost:
                self._error = None

    def _n_gathered(self) -> int:
        return sum(map(len, self._gathered.values()))

    def _n_waiting(self) -> int:
        n_here = len(self._todo) + self._n_gathered() + self._held.n_records
        return n_here + self._backlog.n_untaken


def _records(n: int) -> str:
    return "1 record" if n == 1 else f"{n} records"


def _wait(n: int) -> str:
    return "waits" if n == 1 else "wait"
