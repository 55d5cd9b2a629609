"""The error tree. All errors raised by sweep on purpose are SweepErrors.

    SweepError                 1   anything below without its own code
    ├── UsageError             2   a request with faults
    │   ├── ConfigError            faults in flags, environment or config file (all at once)
    │   ├── SpaceError             faults in a search-space file (all at once, with lines)
    │   └── NotFoundError          no study, trial or run of that name
    ├── DataError              3   a data set cannot be fetched, or its files are damaged
    ├── StoreError             4   MLflow or the Optuna storage cannot be reached or written
    │   └── DiskError              no space left, or a read-only folder
    ├── StudyLockedError       5   another live driver owns the study
    ├── StudyFailedError       6   trials keep failing, or none succeeded
    ├── UndeliveredError       7   the search is done, but records could not be delivered to MLflow
    ├── SealedTestSplitError   1   a search tried to read the test split
    └── StudyInterrupted     130   Ctrl-C, SIGTERM or SIGHUP: the same command continues

    OUT_OF_TIME                8   no error: --timeout ended the search, the same command continues

The numbers are exit codes; a class without a number has its parent's. `Interruption` is no
SweepError: it is the user's second Ctrl-C, as opposed to a KeyboardInterrupt of user code.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import ClassVar, Self

_MAX_SHOWN, _MAX_FAULTS = 100, 20


class SweepError(Exception):
    """Root of the tree. The message is one line with the remedy."""

    exit_code: ClassVar[int] = 1


class UsageError(SweepError):
    """A request with faults; `faults` holds one sentence each."""

    exit_code = 2

    def __init__(self, faults: str | Iterable[str]) -> None:
        self.faults = (faults,) if isinstance(faults, str) else tuple(faults)
        more = len(self.faults) - _MAX_FAULTS
        rest = [f"... and {more} faults more"] if more > 0 else []
        super().__init__("\n".join([*self.faults[:_MAX_FAULTS], *rest]))


class ConfigError(UsageError):
    """Faults in flags, environment or config file."""


class SpaceError(UsageError):
    """Faults in a search-space file, each with its line."""


class NotFoundError(UsageError):
    """No study, trial or run of that name."""


class DataError(SweepError):
    """A data set cannot be fetched, or its files are damaged."""

    exit_code = 3


class StoreError(SweepError):
    """MLflow or the Optuna storage cannot be reached or written."""

    exit_code = 4


class DiskError(StoreError):
    """No space left on a disk, or a read-only folder."""


class StudyLockedError(SweepError):
    """Another live driver owns the study."""

    exit_code = 5

    @classmethod
    def by(cls, study: str, who: str = "", since_s: float | None = None) -> Self:
        """The error with the owner, if known, and its start (Unix time)."""
        owner = who or "another process"
        if since_s is not None:
            owner += time.strftime(" since %Y-%m-%d %H:%M:%S", time.localtime(since_s))
        return cls(f"study {study!r} is being run by {owner}: wait for it, or choose --study NAME")


class StudyFailedError(SweepError):
    """The search stopped because trials keep failing, or none succeeded."""

    exit_code = 6


class UndeliveredError(SweepError):
    """The search is done, but records could not be delivered to MLflow."""

    exit_code = 7


class SealedTestSplitError(SweepError):
    """A search tried to read the test split."""


class StudyInterrupted(SweepError):  # noqa: N818 - an interruption is not an error
    """Ctrl-C, SIGTERM or SIGHUP: the same command continues."""

    exit_code = 130


OUT_OF_TIME = 8
"""Exit code after --timeout: a script calls again until it is 0."""


class Interruption(BaseException):
    """The user's second Ctrl-C (or SIGTERM): the search ends at once, also within user code.

    Not a KeyboardInterrupt: Lightning answers that with sys.exit(1).
    """


def causes(error: BaseException) -> Iterator[BaseException]:
    """`error`, its cause or context, and so on."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def os_error_text(error: OSError) -> str:
    """Reason and file of an error; some of Python's errors name no file."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.filename is not None:
        return f"{reason} ({error.filename})"
    try:
        os.getcwd()  # noqa: PTH109 - errors.py stays light
    except OSError:
        return f"{reason}: the current folder does not exist any more"
    return f"{reason} (the error names no file)" if error.errno else reason


def must_be_one_of(field: str, value: object, choices: Iterable[str]) -> str:
    """One sentence with the field, the rule, the value got and the nearest choice.

    >>> must_be_one_of("optimizer", "adma", ["SGD", "Adam"])
    "optimizer must be one of SGD, Adam, but got 'adma' (did you mean Adam?)"
    """
    known = list(choices)
    hint = did_you_mean(value, known)
    return f"{field} must be one of {', '.join(known)}, but got {shown(value)}{hint}"


def did_you_mean(value: object, choices: Iterable[str]) -> str:
    """` (did you mean NAME?)` with the nearest of `choices`; empty if none is near."""
    lowered = {choice.lower(): choice for choice in choices}
    near = get_close_matches(shown(value).strip("'").lower(), lowered, n=1, cutoff=0.5)
    return f" (did you mean {lowered[near[0]]}?)" if near else ""


def shown(value: object) -> str:
    """`value` for a message: its repr, cut to 100 characters."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."
