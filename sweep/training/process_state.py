"""Restores process-wide settings changed by user code in one trial before the next.

Not restorable: `torch.set_flush_denormal` and the number of torch's inter-op threads (no way to
read or to change them), system limits, generators and caches in a module's own variables, threads
left running, and patches of libraries.
"""

from __future__ import annotations

import contextlib
import gc
import locale
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.backends import cudnn

from sweep.training.resuming import random_state, set_random_state

_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], object]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.is_anomaly_enabled, torch.set_anomaly_enabled),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (lambda: cudnn.benchmark, lambda value: setattr(cudnn, "benchmark", value)),
    (lambda: cudnn.deterministic, lambda value: setattr(cudnn, "deterministic", value)),
    (
        torch.get_default_device,
        lambda device: torch.set_default_device(None if device.type == "cpu" else device),
    ),
    (np.geterr, lambda how: np.seterr(**how)),
    (lambda: locale.setlocale(locale.LC_ALL), lambda name: locale.setlocale(locale.LC_ALL, name)),
    (sys.getrecursionlimit, sys.setrecursionlimit),
    (gc.isenabled, lambda is_enabled: gc.enable() if is_enabled else gc.disable()),
    (lambda: list(sys.path), lambda path: sys.path.__setitem__(slice(None), path)),
    (lambda: list(sys.argv), lambda argv: sys.argv.__setitem__(slice(None), argv)),
    (lambda: dict(os.environ), lambda before: _set_environment(before)),
)
"""(getter, setter) of each setting."""


@contextlib.contextmanager
def undisturbed(folder: str | None = None) -> Iterator[None]:
    """Restore at the end of the block: `_SETTINGS`, the current folder, random generators, warning
    filters, signal handlers, timers and standard streams.

    Args:
        folder: Folder to change to first if the current one no longer exists.
    """
    here = current_folder()
    if here is None and folder is not None:
        os.chdir(folder)
        here = folder
    settings = [(write, read(), read) for read, write in _SETTINGS]
    generators, streams, signals = random_state(), (sys.stdout, sys.stderr), _signals()
    alarm_s, began_s = signal.getitimer(signal.ITIMER_REAL)[0], time.monotonic()
    try:
        with warnings.catch_warnings():
            yield
    finally:
        for write, before, read in settings:
            if read() != before:
                write(before)
        set_random_state(generators)
        sys.stdout, sys.stderr = streams
        _set_signals(signals)
        _set_alarm(max(alarm_s - (time.monotonic() - began_s), 0.01) if alarm_s else 0.0)
        if here is not None and current_folder() != here:
            with contextlib.suppress(OSError):
                os.chdir(here)


def settings() -> list[Any]:
    """The current folder, and settings that user code may change, but environment variables."""
    return [current_folder(), *(read() for read, _ in _SETTINGS[:-1])]


def current_folder() -> str | None:
    """The path of the current folder; None if it was removed."""
    try:
        return os.getcwd()  # noqa: PTH109 - a string, as it goes to chdir
    except OSError:
        return None


def _set_environment(before: dict[str, str]) -> None:
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)


def _signals() -> dict[int, Any] | None:
    """Handlers by signal; None outside the main thread, as only it can set handlers."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return {number: signal.getsignal(number) for number in signal.valid_signals()}


def _set_signals(before: dict[int, Any] | None) -> None:
    if before is None:
        return
    for number, handler in before.items():
        if handler is not None and signal.getsignal(number) != handler:
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, handler)


def _set_alarm(due_s: float) -> None:
    """Cancel an alarm left by the trial; restart one set before it."""
    if abs(signal.getitimer(signal.ITIMER_REAL)[0] - due_s) > 0.5:
        signal.setitimer(signal.ITIMER_REAL, due_s)
