"""What the driver decided is written in the order of its decisions, by a thread of its own.

A trial takes the ledger 5 ms to open and 7 to close; the workers, who wait for the driver's answer
at every epoch's end, need not wait for that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

Step = Callable[[], object]


class Recorder:
    """Takes steps, and does them one after the other; after one that fails, none is done."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="recorder")
        self._openings: Future[None] | None = None
        self._last: Future[None] | None = None
        self._error: BaseException | None = None

    def record(self, openings: Sequence[Step], others: Sequence[Step]) -> None:
        """Do `openings`, then `others`, soon."""
        if openings:
            self._last = self._openings = self._pool.submit(self._do, tuple(openings))
        if others:
            self._last = self._pool.submit(self._do, tuple(others))

    def catch_up(self) -> None:
        """Wait until all openings are done. Raises what went wrong so far."""
        self._wait_for(self._openings)

    def settle(self) -> None:
        """Wait until everything is done. Raises what went wrong."""
        self._wait_for(self._last)

    def abandon(self) -> None:
        """Do what still can be done, as nothing more will come; errors are not raised."""
        self._pool.shutdown(wait=True)

    def _wait_for(self, future: Future[None] | None) -> None:
        if future is not None:
            future.result()
        if self._error is not None:
            raise self._error

    def _do(self, steps: Sequence[Step]) -> None:
        if self._error is not None:
            return
        try:
            for step in steps:
                step()
        except BaseException as error:  # noqa: BLE001 - raised in the thread that decides
            self._error = error
