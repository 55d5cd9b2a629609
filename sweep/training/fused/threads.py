"""How many threads train: measured again and again, since a machine is quiet or it is not.

torch's CPU threads spin while they wait for each other. On a quiet machine that is the fastest
way (a model-step of MNIST: 0.5 ms with two spinning threads, 1.1 where they sleep). With anything
else on the cores a step with two threads takes ten times as long as with one.
"""

from __future__ import annotations

import time

import torch

BLOCK = 4
"""Steps that are timed with each choice."""
REST_S = 2.0
"""Between two measurements; ten times what the last one took, where that is more."""

SMALL_FEATURES = 256
"""One trial at a time with no more features than this: its products are too small to share
(digits in the plain path: 2.5 s of work on one thread, 3.1 on two)."""


class ThreadTuner:
    """Switches torch between `most` threads and one, whichever makes the faster step.

    Steps should be alike, as they are while one trial is alone.

    Args:
        most: Threads that may be used; with 1 nothing is ever measured.
    """

    def __init__(self, most: int) -> None:
        # One thread first: it is never very slow, and says when to give the others up.
        self._choices = (1, most) if most > 1 else ()
        self._times: list[float] = []
        self._n_left = 0
        self._began = self._rest_until = time.perf_counter()

    def step(self) -> None:
        """Call before every step."""
        if not self._choices:
            return
        now = time.perf_counter()
        is_hopeless = bool(self._times) and now - self._began > min(self._times)
        if self._n_left > 0 and not (self._is_measuring and is_hopeless):
            self._n_left -= 1
        elif self._is_measuring:
            self._times.append(now - self._began)
            self._go_on(now)
        elif now >= self._rest_until:
            self._times = []
            self._go_on(now)

    @property
    def _is_measuring(self) -> bool:
        return self._rest_until == 0.0

    def _go_on(self, now: float) -> None:
        """Time the next choice, or settle for the fastest."""
        n_timed = len(self._times)
        if n_timed < len(self._choices):
            torch.set_num_threads(self._choices[n_timed])
            self._began, self._n_left, self._rest_until = now, BLOCK - 1, 0.0
            return
        fastest = min(range(n_timed), key=self._times.__getitem__)
        torch.set_num_threads(self._choices[fastest])
        self._rest_until = now + max(REST_S, 10 * sum(self._times))
