"""Records out of the driver's way: one queue, one thread, nothing lost without a word."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from sweep.errors import UndeliveredError
from sweep.tracking.uri import one_line
from sweep.trial import EpochReport, Record, TrialFinished, TrialStarted

FLUSH_S = 2.0
"""Epoch metrics are gathered for at least this long, in seconds."""

MAX_SHARE = 0.05
"""Share of the time that gathering may let the metrics of running trials cost."""

RETRY_S = 5.0
"""After a store did not answer it is asked again this often, in seconds."""

CLOSE_S = 10.0
"""At the end a store that does not answer is asked for this long, in seconds."""

_log = logging.getLogger("sweep.tracking")


class Sink(Protocol):
    """Where records go. Must stand the same record twice: a failed one is tried again."""

    def apply(self, record: Record, reports: Sequence[EpochReport]) -> None:
        """Take `record`, and before it the `reports` of its trial that were gathered."""
        ...

    def log_epochs(self, number: int, reports: Sequence[EpochReport]) -> None:
        """Take reports of the trial `number`, oldest first."""
        ...

    def is_lasting(self, error: Exception) -> bool:
        """Whether trying again is pointless (a refused value) and not (no answer)."""
        ...


class Delivery:
    """Hands records to a sink in a thread of its own, in order.

    A store that does not answer keeps the queue waiting and is asked again; a record that the
    store refuses is dropped, counted and written to the log.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._inbox: queue.SimpleQueue[Sequence[Record] | None] = queue.SimpleQueue()
        self._todo: deque[Record] = deque()
        self._gathered: dict[int, list[EpochReport]] = {}
        self._n_lost = 0
        self._error: Exception | None = None
        self._flush_at = self._retry_at = 0.0
        self._thread = threading.Thread(target=self._run, name="sweep-tracking", daemon=True)
        self._thread.start()

    def put(self, records: Sequence[Record]) -> None:
        """Take records; returns at once."""
        self._inbox.put(tuple(records))

    def close(self) -> None:
        """Deliver what is left and end the thread.

        Raises:
            UndeliveredError: Says how many records were not delivered, and the first reason.
        """
        self._inbox.put(None)
        self._thread.join()
        n_left = self._n_lost + self._n_waiting()
        if n_left:
            records = "record" if n_left == 1 else "records"
            raise UndeliveredError(
                f"{n_left} {records} could not be delivered to MLflow: {one_line(self._error)}"
            ) from self._error

    def _run(self) -> None:
        while self._receive():
            self._deliver(is_last=False)
        deadline = time.monotonic() + CLOSE_S
        self._retry_at = 0.0
        while not self._deliver(is_last=True) and time.monotonic() < deadline:
            time.sleep(min(1.0, RETRY_S))

    def _receive(self) -> bool:
        """Wait for records, or for the next flush; False once closed."""
        has_work = self._n_waiting() > 0
        wait_s = max(0.0, max(self._flush_at, self._retry_at) - time.monotonic())
        try:
            batch = self._inbox.get(timeout=wait_s if has_work else None)
            while batch is not None:
                self._todo.extend(batch)
                batch = self._inbox.get_nowait()
        except queue.Empty:
            return True
        return False

    def _deliver(self, *, is_last: bool) -> bool:
        """Work through what waits; False where the store did not answer."""
        if time.monotonic() < self._retry_at:
            return False
        while self._todo:
            record = self._todo[0]
            if isinstance(record, EpochReport):
                self._gathered.setdefault(record.number, []).append(record)
            elif not self._apply(record):
                return False
            self._todo.popleft()
        if is_last or time.monotonic() >= self._flush_at:
            return self._flush()
        return True

    def _apply(self, record: Record) -> bool:
        number = record.number if isinstance(record, TrialStarted | TrialFinished) else -1
        reports = self._gathered.get(number, [])
        try:
            self._sink.apply(record, reports)
        except Exception as error:  # noqa: BLE001 - kept, counted, raised by close()
            _log.exception("could not deliver %s", type(record).__name__)
            if not self._note(error, 1 + len(reports)):
                return False
        self._gathered.pop(number, None)
        return True

    def _flush(self) -> bool:
        began = time.monotonic()
        for number, reports in list(self._gathered.items()):
            try:
                self._sink.log_epochs(number, reports)
            except Exception as error:  # noqa: BLE001 - as above
                _log.exception("could not deliver epochs of trial %d", number)
                if not self._note(error, len(reports)):
                    return False
            del self._gathered[number]
        now = time.monotonic()
        # With many trials a round takes long (2-7 ms each): then it comes round less often.
        self._flush_at = now + max(FLUSH_S, (now - began) / MAX_SHARE)
        return True

    def _note(self, error: Exception, n_records: int) -> bool:
        """Remember the first error; True where the records are given up."""
        self._error = self._error or error
        is_lasting = self._sink.is_lasting(error)
        if is_lasting:
            self._n_lost += n_records
        else:
            self._retry_at = time.monotonic() + RETRY_S
        return is_lasting

    def _n_waiting(self) -> int:
        return len(self._todo) + sum(map(len, self._gathered.values()))
