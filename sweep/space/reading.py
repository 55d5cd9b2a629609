"""One parameter of a space file, from its node to a Parameter; faults go to a Faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sweep.config.document import BROKEN, Faults, Node, plain, show
from sweep.errors import must_be_one_of
from sweep.space.parameters import (
    Choices,
    Condition,
    FloatRange,
    IntRange,
    Parameter,
    Widths,
    choice_code,
    is_integer,
    is_number,
)
from sweep.trial import HyperValue

MAX_LAYERS = 100
MAX_INTEGER = 2**53
"""Optuna keeps integers as floats; past this they are not exact."""
_KEYS = {
    "choices": ("when",),
    "float": ("log", "step", "when"),
    "int": ("log", "step", "when"),
    "widths": ("layers", "log", "step", "when"),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A parameter or fixed value as read, with what later checks need to know."""

    name: str
    line: int
    kind: str
    """choices, float, int, widths or fixed."""
    points: tuple[tuple[int, HyperValue], ...] = ()
    """(line, value) that stand for all it can be: choices, bounds, or the fixed value."""
    conditions: tuple[tuple[int, Condition], ...] = ()
    """(line, condition) of each line of `when:`."""
    parameter: Parameter | None = None
    """None where it is fixed, or where a fault was found."""


@dataclass(frozen=True, slots=True)
class _Spec:
    """The mapping behind one parameter's name."""

    name: str
    keys: dict[str, Node]
    faults: Faults

    def fault(self, key: str, sentence: str) -> None:
        self.faults.add(self.keys[key].line, f"{self.name}: {sentence}")

    def log(self) -> bool:
        """Value of `log`."""
        value = self.keys["log"].value if "log" in self.keys else False
        if value is not BROKEN and not isinstance(value, bool):
            self.fault("log", f"log must be true or false, but got {show(self.keys['log'])}")
        return value is True

    def step(self, is_valid: Callable[[Any], bool], expected: str) -> Any:
        """Value of `step`, or None where it is left out or faulty."""
        if "step" not in self.keys:
            return None
        value = self.keys["step"].value
        if value is BROKEN:
            return None
        if not is_valid(value) or value <= 0:
            self.fault("step", f"step must be {expected} > 0, but got {show(self.keys['step'])}")
            return None
        if "log" in self.keys and self.keys["log"].value is True:
            self.fault("step", "log and step cannot both be given: leave one out")
            return None
        return value

    def bounds(self, key: str, is_valid: Callable[[Any], bool], what: str) -> Any:
        """The two numbers under `key`, low < high, or None."""
        value = plain(self.keys[key])
        if value is BROKEN:
            return None
        if not isinstance(value, tuple) or len(value) != 2 or not all(map(is_valid, value)):
            self.fault(key, f"{key} must be [low, high], two {what}, but got {show(value)}")
            return None
        if value[0] > value[1] or (value[0] == value[1] and key in ("float", "int")):
            hint = "; a value that never changes goes under 'fixed'" * (value[0] == value[1])
            self.fault(key, f"low must be below high, but got {show(value)}{hint}")
            return None
        return value

    def check_log(self, key: str, low: float) -> None:
        """A logarithm needs a positive low."""
        if low <= 0 and "log" in self.keys and self.keys["log"].value is True:
            self.fault(key, f"low must be > 0 with log: true, but got {show(low)}")

    def check_step(self, low: Any, high: Any, step: Any) -> None:
        """Optuna would lower `high` to the last step, with a warning: say it here instead."""
        low_, high_, step_ = Decimal(str(low)), Decimal(str(high)), Decimal(str(step))
        n_steps, rest = divmod(high_ - low_, step_)
        if rest != 0:
            near = [low_ + k * step_ for k in (n_steps, n_steps + 1) if k]
            options = " or ".join(f"{x.normalize():f}" for x in near)
            self.fault(
                "step",
                f"high must be low plus a multiple of step ({options}), but got {show(high)}",
            )


def read_parameter(name: str, node: Node, faults: Faults) -> Entry:
    """The Entry of one item of `parameters:`, its conditions still unchecked."""
    kind = _kind(name, node, faults)
    if kind is None:
        return Entry(name, node.line, "unknown")
    spec = _Spec(name, node.value, faults)
    n_faults = len(faults)
    conditions = _when(spec)
    parameter, points = _READERS[kind](spec, tuple(condition for _, condition in conditions))
    is_broken = len(faults) > n_faults or any(plain(n) is BROKEN for n in spec.keys.values())
    if is_broken and kind != "choices":
        points = ()  # a range with a fault is told once, not again by the rules for its name
    return Entry(name, node.line, kind, points, conditions, None if is_broken else parameter)


def _kind(name: str, node: Node, faults: Faults) -> str | None:
    """Which of choices, float, int, widths the node is, or None with a fault."""
    if node.value is BROKEN:
        return None
    if not isinstance(node.value, dict):
        wanted = "must say what may vary, such as {choices: [...]} or {float: [low, high]}"
        hint = " (a value that never changes goes under 'fixed')"
        faults.add(node.line, f"{name} {wanted}, but got {show(node)}{hint}")
        return None
    kinds: list[str] = [key for key in node.value if key in _KEYS]
    known = (
        (kinds[0], *_KEYS[kinds[0]])
        if len(kinds) == 1
        else (*_KEYS, "layers", "log", "step", "when")
    )
    strange = [key for key in node.value if key not in known]
    for key in strange:
        faults.add(node.value[key].line, must_be_one_of(f"a key of {name}", key, known))
    if len(kinds) == 1:
        return kinds[0]
    if kinds or not strange:
        got = " and ".join(kinds) or "none of them"
        faults.add(node.line, f"{name} must have one of {', '.join(_KEYS)}, but got {got}")
    return None


