"""What the driver decided is written in the order of its decisions, by a thread of its own.

A trial takes the ledger some 5 ms to open and to close, and 2 for each epoch; the workers, who
wait for the driver's answer at every epoch's end, need not wait for that.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

Step = Callable[[], object]


MOST_BEHIND = 16
"""Batches of steps that may wait, so that what waits is bounded: those of eight answers."""


class Recorder:
    """Takes steps, and does them one after the other; after one that fails, none is done."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="recorder")
        self._openings: Future[None] | None = None
        self._waiting: collections.deque[Future[None]] = collections.deque()
        self._error: BaseException | None = None

    def record(self, openings: Sequence[Step], others: Sequence[Step]) -> None:
        """Do `openings`, then `others`, soon."""
        if openings:
            self._openings = self._submit(openings)
        if others:
            self._submit(others)

    def catch_up(self) -> None:
        """Wait until all openings, and what stands before them, are done, and not too many other
        steps wait. Raises what went wrong so far."""
        if self._openings is not None:
            self._openings.result()
        while len(self._waiting) > MOST_BEHIND or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()
        self._raise_error()

    def settle(self) -> None:
        """Wait until everything is done. Raises what went wrong."""
        while self._waiting:
            self._waiting.popleft().result()
        self._raise_error()

    def abandon(self) -> None:
        """Do what still can be done, as nothing more will come; errors are not raised.

        Whoever does not want to wait for that (Ctrl-C) ends it after the step that is being done.
        """
        try:
            self._pool.shutdown(wait=True)
        except BaseException as interruption:
            self._error = self._error or interruption
            self._pool.shutdown(wait=False, cancel_futures=True)
            raise

    def _submit(self, steps: Sequence[Step]) -> Future[None]:
        self._waiting.append(self._pool.submit(self._do, tuple(steps)))
        return self._waiting[-1]

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _do(self, steps: Sequence[Step]) -> None:
        try:
            for step in steps:
                if self._error is not None:
                    return
                step()
        except BaseException as error:  # noqa: BLE001 - raised in the thread that decides
            self._error = error
