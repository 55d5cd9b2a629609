"""The kinds of parameter: choices, ranges of numbers, lists of layer widths.

Optuna sees each as one or more *dimensions*: names, each with one distribution that never
changes. Optuna is imported only for its distributions, so reading a space does not load it.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from sweep.config.file import show
from sweep.errors import must_be_one_of
from sweep.trial import HyperValue

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial

Scalar = str | int | float | bool | None
When: TypeAlias = Mapping[str, tuple[HyperValue, ...]]
"""Conditions of a parameter: other parameter -> values it must have one of."""


def is_number(value: object) -> bool:
    """Whether value is a finite int or float; true and false are not numbers here."""
    is_numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return is_numeric and abs(value) <= sys.float_info.max  # type: ignore[arg-type]


def is_integer(value: object) -> bool:
    """Whether value is a whole number: 64 and 64.0 are, true is not."""
    return is_number(value) and float(value).is_integer()  # type: ignore[arg-type]


def same(a: HyperValue, b: HyperValue) -> bool:
    """Equality of hyperparameters: 1 is 1.0, a list is a tuple, but true is not 1."""
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    return bool(a == b)


def among(value: HyperValue, values: Iterable[HyperValue]) -> bool:
    """Whether `value` equals one of `values` (see `same`)."""
    return any(same(value, other) for other in values)


def choice_code(choice: HyperValue) -> Scalar:
    """The choice for Optuna: itself, but a list as JSON text (Optuna stores no lists)."""
    return json.dumps(choice) if isinstance(choice, list | tuple) else choice


@dataclass(frozen=True, slots=True)
class Choices:
    """One of a few values, in no order. Optuna stores their codes (see `choice_code`)."""

    name: str
    values: tuple[HyperValue, ...]
    when: When = field(default_factory=dict)

    def ask(self, trial: BaseTrial) -> Scalar:
        """The code that an Optuna trial suggests."""
        code: Scalar = trial.suggest_categorical(self.name, self.codes())
        return code

    def draw(self, rng: random.Random) -> Scalar:
        """A random code, all equally likely."""
        code: Scalar = rng.choice(self.codes())
        return code

    def decode(self, ask: Ask) -> HyperValue:
        """The chosen value. Raises ValueError for an unknown code."""
        return self.values[self.codes().index(ask(self))]

    def encode(self, value: HyperValue) -> dict[str, Scalar] | None:
        """The code of `value`; None if it is no choice."""
        codes = [choice_code(choice) for choice in self.values if same(value, choice)]
        return {self.name: codes[0]} if codes else None

    def dimensions(self) -> tuple[Dimension, ...]:
        """Itself."""
        return (self,)

    def n_values(self) -> int:
        """Number of choices."""
        return len(self.values)

    def expected(self) -> str:
        """The list of choices."""
        return f"one of {', '.join(map(show, self.values))}"

    def distribution(self) -> BaseDistribution:
        """CategoricalDistribution over the codes."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.codes())

    def codes(self) -> list[Any]:
        """The choices for Optuna."""
        return [choice_code(choice) for choice in self.values]


