"""A stand-in for Optuna's trials: sampling a space or reading parameters back needs no Optuna."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sweep.space.parameters import Scalar


class FilledTrial:
    """Suggests the values of `params`, and for any other name at random.

    Draws are distributed as in `optuna.samplers.RandomSampler`. Without a seed a name outside
    `params` raises KeyError.
    """

    def __init__(self, params: Mapping[str, Scalar], seed: int | None = None) -> None:
        self._params = params
        self._random = None if seed is None else random.Random(seed)

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> Any:
        """Uniform, or uniform in the logarithm."""

        def draw(rng: random.Random) -> float:
            if step is not None:
                return min(high, low + step * rng.randint(0, round((high - low) / step)))
            if not log:
                return rng.uniform(low, high)
            return max(low, min(high, math.exp(rng.uniform(math.log(low), math.log(high)))))

        return self._value(name, draw)

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> Any:
        """Uniform, or uniform in the logarithm of the interval half a unit wider."""

        def draw(rng: random.Random) -> int:
            if not log:
                return rng.randrange(low, high + 1, step)
            drawn = math.exp(rng.uniform(math.log(low - 0.5), math.log(high + 0.5)))
            return max(low, min(high, round(drawn)))

        return self._value(name, draw)

    def suggest_categorical(self, name: str, choices: Sequence[Scalar]) -> Any:
        """Any choice, equally likely."""
        return self._value(name, lambda rng: rng.choice(choices))

    def _value(self, name: str, draw: Callable[[random.Random], Any]) -> Any:
        if self._random is None:
            return self._params[name]
        drawn = draw(self._random)  # also for a known name: later draws do not depend on it
        return self._params.get(name, drawn)
