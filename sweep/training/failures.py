"""Classifies exceptions as failures of a trial."""

from __future__ import annotations

import errno
import traceback

import torch

from sweep.loading import one_line
from sweep.redact import redacted
from sweep.trial import Failure, FailureKind


def classify(error: BaseException, module: str = "") -> Failure:
    """The failure for `error`: its kind (oom, killed or exception), message and traceback.

    For an error in the user's `module` the message ends with its file and line. Credentials are
    redacted here, before the text is stored in several places.
    """
    text = redacted("".join(traceback.format_exception(error)))
    return Failure(_kind(error), one_line(error, module), text)


def not_finite(epoch: int, metric: str, value: float) -> Failure:
    """The failure of a trial with a NaN or infinite `metric` after `epoch`."""
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
        return "killed"  # by a signal to all processes, or for lack of memory
    return "exception"
