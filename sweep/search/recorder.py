"""Writes the driver's decisions in a thread of its own: openings first, all else in its order.

The ledger takes some 10 ms to open a trial, and 60 to close one of 20 epochs. A worker waits for
the driver's answer at every epoch's end, but need not wait for either: its trial was opened while
it trained the first epoch, and nobody waits for a closing. Until it is written, the trial's
verdict lies in its folder.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

Step = Callable[[], object]

MOST_BEHIND = 512
"""Closings that may wait, two steps a trial: 20 s of work or more, for which the end of a search
waits."""


class Recorder:
    """Does one step at a time, openings first; after the first error it does no more."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="recorder")
        self._openings: collections.deque[Step] = collections.deque()
        self._others: collections.deque[tuple[bool, Step]] = collections.deque()
        """With whether it is a closing."""
        self._is_done = threading.Condition()
        self._n_left = self._n_closings = self._n_opened = 0
        self.n_openings = 0
        """How many were asked for so far."""
        self._error: BaseException | None = None

    def record(
        self, openings: Sequence[Step], closings: Sequence[Step], tell: Sequence[Step] = ()
    ) -> None:
        """Do `openings` before all that waits, then what was asked earlier, `closings`, `tell`."""
        with self._is_done:
            self._openings.extend(openings)
            self._others.extend((True, step) for step in closings)
            self._others.extend((False, step) for step in tell)
            self.n_openings += len(openings)
            self._n_closings += len(closings)
            self._n_left += len(openings) + len(closings) + len(tell)
        for _ in (*openings, *closings, *tell):
            self._pool.submit(self._do_next)

    def catch_up(self, n_openings: int) -> None:
        """Wait for the first `n_openings`, and until at most MOST_BEHIND closings wait.

        Raises the error.
        """
        self._wait(lambda: self._n_opened >= n_openings and self._n_closings <= MOST_BEHIND)

    def settle(self) -> None:
        """Wait for all steps. Raises the error."""
        self._wait(lambda: self._n_left == 0)

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

    def _wait(self, is_enough: Callable[[], bool]) -> None:
        with self._is_done:
            self._is_done.wait_for(lambda: is_enough() or self._error is not None)
        if self._error is not None:
            raise self._error

    def _do_next(self) -> None:
        is_closing = False
        with self._is_done:
            if is_opening := bool(self._openings):
                step = self._openings.popleft()
            else:
                is_closing, step = self._others.popleft()
        try:
            if self._error is None:
                step()
        except BaseException as error:  # noqa: BLE001 - raised in the driver's thread
            self._error = error
        with self._is_done:
            self._n_opened += is_opening
            self._n_closings -= is_closing
            self._n_left -= 1
            self._is_done.notify_all()