def _when(spec: _Spec) -> tuple[tuple[int, Condition], ...]:
    node = spec.keys.get("when")
    if node is None or node.value is BROKEN:
        return ()
    if not isinstance(node.value, dict) or not node.value:
        spec.fault(
            "when", f"when must be a mapping such as {{optimizer: SGD}}, but got {show(node)}"
        )
        return ()
    conditions = []
    for name, item in node.value.items():
        values = plain(item)
        if values is BROKEN:
            continue
        values = values if isinstance(values, tuple) else (values,)
        if not values or any(isinstance(value, dict) for value in values):
            text = f"{spec.name}: when {name} must be a value or a list of values"
            spec.faults.add(item.line, f"{text}, but got {show(item)}")
        else:
            conditions.append((item.line, Condition(name, values)))
    return tuple(conditions)


Read = tuple[Parameter | None, tuple[tuple[int, HyperValue], ...]]


def _choices(spec: _Spec, when: tuple[Condition, ...]) -> Read:
    node = spec.keys["choices"]
    if node.value is BROKEN:
        return None, ()
    if not isinstance(node.value, list) or not node.value:
        spec.fault("choices", f"choices must be a list of values, but got {show(node)}")
        return None, ()
    points: list[tuple[int, HyperValue]] = []
    for item in node.value:
        value = plain(item)
        if value is BROKEN:
            continue
        if not is_plain_value(value):
            text = "a choice must be a value or a list of values"
            spec.faults.add(item.line, f"{spec.name}: {text}, but got {show(value)}")
        elif any(_collide(value, other) for _, other in points):
            spec.faults.add(item.line, f"{spec.name}: {show(value)} is among the choices twice")
        else:
            points.append((item.line, value))
    values = tuple(value for _, value in points)
    return Choices(spec.name, values, when=when), tuple(points)


def _collide(a: HyperValue, b: HyperValue) -> bool:
    """Whether Optuna could not tell two choices apart: true and 1, [1] and "[1]"."""
    return bool(a == b) or choice_code(a) == choice_code(b)


def _float(spec: _Spec, when: tuple[Condition, ...]) -> Read:
    bounds = spec.bounds("float", is_number, "numbers")
    log, step = spec.log(), spec.step(is_number, "a number")
    if bounds is None:
        return None, ()
    low, high = bounds
    spec.check_log("float", low)
    if step is not None:
        spec.check_step(low, high, step)
        step = float(step)
    parameter = FloatRange(spec.name, float(low), float(high), log, step, when=when)
    return parameter, _points(spec, "float", low, high)


def _int(spec: _Spec, when: tuple[Condition, ...]) -> Read:
    bounds = spec.bounds("int", _is_exact, "whole numbers")
    log, step = spec.log(), spec.step(_is_exact, "a whole number")
    if bounds is None:
        return None, ()
    low, high = map(int, bounds)
    spec.check_log("int", low)
    if step is not None:
        spec.check_step(low, high, step)
    parameter = IntRange(spec.name, low, high, log, int(step or 1), when=when)
    return parameter, _points(spec, "int", low, high)


def _widths(spec: _Spec, when: tuple[Condition, ...]) -> Read:
    bounds = spec.bounds("widths", _is_exact, "whole numbers")
    log, step, layers = spec.log(), spec.step(_is_exact, "a whole number"), _layers(spec)
    if bounds is None:
        return None, ()
    low, high = map(int, bounds)
    if low < 1:
        spec.fault("widths", f"a width must be >= 1, but got {low}")
    if step is not None:
        spec.check_step(low, high, step)
    if layers is None:
        return None, ()
    parameter = Widths(spec.name, low, high, *layers, log, int(step or 1), when=when)
    return parameter, ()


def _layers(spec: _Spec) -> tuple[int, int] | None:
    expected = f"layers must be a whole number or [min, max], from 0 to {MAX_LAYERS}"
    node = spec.keys.get("layers")
    if node is None:
        if all(key in ("widths", *_KEYS["widths"]) for key in spec.keys):  # not just misspelt
            spec.fault("widths", f"{expected}, but got none")
        return None
    value = plain(node)
    if value is BROKEN:
        return None
    pair = value if isinstance(value, tuple) else (value, value)
    if len(pair) == 2 and all(map(is_integer, pair)):
        low, high = map(int, pair)
        if 0 <= low <= high <= MAX_LAYERS and high > 0:
            return low, high
    spec.fault("layers", f"{expected}, but got {show(value)}")
    return None


def _points(spec: _Spec, key: str, *values: float) -> tuple[tuple[int, HyperValue], ...]:
    return tuple((spec.keys[key].line, value) for value in values)


def _is_exact(value: object) -> bool:
    return is_integer(value) and abs(value) <= MAX_INTEGER  # type: ignore[arg-type]


def is_plain_value(value: object) -> bool:
    """Whether it is a scalar or a flat list (as a tuple) of scalars."""
    if isinstance(value, tuple):
        return not any(isinstance(item, tuple | dict) for item in value)
    return not isinstance(value, dict)


_READERS: dict[str, Callable[[_Spec, tuple[Condition, ...]], Read]] = {
    "choices": _choices,
    "float": _float,
    "int": _int,
    "widths": _widths,
}
