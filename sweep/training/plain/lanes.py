"""Functions that take turns in one process: one runs at a time, until it has to wait.

Each has a thread, for torch keeps much of what a step sets (gradient and inference mode, autocast)
for each thread, and the state of the global random generators for all of them together.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch


class AbandonedError(BaseException):
    """Raised in a lane that is not wanted any more."""


class Lane:
    """A function that runs in turns with others.

    Args:
        function: Called with the lane in the lane's own thread, at the first `resume`. The global
            generators are its own while it runs, and stay as it leaves them: whoever runs next
            and draws from them holds `Generators` of its own.
    """

    def __init__(self, function: Callable[[Lane], None]) -> None:
        self._function = function
        self._generators = Generators()
        self._goes, self._waits = threading.Semaphore(0), threading.Semaphore(0)
        self._value: Any = None
        self._wanted: Any = None
        self._call: Callable[[], Any] | None = None
        self._error: BaseException | None = None
        self._is_abandoned = False
        self.has_ended = False
        self.spent_s = 0.0
        """Time that others spent for it."""
        self._ran_s = self._resumed_s = 0.0
        self._thread = threading.Thread(target=self._run, name="trial", daemon=True)

    def resume(self, value: Any = None) -> Any:
        """Let it run, with `value` for what it waits for, until it waits again or ends.

        Returns what it waits for then; None at its end. Raises what the function raised.
        """
        self._value = value
        while True:
            self._generators.hold()
            self._resumed_s = time.perf_counter()
            if self._thread.ident is None:
                self._thread.start()
            else:
                self._goes.release()
            self._waits.acquire()
            self._ran_s += time.perf_counter() - self._resumed_s
            if self._call is None:
                break
            OUTSIDE.hold()
            self._value = self._answer(self._call)
        if self._error is not None:
            raise self._error
        return self._wanted

    def wait(self, wanted: Any) -> Any:
        """In the lane: wait for `wanted`; returns what `resume` is given for it."""
        self._wanted = wanted
        return self._pause()

    def clock(self) -> float:
        """In the lane: seconds that it has run, and others for it."""
        return self.spent_s + self._ran_s + time.perf_counter() - self._resumed_s

    def outside(self, call: Callable[[], Any]) -> Any:
        """In the lane: the result of a call in the thread that resumed it, or its exception."""
        self._call = call
        return self._pause()

    @property
    def torch_generator(self) -> torch.Tensor:
        """State of its global generator of torch on the CPU, while it waits."""
        return self._generators.torch_state

    @torch_generator.setter
    def torch_generator(self, state: torch.Tensor) -> None:
        self._generators.torch_state = state

    def abandon(self) -> None:
        """End it where it waits."""
        self._is_abandoned = True
        if self._thread.ident is not None and not self.has_ended:
            self._generators.hold()
            self._goes.release()
            self._thread.join()

    def _pause(self) -> Any:
        self._waits.release()
        self._goes.acquire()
        self._call, value, self._value = None, self._value, None
        if self._is_abandoned:
            raise AbandonedError
        if isinstance(value, Raised):
            raise value.error
        return value

    def _answer(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except BaseException as error:  # noqa: BLE001 - it is the lane's
            return Raised(error)

    def _run(self) -> None:
        try:
            self._function(self)
        except AbandonedError:
            pass
        except BaseException as error:  # noqa: BLE001 - `resume` raises it
            self._error = error
        self._wanted, self.has_ended = None, True
        self._waits.release()


class Raised:
    """An exception in place of what a lane waits for: `wait` raises it."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def generators() -> Any:
    """The state of the global random generators, to be given to `set_generators` only."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    return torch.get_rng_state(), np.random.get_state(), random.getstate(), cuda


def set_generators(state: Any) -> None:
    """Put back what `generators` gave."""
    torch.set_rng_state(state[0])
    np.random.set_state(state[1])
    random.setstate(state[2])
    if state[3] is not None:
        torch.cuda.set_rng_state_all(state[3])


class Generators:
    """State of the global random generators, one for each of several that take turns.

    Swapping costs about 0.1 ms, nearly all of it numpy's; so who ran last keeps the global ones
    until another calls `hold`.
    """

    _holder: Generators

    def __init__(self) -> None:
        self._state: Any = None

    @staticmethod
    def holder() -> Generators:
        """Whose state the global generators have."""
        return Generators._holder

    def hold(self) -> None:
        """Let the global generators go on from this state; at the first time as they are."""
        before = Generators._holder
        if before is not self:
            before._state = generators()
            if self._state is not None:
                set_generators(self._state)
            Generators._holder = self

    @property
    def torch_state(self) -> torch.Tensor:
        """Of torch's generator on the CPU."""
        is_global = Generators._holder is self
        return torch.get_rng_state() if is_global else self._state[0]

    @torch_state.setter
    def torch_state(self, state: torch.Tensor) -> None:
        if Generators._holder is self:
            torch.set_rng_state(state)
        else:
            self._state = (state, *self._state[1:])


OUTSIDE = Generators._holder = Generators()
"""Of all that takes no turns."""


@contextlib.contextmanager
def isolated_generators() -> Iterator[None]:
    """Afterwards, the global generators are as before."""
    before = generators()
    try:
        yield
    finally:
        set_generators(before)
