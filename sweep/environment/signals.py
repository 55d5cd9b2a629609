"""Signals: the driver answers SIGINT, SIGTERM and SIGHUP, workers leave them to it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import FrameType
from typing import Any

from sweep.errors import Interruption

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C; GNU timeout, systemd, Slurm and kill; a closed terminal."""
SAME_SIGNAL_S = 0.5
"""A second signal this soon is the same one, sent to the process and to its group."""


@contextlib.contextmanager
def stopping(
    request: Callable[[], object], on_first: Callable[[], object] | None = None
) -> Iterator[None]:
    """Within, a signal calls `request`, and a second SIGINT or SIGTERM raises KeyboardInterrupt.

    `on_first` is called after the first request, in the handler: it must not wait, nor take a
    lock.

    SIGHUP never counts as the second signal, and under nohup it stays ignored. Outside the main
    thread nothing changes.
    """
    first: list[float] = []
    is_told = False

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal is_told
        if signum != signal.SIGHUP:
            if first and time.monotonic() - first[0] > SAME_SIGNAL_S:
                raise Interruption
            first.append(time.monotonic())
        request()
        if on_first is not None and not is_told:
            is_told = True
            on_first()

    with _handling(stop, STOPPING):
        try:
            yield
        except Interruption:
            raise KeyboardInterrupt from None


@contextlib.contextmanager
def interrupting() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP raise KeyboardInterrupt, as SIGINT does."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handling(interrupt, STOPPING[1:]):
        yield


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Within, a library may put handlers of its own in place of ours; afterwards ours are back."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def suspending(pids: Callable[[], Iterable[int]]) -> Iterator[None]:
    """Within, Ctrl-Z suspends the process groups of `pids` along with this process."""

    def suspend(signum: int, frame: FrameType | None) -> None:
        groups = tuple(pids())
        _signal_groups(groups, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        _signal_groups(groups, signal.SIGCONT)

    is_ours = signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL
    with _handling(suspend, (signal.SIGTSTP,)) if is_ours else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Within, a started process gets none of the signals before it asks for them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_to_driver() -> None:
    """In a worker: ignore the signals from now on.

    By an empty handler instead of SIG_IGN: child processes of user code would inherit SIG_IGN,
    and `Popen.terminate` or a Pool could not end them.
    """
    for number in STOPPING:
        signal.signal(number, _nothing)
    block = partial(signal.pthread_sigmask, signal.SIG_BLOCK, STOPPING)
    unblock = partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, STOPPING)
    # blocked: a signal to a child before its handlers are back would be lost
    os.register_at_fork(before=block, after_in_parent=unblock, after_in_child=_as_at_first)
    unblock()


def _nothing(signum: int, frame: FrameType | None) -> None:
    """The driver decides."""


def _as_at_first() -> None:
    for number in STOPPING:
        if signal.getsignal(number) is _nothing:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


@contextlib.contextmanager
def _handling(
    handler: Callable[[int, FrameType | None], Any], numbers: Iterable[signal.Signals]
) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    hangup_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    before = {
        number: signal.signal(number, handler)
        for number in numbers
        if not (number == signal.SIGHUP and hangup_ignored)
    }
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _signal_groups(groups: Iterable[int], number: signal.Signals) -> None:
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)
