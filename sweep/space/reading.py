"""One parameter of a space file, from its node to a Parameter; faults go to a Faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from sweep.config.document import BROKEN, Faults, Node, plain, show
from sweep.errors import must_be_one_of
from sweep.space.parameters import (
    Choices,
    Condition,
    Parameter,
    Range,
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
    """One name of `parameters:` or `fixed:`, with its lines for messages."""

    name: str
    line: int
    kind: str = "unknown"
    """choices, float, int, widths, fixed or unknown (faulty)."""
    points: tuple[tuple[int, HyperValue], ...] = ()
    """(line, value) of each choice, of both bounds, or of the fixed value."""
    conditions: tuple[tuple[int, Condition], ...] = ()
    """(line, condition) of each line of `when:`."""
    parameter: Parameter | None = None
    """None for a fixed value or a faulty parameter."""


def read_fixed(name: str, node: Node, faults: Faults) -> Entry:
    """The Entry of one item of `fixed:`."""
    value = plain(node)
    if value is not BROKEN and not _is_flat(value):
        faults.add(node.line, f"{name} must be a value or a list of values, but got {show(value)}")
        value = BROKEN
    points = () if value is BROKEN else ((node.line, value),)
    return Entry(name, node.line, "fixed", points)


def read_parameter(name: str, node: Node, faults: Faults) -> Entry:
    """The Entry of one item of `parameters:`, its conditions still unchecked."""
    kind = _kind(name, node, faults)
    if kind is None:
        return Entry(name, node.line)
    spec, n_faults = _Spec(name, kind, node.value, faults), len(faults)
    conditions = _conditions(spec)
    when = tuple(condition for _, condition in conditions)
    parameter: Parameter | None
    points: tuple[tuple[int, HyperValue], ...] = ()
    if kind == "choices":
        points = _choices(spec)
        parameter = Choices(name, tuple(value for _, value in points), when=when)
    else:
        parameter = _numbers(spec, when)
    if len(faults) > n_faults or plain(node) is BROKEN:
        return Entry(name, node.line, kind, points, conditions)
    if isinstance(parameter, Range):
        points = tuple((node.value[kind].line, bound) for bound in spec.value(kind))
    return Entry(name, node.line, kind, points, conditions, parameter)


def _kind(name: str, node: Node, faults: Faults) -> str | None:
    """The node's key of _KEYS, or None with a fault."""
    example = "{choices: [...]} or {float: [low, high]}"
    rule = f"{name} must say what may vary, such as {example}; 'fixed' is for what never does"
    if not faults.holds(node, dict, rule):
        return None
    kinds: list[str] = [key for key in node.value if key in _KEYS]
    known = [*kinds, *_KEYS[kinds[0]]] if len(kinds) == 1 else [*_KEYS, *_KEYS["widths"]]
    strange = [key for key in node.value if key not in known]
    for key in strange:
        faults.add(node.value[key].line, must_be_one_of(f"a key of {name}", key, known))
    if len(kinds) == 1:
        return kinds[0]
    if kinds or not strange:
        got = " and ".join(kinds) or "none of them"
        faults.add(node.line, f"{name} must have one of {', '.join(_KEYS)}, but got {got}")
    return None


@dataclass(frozen=True, slots=True)
class _Spec:
    """The mapping behind one parameter's name."""

    name: str
    kind: str
    keys: dict[str, Node]
    faults: Faults

    def fault(self, key: str, sentence: str) -> None:
        self.faults.add(self.keys[key].line, f"{self.name}: {sentence}")

    def value(self, key: str) -> Any:
        """The plain value under `key`, BROKEN or None."""
        return plain(self.keys[key]) if key in self.keys else None

    def expect(self, key: str, is_valid: bool, rule: str) -> bool:
        """`is_valid`; if not, notes the rule and the value, unless it is BROKEN."""
        value = self.value(key)
        if not is_valid and value is not BROKEN:
            self.fault(key, f"{rule}, but got {show(value)}")
        return is_valid


def _conditions(spec: _Spec) -> tuple[tuple[int, Condition], ...]:
    node = spec.keys.get("when")
    if node is None:
        return ()
    is_mapping = isinstance(node.value, dict) and bool(node.value)
    if not spec.expect("when", is_mapping, "when must be a mapping such as {optimizer: SGD}"):
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


def _choices(spec: _Spec) -> tuple[tuple[int, HyperValue], ...]:
    """(line, value) of each sound choice."""
    items = spec.keys["choices"].value
    is_list = isinstance(items, list) and bool(items)
    if not spec.expect("choices", is_list, "choices must be a list of values"):
        return ()
    points: list[tuple[int, HyperValue]] = []
    for item in items:
        value = plain(item)
        if value is BROKEN:
            continue
        if not _is_flat(value):
            text = "a choice must be a value or a list of values"
            spec.faults.add(item.line, f"{spec.name}: {text}, but got {show(value)}")
        elif any(_collide(value, other) for _, other in points):
            spec.faults.add(item.line, f"{spec.name}: {show(value)} is among the choices twice")
        else:
            points.append((item.line, value))
    return tuple(points)


