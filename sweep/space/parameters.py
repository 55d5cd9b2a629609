"""What may vary: choices, ranges of numbers, lists of widths.

Each parameter becomes one or more *dimensions*: names that Optuna knows, each with one
distribution that never changes (Optuna forbids it). Optuna is imported only where its
distributions are asked for, so that reading a space costs no import of it.
"""

from __future__ import annotations

import abc
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Protocol

from sweep.config.document import show
from sweep.errors import must_be_one_of
from sweep.trial import HyperValue

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Scalar = str | int | float | bool | None


class Suggester(Protocol):
    """What a space asks of a trial: the three methods of `optuna.trial.BaseTrial`."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """A float between low and high, both included."""
        ...

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        """An integer between low and high, both included."""
        ...

    def suggest_categorical(self, name: str, choices: Sequence[Scalar]) -> Any:
        """One of `choices`."""
        ...


def is_number(value: object) -> bool:
    """Whether value is a finite int or float; true and false are not numbers here."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_integer(value: object) -> bool:
    """Whether value is a whole number: 64 and 64.0 are, true is not."""
    return is_number(value) and float(value).is_integer()  # type: ignore[arg-type]


def same(a: HyperValue, b: HyperValue) -> bool:
    """Equality of hyperparameters: 1 is 1.0, a list is a tuple, but true is not 1."""
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    return bool(a == b)


@dataclass(frozen=True, slots=True)
class Condition:
    """One line of `when:`."""

    name: str
    """The parameter that decides."""
    values: tuple[HyperValue, ...]
    """The condition holds while the parameter has one of these."""

    def holds(self, values: Mapping[str, HyperValue]) -> bool:
        """Whether it holds for resolved `values`; never where the parameter is inactive."""
        return self.name in values and any(same(values[self.name], v) for v in self.values)


@dataclass(frozen=True, slots=True)
class Parameter(abc.ABC):
    """A hyperparameter that varies."""

    name: str
    when: tuple[Condition, ...] = field(default=(), kw_only=True)
    """Active only while all of these hold."""

    def is_active(self, values: Mapping[str, HyperValue]) -> bool:
        """Whether it has a value at all, given the values of what it depends on."""
        return all(condition.holds(values) for condition in self.when)

    def complaint(self, value: HyperValue) -> str:
        """One sentence on why value does not fit."""
        return f"{self.name} must be {self.expected()}, but got {show(value)}"

    @abc.abstractmethod
    def suggest(self, trial: Suggester) -> HyperValue:
        """Ask the trial for a value."""

    @abc.abstractmethod
    def contains(self, value: HyperValue) -> bool:
        """Whether it can take this value."""

    @abc.abstractmethod
    def encode(self, value: HyperValue) -> dict[str, Scalar]:
        """Optuna's parameters that stand for a value it contains."""

    @abc.abstractmethod
    def dimensions(self) -> tuple[Dimension, ...]:
        """The names that Optuna sees."""

    @abc.abstractmethod
    def n_values(self) -> int | None:
        """How many values it has; None: continuous."""

    @abc.abstractmethod
    def expected(self) -> str:
        """What it may be, to be read after "must be"."""


class Dimension(Parameter, abc.ABC):
    """A parameter that is one name with one distribution in Optuna."""

    __slots__ = ()

    def dimensions(self) -> tuple[Dimension, ...]:
        """Itself."""
        return (self,)

    @abc.abstractmethod
    def distribution(self) -> BaseDistribution:
        """Optuna's distribution."""

    @abc.abstractmethod
    def grid(self) -> list[Any] | None:
        """Every value as Optuna sees it; None: continuous."""


