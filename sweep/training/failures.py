"""What kind of failure an exception is."""

from __future__ import annotations

import errno
import traceback
from typing import TypeGuard

import torch

from sweep.errors import Interruption, causes, os_error_text
from sweep.imports import place_of
from sweep.redact import redacted
from sweep.trial import Failure, FailureKind


def classify(error: BaseException, module: str = "") -> Failure:
    """The failure that `error` stands for: oom, nan or exception, with its traceback.

    The message ends with file and line of the user's own code, if it was there; `module` is the
    user's. Credentials are left out here already: many places keep what it says.
    """
    text = redacted("".join(traceback.format_exception(error)))
    return Failure(_kind(error), one_line(error, module), text)


def one_line(error: BaseException, module: str = "") -> str:
    """Class, message and place of an exception."""
    message = os_error_text(error) if _is_nameless(error) else str(error)
    name, message = type(error).__name__, " ".join(redacted(message).split())
    told, place = (f"{name}: {message}" if message else name)[:500], place_of(error, module)
    return f"{told} ({place})" if place else told


def raised_by_user_code(error: BaseException) -> BaseException:
    """`error`, or the KeyboardInterrupt that Lightning turned into `sys.exit(1)`.

    Raises Interruption if that is behind it: Ctrl-C is the user's and not a trial's failure.
    """
    for link in causes(error):
        if isinstance(link, Interruption):
            raise link
    before = error.__context__
    is_lightnings = isinstance(error, SystemExit) and error.code == 1
    return before if is_lightnings and isinstance(before, KeyboardInterrupt) else error


def _is_nameless(error: BaseException) -> TypeGuard[OSError]:
    return isinstance(error, OSError) and error.errno is not None and error.filename is None


def not_finite(epoch: int, metric: str, value: float) -> Failure:
    """The failure of a trial whose `metric` is NaN or infinite after `epoch`."""
    return Failure("nan", f"{metric} is {value} after epoch {epoch}")


def _kind(error: BaseException) -> FailureKind:
    is_memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
    if is_memory or (isinstance(error, RuntimeError) and "out of memory" in str(error).lower()):
        return "oom"
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return "oom"
    if "alloc" in str(error).lower() and "DefaultCPUAllocator" in str(error):
        return "oom"
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid"):
        return "killed"  # by a signal to all processes, or for want of memory
    return "exception"
