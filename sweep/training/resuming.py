"""Resume files: when to write them, how to validate them, and states of random generators.

A resume file is a Lightning checkpoint with torch's optimizer state, the same format for all
engines. An additional key, `RESUME_KEY`, holds the trial's record (`Run.state`). Files contain
plain values and tensors only, to load with `weights_only=True`.
"""

from __future__ import annotations

import copy
import io
import os
import pickle
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from sweep.errors import DiskError
from sweep.files.trial_files import (
    BEST,
    MODEL,
    RESUME_STATE,
    VERDICT,
    is_whole_checkpoint,
    spec_digest,
)
from sweep.loading import raised_by_user_code
from sweep.training.failures import classify
from sweep.training.run import RESUME_KEY, Run
from sweep.trial import Notice, Report, now_ms

MOST_SHARE = 0.02
"""Largest share of a worker's time for resume files: a slow disk stretches the interval."""


class UnusableError(Exception):
    """A resume file cannot be used; the message gives the reason."""


def saved_bytes(value: Any, save: Callable[[Any, Any], object] = torch.save) -> bytearray:
    """The output of `save`, in memory: in a file, torch would report a full disk as RuntimeError.

    Raises MemoryError if it does not fit.
    """
    buffer = _Buffer()
    save(compact(value) if save is torch.save else value, buffer)
    if buffer.is_full:
        raise MemoryError("no room for a checkpoint")
    return buffer.content


def compact(value: Any) -> Any:
    """The same with copies of tensors that are parts of larger ones: torch saves those whole."""
    if isinstance(value, torch.Tensor):
        n_bytes = value.numel() * value.element_size()
        return value.clone() if value.untyped_storage().nbytes() > n_bytes else value
    if isinstance(value, dict):
        found = copy.copy(value)
        for key, item in value.items():
            found[key] = compact(item)
        return found
    if type(value) in (list, tuple):
        return type(value)(compact(item) for item in value)
    return value


def see_that_it_loads(checkpoint: Mapping[str, Any], content: bytes | bytearray) -> None:
    """Raises TypeError naming the parts that cannot be loaded as plain values.

    A user's `on_save_checkpoint`, callback or DataModule may have added them.
    """
    if _loads(content):
        return
    strange = [name for name, value in checkpoint.items() if not _loads(saved_bytes(value))]
    raise TypeError(
        f"what the module, a callback or the DataModule puts under {', '.join(strange)} are no "
        "plain values"
    )


def _loads(content: bytes | bytearray) -> bool:
    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        return False
    return True


class _Buffer(io.RawIOBase):
    """Never raises: torch writes an archive's end in a destructor, so an exception would abort."""

    def __init__(self) -> None:
        self.content, self.is_full = bytearray(), False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        """True for torch.export: it seeks to the beginning, but only after its last write."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """Does nothing."""
        return offset

    def write(self, data: Any) -> int:
        """Append `data`; out of memory, drop the content and set `is_full`."""
        try:
            if not self.is_full:
                self.content += data
        except MemoryError:
            self.content, self.is_full = bytearray(), True
        return memoryview(data).nbytes


class Keeper:
    """Schedules the writing of resume files; reports the first failure.

    Args:
        interval_s: Least time between two writes, in seconds; stretched to keep writing below
            `MOST_SHARE` of the time.
    """

    def __init__(self, interval_s: float) -> None:
        self._interval_s, self._pause_s = interval_s, interval_s
        self._last_s = time.monotonic()
        self._is_told = False

    @property
    def is_due(self) -> bool:
        """Whether the interval has passed."""
        return time.monotonic() - self._last_s >= self._pause_s

    def keep(self, writes: Sequence[Callable[[], None]]) -> list[Report]:
        """Write resume files. Training continues after a failure; only the first is reported."""
        began_s = time.monotonic()
        said: list[Report] = []
        for write in writes:
            try:
                write()
            except BaseException as error:  # noqa: BLE001 - a user's module may not be picklable
                raised_by_user_code(error)
                if not self._is_told:
                    self._is_told = True
                    said.append(_not_kept(error))
        self._last_s = time.monotonic()
        if self._interval_s > 0:
            self._pause_s = max(self._interval_s, (self._last_s - began_s) / MOST_SHARE)
        return said


def _not_kept(error: BaseException) -> Notice:
    failure = classify(error)
    what = f"{RESUME_STATE} cannot be written: {failure.message}"
    if isinstance(error, DiskError):
        what = str(error)
    elif failure.kind == "oom":
        what = f"{RESUME_STATE} cannot be written: out of memory"
    return Notice(now_ms(), f"{what}; if the search is killed now, trials start again")


def forget_earlier_try(run: Run) -> None:
    """Delete the verdict and temporary files of an earlier try; for a new start also its
    checkpoints and model."""
    files = run.files
    files.remove(VERDICT)
    for part in files.folder.glob(".*"):
        if part.suffix != f".{os.getpid()}":  # written aside by a worker that was killed
            files.remove(part.name)
    if not run.spec.is_resumed:
        # The number may have been another configuration's before.
        files.remove(RESUME_STATE, BEST, MODEL)


def load_resume_file(run: Run) -> dict[str, Any]:
    """The checkpoint in a trial's resume file.

    Raises UnusableError for a bad file. Out-of-memory errors pass through unchanged: the file
    itself may be fine.
    """
    spec, path = run.spec, run.files.path(RESUME_STATE)
    if not path.is_file():
        raise UnusableError("it is missing")
    if not is_whole_checkpoint(path):
        raise UnusableError("it is damaged")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        state = checkpoint[RESUME_KEY]
        digest, _ = state["spec"], checkpoint["optimizer_states"]
    except Exception as error:
        if classify(error).kind == "oom":
            raise
        raise UnusableError(f"it is no resume state ({type(error).__name__})") from error
    if digest != spec_digest(spec):
        raise UnusableError("it is of another configuration")
    return checkpoint  # type: ignore[no-any-return]


def start_over(run: Run, why: object) -> Notice:
    """Delete the files of a trial whose resume file is unusable; a line for the user.

    They may be another configuration's, which had the number before.
    """
    run.files.remove(RESUME_STATE, BEST, MODEL)
    text = " ".join(str(why).split())[:200]
    return Notice(
        now_ms(),
        f"trial {run.spec.number} starts from its beginning, {run.files.path(RESUME_STATE)} "
        f"cannot be used: {text}",
    )


def random_state() -> dict[str, Any]:
    """State of the global generators of torch, numpy and Python, as plain values."""
    name, keys, *rest = np.random.get_state()
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(name), np.asarray(keys).tolist(), *rest],
        "python": [version, list(internal), gauss],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Reset the global generators to a `random_state`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


def seed_everything(seed: int) -> None:
    """Seed the global generators of torch, numpy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
