"""Waiting for what another thread or process does: long enough for a machine that is busy."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 300
"""A test waits this long before it fails, in seconds: below the suite's own limit for a test."""


def wait_until(condition: Callable[[], object], what: str = "it never came about") -> None:
    """Returns once `condition()` is true; fails with `what` after PATIENCE_S."""
    deadline = time.monotonic() + PATIENCE_S
    began_s = time.thread_time()
    while not condition():
        assert time.monotonic() < deadline, what
        # What takes long to tell is asked less often: the processor is the waited-for's.
        time.sleep(min(1.0, max(0.02, 4 * (time.thread_time() - began_s))))
        began_s = time.thread_time()