def _collide(a: HyperValue, b: HyperValue) -> bool:
    """Whether Optuna could not tell two choices apart: true and 1, [1] and "[1]"."""
    return bool(a == b) or choice_code(a) == choice_code(b)


def _is_flat(value: object) -> bool:
    """Whether it is a scalar or a tuple of scalars."""
    parts = value if isinstance(value, tuple) else (value,)
    return not any(isinstance(part, tuple | dict) for part in parts)


def _numbers(spec: _Spec, when: tuple[Condition, ...]) -> Parameter | None:
    """A Range or Widths; None with a fault."""
    kind, is_whole = spec.kind, spec.kind != "float"
    is_valid, number = (_is_exact, "whole number") if is_whole else (is_number, "number")
    bounds = _bounds(spec, is_valid, f"{number}s")
    step = _step(spec, is_valid, number)
    log = spec.value("log") is True
    is_flag = "log" not in spec.keys or isinstance(spec.value("log"), bool)
    spec.expect("log", is_flag, "log must be true or false")
    layers = _layers(spec) if kind == "widths" else ()
    if bounds is None:
        return None
    low, high = map(int, bounds) if is_whole else bounds
    if kind == "widths" and low < 1:
        spec.fault(kind, f"a width must be >= 1, but got {low}")
    elif log and low <= 0:
        spec.fault(kind, f"low must be > 0 with log: true, but got {show(low)}")
    if step is not None:
        _check_step(spec, low, high, step)
    if layers is None:
        return None
    if is_whole:
        range_ = Range(spec.name, low, high, log, int(step or 1), True, when=when)
    else:
        step = step if step is None else float(step)
        range_ = Range(spec.name, float(low), float(high), log, step, when=when)
    if not layers:
        return range_
    n_layers = Range(f"{spec.name}.n_layers", *layers, step=1, is_whole=True)
    return Widths(spec.name, n_layers, replace(range_, when=()), when=when)


def _bounds(spec: _Spec, is_valid: Callable[[Any], bool], numbers: str) -> Any:
    """(low, high) with low < high, for widths low <= high; None with a fault."""
    key, value = spec.kind, spec.value(spec.kind)
    is_pair = isinstance(value, tuple) and len(value) == 2 and all(map(is_valid, value))
    if not spec.expect(key, is_pair, f"{key} must be [low, high], two {numbers}"):
        return None
    low, high = value
    if low > high or (low == high and key != "widths"):
        hint = "; a value that never changes goes under 'fixed'" * (low == high)
        spec.fault(key, f"low must be below high, but got {show(value)}{hint}")
        return None
    return value


def _step(spec: _Spec, is_valid: Callable[[Any], bool], number: str) -> Any:
    """The value of `step`; None if it is left out or faulty."""
    step = spec.value("step")
    if "step" not in spec.keys:
        return None
    if not spec.expect("step", is_valid(step) and step > 0, f"step must be a {number} > 0"):
        return None
    if spec.value("log") is True:
        spec.fault("step", "log and step cannot both be given: leave one out")
        return None
    return step


def _check_step(spec: _Spec, low: Any, high: Any, step: Any) -> None:
    """Optuna would lower `high` to the last step, with a warning: here it is a fault."""
    low_, high_, step_ = Decimal(str(low)), Decimal(str(high)), Decimal(str(step))
    n_steps, rest = divmod(high_ - low_, step_)
    if rest != 0:
        near = [low_ + k * step_ for k in (n_steps, n_steps + 1) if k]
        options = " or ".join(f"{x.normalize():f}" for x in near)
        rule = f"high must be low plus a multiple of step ({options})"
        spec.fault("step", f"{rule}, but got {show(high)}")


def _layers(spec: _Spec) -> tuple[int, int] | None:
    """(least, most) number of layers; None with a fault."""
    rule = f"layers must be a whole number or [min, max], from 0 to {MAX_LAYERS}"
    if "layers" not in spec.keys:
        if all(key in ("widths", *_KEYS["widths"]) for key in spec.keys):  # not just misspelt
            spec.fault("widths", f"{rule}, but got none")
        return None
    value = spec.value("layers")
    pair = value if isinstance(value, tuple) else (value, value)
    is_pair = len(pair) == 2 and all(map(is_integer, pair))
    is_valid = is_pair and 0 <= pair[0] <= pair[1] <= MAX_LAYERS and pair[1] > 0
    return (int(pair[0]), int(pair[1])) if spec.expect("layers", is_valid, rule) else None


def _is_exact(value: object) -> bool:
    return is_integer(value) and abs(value) <= MAX_INTEGER  # type: ignore[arg-type]