@dataclass(frozen=True, slots=True)
class Choices(Dimension):
    """One of a few values, in no order."""

    values: tuple[HyperValue, ...]

    def suggest(self, trial: Suggester) -> HyperValue:
        """The chosen value; Optuna is shown its code."""
        codes = self.grid()
        return self.values[codes.index(trial.suggest_categorical(self.name, codes))]

    def contains(self, value: HyperValue) -> bool:
        """Whether it is one of the choices."""
        return any(same(value, choice) for choice in self.values)

    def encode(self, value: HyperValue) -> dict[str, Scalar]:
        """The choice's code."""
        chosen = next(choice for choice in self.values if same(value, choice))
        return {self.name: choice_code(chosen)}

    def n_values(self) -> int:
        """Number of choices."""
        return len(self.values)

    def expected(self) -> str:
        """The list of choices."""
        return f"one of {', '.join(map(show, self.values))}"

    def complaint(self, value: HyperValue) -> str:
        """Names the nearest choice where choices are words."""
        if all(isinstance(choice, str) for choice in self.values):
            return must_be_one_of(self.name, value, self.values)
        return f"{self.name} must be {self.expected()}, but got {show(value)}"

    def distribution(self) -> BaseDistribution:
        """CategoricalDistribution over the codes."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.grid())

    def grid(self) -> list[Any]:
        """The codes."""
        return [choice_code(choice) for choice in self.values]


def choice_code(choice: HyperValue) -> Scalar:
    """What Optuna is given for a choice: itself, or JSON for a list (Optuna stores no lists)."""
    return json.dumps(choice) if isinstance(choice, list | tuple) else choice


@dataclass(frozen=True, slots=True)
class FloatRange(Dimension):
    """A number between low and high, both included."""

    low: float
    high: float
    log: bool = False
    """Uniform in the logarithm."""
    step: float | None = None
    """Only low, low + step, low + 2 step, ..."""

    def suggest(self, trial: Suggester) -> float:
        """A float."""
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)

    def contains(self, value: HyperValue) -> bool:
        """Whether it is inside, and on a step to 1e-8 of one (Optuna's own tolerance)."""
        if not is_number(value) or not self.low <= value <= self.high:
            return False
        return self.step is None or _is_whole((value - self.low) / self.step)

    def encode(self, value: HyperValue) -> dict[str, Scalar]:
        """The number as a float."""
        return {self.name: float(value)}

    def n_values(self) -> int | None:
        """Number of steps; None without a step."""
        if self.step is None:
            return None
        return round((self.high - self.low) / self.step) + 1

    def expected(self) -> str:
        """The bounds."""
        every = f" in steps of {self.step!r}" if self.step is not None else ""
        return f"a number from {self.low!r} to {self.high!r}{every}"

    def distribution(self) -> BaseDistribution:
        """FloatDistribution."""
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def grid(self) -> list[Any] | None:
        """Every step; Decimal, so that 0.1 + 2 * 0.1 is 0.3."""
        n, step = self.n_values(), self.step
        if n is None or step is None:
            return None
        return [float(Decimal(str(self.low)) + k * Decimal(str(step))) for k in range(n)]


@dataclass(frozen=True, slots=True)
class IntRange(Dimension):
    """A whole number between low and high, both included."""

    low: int
    high: int
    log: bool = False
    """Uniform in the logarithm."""
    step: int = 1
    """Only low, low + step, low + 2 step, ..."""

    def suggest(self, trial: Suggester) -> int:
        """An integer."""
        return trial.suggest_int(self.name, self.low, self.high, step=self.step, log=self.log)

    def contains(self, value: HyperValue) -> bool:
        """Whether it is whole, inside and on a step; 64.0 counts as 64."""
        inside = is_integer(value) and self.low <= value <= self.high
        return inside and (int(value) - self.low) % self.step == 0

    def encode(self, value: HyperValue) -> dict[str, Scalar]:
        """The number as an int."""
        return {self.name: int(value)}

    def n_values(self) -> int:
        """Number of steps."""
        return (self.high - self.low) // self.step + 1

    def expected(self) -> str:
        """The bounds."""
        every = f" in steps of {self.step}" if self.step != 1 else ""
        return f"a whole number from {self.low} to {self.high}{every}"

    def distribution(self) -> BaseDistribution:
        """IntDistribution."""
        from optuna.distributions import IntDistribution

        return IntDistribution(self.low, self.high, log=self.log, step=self.step)

    def grid(self) -> list[Any]:
        """Every step."""
        return list(range(self.low, self.high + 1, self.step))


@dataclass(frozen=True, slots=True)
class Widths(Parameter):
    """A list of widths whose length varies too.

    Optuna sees `<name>.n_layers` and `<name>.0`, `<name>.1`, ...; widths past the length of a
    configuration are never suggested.
    """

    low: int
    high: int
    min_layers: int
    max_layers: int
    log: bool = False
    """Widths are uniform in the logarithm."""
    step: int = 1
    """Only low, low + step, low + 2 step, ..."""

    @property
    def n_layers(self) -> IntRange:
        """The dimension that holds the list's length."""
        return IntRange(f"{self.name}.n_layers", self.min_layers, self.max_layers)

    def width(self, layer: int) -> IntRange:
        """The dimension that holds one width; `layer` counts from 0."""
        return IntRange(f"{self.name}.{layer}", self.low, self.high, self.log, self.step)

    def suggest(self, trial: Suggester) -> tuple[int, ...]:
        """A tuple of widths."""
        n_layers = self.n_layers.suggest(trial)
        return tuple(self.width(layer).suggest(trial) for layer in range(n_layers))

    def contains(self, value: HyperValue) -> bool:
        """Whether length and each width fit."""
        if not isinstance(value, list | tuple) or not self.n_layers.contains(len(value)):
            return False
        return all(self.width(0).contains(width) for width in value)

    def encode(self, value: HyperValue) -> dict[str, Scalar]:
        """Length and widths under their own names."""
        params = self.n_layers.encode(len(value))
        for layer, width in enumerate(value):
            params |= self.width(layer).encode(width)
        return params

    def dimensions(self) -> tuple[Dimension, ...]:
        """The length and every width there can be."""
        return (self.n_layers, *(self.width(layer) for layer in range(self.max_layers)))

    def n_values(self) -> int:
        """Number of different lists."""
        n_widths = self.width(0).n_values()
        return sum(n_widths**n for n in range(self.min_layers, self.max_layers + 1))

    def expected(self) -> str:
        """Bounds of length and widths."""
        length = f"{self.min_layers}"
        if self.max_layers != self.min_layers:
            length += f" to {self.max_layers}"
        every = f" in steps of {self.step}" if self.step != 1 else ""
        return f"a list of {length} whole numbers from {self.low} to {self.high}{every}"


def _is_whole(x: float) -> bool:
    return abs(x - round(x)) < 1e-8
