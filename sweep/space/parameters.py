"""The kinds of parameter: choices, ranges of numbers, lists of layer widths.

Optuna sees each as one or more *dimensions*: names, each with one distribution that never
changes. Optuna is imported only for its distributions, so reading a space does not load it.
"""

from __future__ import annotations

import abc
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeAlias

from sweep.config.document import show
from sweep.errors import must_be_one_of
from sweep.trial import HyperValue

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial

    from sweep.space.trials import FilledTrial

    Suggester: TypeAlias = BaseTrial | FilledTrial
    """Has Optuna's suggest_float, suggest_int and suggest_categorical."""

Scalar = str | int | float | bool | None


def is_number(value: object) -> bool:
    """Whether value is a finite int or float; true and false are not numbers here."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


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


@dataclass(frozen=True, slots=True)
class Condition:
    """One line of `when:`: the parameter `name` has one of `values`."""

    name: str
    values: tuple[HyperValue, ...]

    def holds(self, values: Mapping[str, HyperValue]) -> bool:
        """Whether it holds for a configuration; never if it lacks the parameter."""
        return self.name in values and any(same(values[self.name], v) for v in self.values)


@dataclass(frozen=True, slots=True)
class Parameter(abc.ABC):
    """A hyperparameter that varies."""

    name: str
    when: tuple[Condition, ...] = field(default=(), kw_only=True)
    """Active only while all of these hold."""

    def is_active(self, values: Mapping[str, HyperValue]) -> bool:
        """Whether a configuration with `values` has it."""
        return all(condition.holds(values) for condition in self.when)

    def complaint(self, value: HyperValue) -> str:
        """One sentence on why value does not fit."""
        return f"{self.name} must be {self.expected()}, but got {show(value)}"

    @abc.abstractmethod
    def suggest(self, trial: Suggester) -> HyperValue:
        """Ask `trial` for each dimension; returns the hyperparameter."""

    @abc.abstractmethod
    def encode(self, value: HyperValue) -> dict[str, Scalar]:
        """The inverse of `suggest`: value by dimension. `value` must be contained."""

    @abc.abstractmethod
    def contains(self, value: HyperValue) -> bool:
        """Whether `value` is one of its values."""

    @abc.abstractmethod
    def dimensions(self) -> tuple[Choices | Range, ...]:
        """Its names in Optuna."""

    @abc.abstractmethod
    def n_values(self) -> int | None:
        """Number of values; None: continuous."""

    @abc.abstractmethod
    def expected(self) -> str:
        """Its values in words, to be read after "must be"."""


@dataclass(frozen=True, slots=True)
class Choices(Parameter):
    """One of a few values, in no order. Optuna stores their codes (see `choice_code`)."""

    values: tuple[HyperValue, ...]

    def suggest(self, trial: Suggester) -> HyperValue:
        """The chosen value. Raises ValueError if `trial` has none of the codes."""
        codes = self.grid()
        return self.values[codes.index(trial.suggest_categorical(self.name, codes))]

    def encode(self, value: HyperValue) -> dict[str, Scalar]:
        """The choice's code."""
        return {self.name: choice_code(next(c for c in self.values if same(value, c)))}

    def contains(self, value: HyperValue) -> bool:
        """Whether it is one of the choices."""
        return any(same(value, choice) for choice in self.values)

    def dimensions(self) -> tuple[Choices | Range, ...]:
        """Itself."""
        return (self,)

    def n_values(self) -> int:
        """Number of choices."""
        return len(self.values)

    def expected(self) -> str:
        """The list of choices."""
        return f"one of {', '.join(map(show, self.values))}"

    def complaint(self, value: HyperValue) -> str:
        """If all choices are words, the sentence also names the nearest one."""
        if all(isinstance(choice, str) for choice in self.values):
            return must_be_one_of(self.name, value, self.values)
        return Parameter.complaint(self, value)

    def distribution(self) -> BaseDistribution:
        """CategoricalDistribution over the codes."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.grid())

    def grid(self) -> list[Any]:
        """The codes."""
        return [choice_code(choice) for choice in self.values]


def choice_code(choice: HyperValue) -> Scalar:
    """The choice for Optuna: itself, but a list as JSON text (Optuna stores no lists)."""
    return json.dumps(choice) if isinstance(choice, list | tuple) else choice


@dataclass(frozen=True, slots=True)
class Range(Parameter):
    """A number from low to high, both included."""

    low: float
    high: float
    log: bool = False
    """Uniform in the logarithm."""
    step: float | None = None
    """Only low, low + step, low + 2 step, ...; None: continuous."""
    is_whole: bool = False
    """Whole numbers: low, high and step are integers."""

    def suggest(self, trial: Suggester) -> float:
        """A float, or an int if `is_whole`."""
        ask: Any = trial.suggest_int if self.is_whole else trial.suggest_float
        number: float = ask(self.name, self.low, self.high, step=self.step, log=self.log)
        return number

    def encode(self, value: HyperValue) -> dict[str, Scalar]:
        """The number as a float or an int."""
        return {self.name: int(value) if self.is_whole else float(value)}

    def contains(self, value: HyperValue) -> bool:
        """Whether it is inside and on a step; floats to 1e-8 of one, as Optuna has it."""
        if not is_number(value) or not self.low <= value <= self.high:
            return False
        if self.step is None:
            return True
        if self.is_whole:
            return is_integer(value) and int(value - self.low) % int(self.step) == 0
        n_steps = (float(value) - self.low) / self.step
        return abs(n_steps - round(n_steps)) < 1e-8

    def dimensions(self) -> tuple[Choices | Range, ...]:
        """Itself."""
        return (self,)

    def n_values(self) -> int | None:
        """Number of steps; None without a step."""
        if self.step is None:
            return None
        return round((self.high - self.low) / self.step) + 1

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

    def grid(self) -> list[Any]:
        """Every step; Decimal, so that 0.1 + 2 * 0.1 is 0.3. Needs a step."""
        low, step = Decimal(str(self.low)), Decimal(str(self.step))
        number = int if self.is_whole else float
        return [number(low + k * step) for k in range(self.n_values() or 0)]


@dataclass(frozen=True, slots=True)
class Widths(Parameter):
    """A list of layer widths whose length varies too.

    Its dimensions are `<name>.n_layers` and `<name>.0`, `<name>.1`, ...; a configuration with
    two layers has no `<name>.2`.
    """

    n_layers: Range
    width: Range
    """The range of every width; `widths` gives each its name."""

    def widths(self, n_layers: int) -> list[Range]:
        """The dimensions of the first `n_layers` widths."""
        return [replace(self.width, name=f"{self.name}.{layer}") for layer in range(n_layers)]

    def suggest(self, trial: Suggester) -> HyperValue:
        """A tuple of widths."""
        n_layers = int(self.n_layers.suggest(trial))
        return tuple(width.suggest(trial) for width in self.widths(n_layers))

    def encode(self, value: HyperValue) -> dict[str, Scalar]:
        """Length and widths."""
        params = self.n_layers.encode(len(value))
        for dimension, width in zip(self.widths(len(value)), value, strict=True):
            params |= dimension.encode(width)
        return params

    def contains(self, value: HyperValue) -> bool:
        """Whether length and each width fit."""
        if not isinstance(value, list | tuple) or not self.n_layers.contains(len(value)):
            return False
        return all(map(self.width.contains, value))

    def dimensions(self) -> tuple[Choices | Range, ...]:
        """The length and each width of the longest list."""
        return (self.n_layers, *self.widths(int(self.n_layers.high)))

    def n_values(self) -> int:
        """Number of different lists."""
        n_widths = self.width.n_values() or 0
        return sum(n_widths**n for n in self.n_layers.grid())

    def expected(self) -> str:
        """Bounds of length and widths."""
        least, most = self.n_layers.low, self.n_layers.high
        length = f"{least}" if least == most else f"{least} to {most}"
        numbers = self.width.expected().removeprefix("a ").replace("number", "numbers", 1)
        return f"a list of {length} {numbers}"
