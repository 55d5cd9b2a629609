"""What kind of failure an exception is."""

from __future__ import annotations

import errno
import traceback

import torch

from sweep.loading import one_line
from sweep.redact import redacted
from sweep.trial import Failure, FailureKind


def classify(error: BaseException, module: str = "") -> Failure:
    """The failure that `error` stands for: oom, nan or exception, with its traceback.

    The message ends with file and line of the user's own code, if it was there; `module` is the
    user's. Credentials are left out here already: many places keep what it says.
    """
    text = redacted("".join(traceback.format_exception(error)))
    return Failure(_kind(error), one_line(error, module), text)


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
