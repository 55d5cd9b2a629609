"""Writes the driver's decisions in their order, in a thread of its own.

The ledger takes some 5 ms to open or close a trial, and 2 ms an epoch. Workers wait for the
driver's answer at every epoch's end, but need not wait for that.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

Step = Callable[[], object]

MOST_BEHIND = 16
"""Batches of steps that may wait, two for each answer."""


class Recorder:
    """Does steps one after the other; after the first error it does no more."""

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
        """Wait for all openings, and until at most MOST_BEHIND batches wait. Raises the error."""
        if self._openings is not None:
            self._openings.result()
        while len(self._waiting) > MOST_BEHIND or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()
        self._raise_error()

    def settle(self) -> None:
        """Wait for all steps. Raises the error."""
        while self._waiting:
            self._waiting.popleft().result()
        self._raise_error()

    def abandon(self) -> None:
        """Do the remaining steps without raising their error; the recorder ends.

        Ctrl-C during the wait ends it after the present step.
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
        except BaseException as error:  # noqa: BLE001 - raised in the driver's thread
            self._error = error