@dataclass(frozen=True, slots=True)
class Range:
    """A number from low to high, both included."""

    name: str
    low: float
    high: float
    log: bool = False
    """Uniform in the logarithm."""
    step: float | None = None
    """Only low, low + step, low + 2 step, ...; None: continuous."""
    is_whole: bool = False
    """Whole numbers: low, high and step are integers."""
    when: When = field(default_factory=dict)

    def ask(self, trial: BaseTrial) -> Scalar:
        """The float or int that an Optuna trial suggests."""
        suggest: Any = trial.suggest_int if self.is_whole else trial.suggest_float
        number: float = suggest(self.name, self.low, self.high, step=self.step, log=self.log)
        return number

    def draw(self, rng: random.Random) -> Scalar:
        """A random number, distributed as in `optuna.samplers.RandomSampler`."""
        if self.log:  # a whole number has the interval half a unit to both sides
            half = 0.5 if self.is_whole else 0.0
            edges = math.log(self.low - half), math.log(self.high + half)
            number = max(self.low, min(self.high, math.exp(rng.uniform(*edges))))
            return round(number) if self.is_whole else number
        if self.step is None:
            return rng.uniform(self.low, self.high)
        n_steps = rng.randint(0, round((self.high - self.low) / self.step))
        return min(self.high, self.low + self.step * n_steps)

    def decode(self, ask: Ask) -> HyperValue:
        """The number itself."""
        return ask(self)

    def encode(self, value: HyperValue) -> dict[str, Scalar] | None:
        """`value` as a float or an int; None if it is outside, or between two steps."""
        if not is_number(value) or not self.low <= value <= self.high:
            return None
        if self.is_whole:
            is_inside = is_integer(value) and int(value - self.low) % int(self.step or 1) == 0
            return {self.name: int(value)} if is_inside else None
        n_steps = (float(value) - self.low) / self.step if self.step else 0.0
        # 1e-8: Optuna's own tolerance
        return {self.name: float(value)} if abs(n_steps - round(n_steps)) < 1e-8 else None

    def dimensions(self) -> tuple[Dimension, ...]:
        """Itself."""
        return (self,)

    def n_values(self) -> int | None:
        """Number of steps; None: continuous."""
        return None if self.step is None else round((self.high - self.low) / self.step) + 1

    def expected(self) -> str:
        """Bounds and step."""
        kind, usual = ("a whole number", 1) if self.is_whole else ("a number", None)
        every = "" if self.step == usual else f" in steps of {self.step!r}"
        return f"{kind} from {self.low!r} to {self.high!r}{every}"

    def distribution(self) -> BaseDistribution:
        """IntDistribution or FloatDistribution."""
        from optuna.distributions import FloatDistribution, IntDistribution

        kind: Any = IntDistribution if self.is_whole else FloatDistribution
        made: BaseDistribution = kind(self.low, self.high, log=self.log, step=self.step)
        return made


@dataclass(frozen=True, slots=True)
class Widths:
    """A list of layer widths whose length varies too.

    Its dimensions are `<name>.n_layers` and `<name>.0`, `<name>.1`, ...; a configuration with
    two layers has no `<name>.2`.
    """

    name: str
    n_layers: Range
    width: Range
    """The range of every width; `widths` gives each its name."""
    when: When = field(default_factory=dict)

    def widths(self, n_layers: int) -> list[Range]:
        """The dimensions of the first `n_layers` widths."""
        return [replace(self.width, name=f"{self.name}.{layer}") for layer in range(n_layers)]

    def decode(self, ask: Ask) -> HyperValue:
        """A tuple of widths."""
        return tuple(width.decode(ask) for width in self.widths(int(ask(self.n_layers))))

    def encode(self, value: HyperValue) -> dict[str, Scalar] | None:
        """Length and widths; None if one of them is outside."""
        params = self.n_layers.encode(len(value)) if isinstance(value, list | tuple) else None
        if params is None:
            return None
        for dimension, width in zip(self.widths(len(value)), value, strict=True):
            encoded = dimension.encode(width)
            if encoded is None:
                return None
            params |= encoded
        return params

    def dimensions(self) -> tuple[Dimension, ...]:
        """The length and each width of the longest list."""
        return (self.n_layers, *self.widths(int(self.n_layers.high)))

    def n_values(self) -> int:
        """Number of different lists."""
        n_widths = self.width.n_values() or 0
        least, most = int(self.n_layers.low), int(self.n_layers.high)
        return sum(n_widths**n for n in range(least, most + 1))

    def expected(self) -> str:
        """Bounds of length and widths."""
        least, most = self.n_layers.low, self.n_layers.high
        length = f"{least}" if least == most else f"{least} to {most}"
        numbers = self.width.expected().removeprefix("a ").replace("number", "numbers", 1)
        return f"a list of {length} {numbers}"


Dimension: TypeAlias = Choices | Range
"""One name in Optuna."""
Parameter: TypeAlias = Choices | Range | Widths
"""A hyperparameter that varies."""
Ask: TypeAlias = Callable[[Dimension], Any]
"""Gives the value of a dimension: from Optuna, at random, or from stored parameters."""


def complaint(parameter: Parameter, value: HyperValue) -> str:
    """One sentence on why `value` does not fit; with the nearest one if all choices are words."""
    if isinstance(parameter, Choices) and all(isinstance(v, str) for v in parameter.values):
        return must_be_one_of(parameter.name, value, parameter.values)
    return f"{parameter.name} must be {parameter.expected()}, but got {show(value)}"


def is_active(parameter: Parameter, values: Mapping[str, HyperValue]) -> bool:
    """Whether a configuration with `values` has the parameter: all its conditions hold."""
    return all(name in values and among(values[name], v) for name, v in parameter.when.items())
