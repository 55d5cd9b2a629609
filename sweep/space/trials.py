"""Three small suggesters beside Optuna's trials, so that a space can be sampled without Optuna."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from sweep.space.parameters import Scalar

Number = TypeVar("Number", int, float)


class RandomTrial:
    """Suggests at random, distributed as `optuna.samplers.RandomSampler` does."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """Uniform, or uniform in the logarithm."""
        if step is not None:
            return min(high, low + step * self._random.randint(0, round((high - low) / step)))
        if not log:
            return self._random.uniform(low, high)
        return _clip(math.exp(self._random.uniform(math.log(low), math.log(high))), low, high)

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        """Uniform, or uniform in the logarithm of the interval half a unit wider."""
        if not log:
            return self._random.randrange(low, high + 1, step)
        drawn = self._random.uniform(math.log(low - 0.5), math.log(high + 0.5))
        return _clip(round(math.exp(drawn)), low, high)

    def suggest_categorical(self, name: str, choices: Sequence[Scalar]) -> Any:
        """Any choice, equally likely."""
        return self._random.choice(choices)


class KnownTrial:
    """Suggests what it was given; KeyError for any other name."""

    def __init__(self, params: Mapping[str, Scalar]) -> None:
        self._params = params

    def suggest_float(self, name: str, low: float, high: float, **_: Any) -> Any:
        """The given number."""
        return self._params[name]

    def suggest_int(self, name: str, low: int, high: int, **_: Any) -> Any:
        """The given integer."""
        return self._params[name]

    def suggest_categorical(self, name: str, choices: Sequence[Scalar]) -> Any:
        """The given choice."""
        return self._params[name]


class FilledTrial:
    """Suggests what it was given, and for any other name at random."""

    def __init__(self, params: Mapping[str, Scalar], seed: int) -> None:
        self._params, self._random = params, RandomTrial(seed)

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> Any:
        """The given number, or one in the range."""
        drawn = self._random.suggest_float(name, low, high, step=step, log=log)
        return self._params.get(name, drawn)

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> Any:
        """The given integer, or one in the range."""
        drawn = self._random.suggest_int(name, low, high, step=step, log=log)
        return self._params.get(name, drawn)

    def suggest_categorical(self, name: str, choices: Sequence[Scalar]) -> Any:
        """The given choice, or any."""
        return self._params.get(name, self._random.suggest_categorical(name, choices))


def _clip(x: Number, low: Number, high: Number) -> Number:
    return max(low, min(high, x))
