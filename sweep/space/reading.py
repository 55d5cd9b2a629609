"""One name of a space file, from its node to a Parameter; faults go to a Faults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from sweep.config.file import BROKEN, Faults, Node, plain, show
from sweep.errors import must_be_one_of
from sweep.space.parameters import (
    Choices,
    Parameter,
    Range,
    When,
    Widths,
    choice_code,
    is_integer,
    is_number,
)
from sweep.space.rules import Rule
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
Points = list[tuple[int, HyperValue]]
"""(line, value) of values in the file."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One name of `parameters:` or `fixed:`, with its place in the file."""

    name: str
    node: Node
    kind: str = "unknown"
    """choices, float, int, widths, fixed or unknown (faulty)."""
    values: tuple[HyperValue, ...] = ()
    """Each choice, both bounds, or the fixed value."""
    when: When = field(default_factory=dict)
    parameter: Parameter | None = None
    """None for a fixed value or a faulty parameter."""

    @property
    def line(self) -> int:
        """The line of the name."""
        return self.node.line

    def line_of_when(self, name: str = "") -> int:
        """The line of the condition on `name`, by default of the first one."""
        conditions: Mapping[str, Node] = self.node.value["when"].value
        return conditions[name or next(iter(self.when))].line


def read_fixed(name: str, node: Node, rule: Rule | None, faults: Faults) -> Entry:
    """The Entry of one item of `fixed:`, its value checked by `rule`."""
    value = plain(node)
    if not faults.expect(node, _is_flat(value), f"{name} must be a value or a list of values"):
        return Entry(name, node, "fixed")
    _check_values(name, [(node.line, value)], rule, faults)
    return Entry(name, node, "fixed", (value,))


def read_parameter(name: str, node: Node, rule: Rule | None, faults: Faults) -> Entry:
    """The Entry of one item of `parameters:`; values are checked by `rule`, conditions later."""
    kind = _kind(name, node, faults)
    if kind is None:
        return Entry(name, node)
    keys, n_before = node.value, len(faults)
    when = _when(name, keys["when"], faults) if "when" in keys else {}
    points: Points = []
    parameter: Parameter | None
    if kind == "choices":
        points = _choices(name, keys["choices"], faults)
        parameter = Choices(name, tuple(value for _, value in points), when)
    else:
        parameter = _numbers(name, kind, keys, faults)
    if len(faults) > n_before or plain(node) is BROKEN:
        parameter = None
    if isinstance(parameter, Range):
        points = [(keys[kind].line, bound) for bound in (parameter.low, parameter.high)]
    if rule is not None and kind not in rule.kinds:
        faults.add(node.line, f"{name} must vary as {' or '.join(rule.kinds)}, not {kind}")
    else:
        _check_values(name, points, rule, faults)
    parameter = parameter and replace(parameter, when=when)
    return Entry(name, node, kind, tuple(value for _, value in points), when, parameter)


def _check_values(name: str, points: Points, rule: Rule | None, faults: Faults) -> None:
    for line, value in points:
        if rule is not None and (complaint := rule.complaint(name, value)):
            faults.add(line, complaint)


def _kind(name: str, node: Node, faults: Faults) -> str | None:
    """The node's key of _KEYS, or None with a fault."""
    example = "{choices: [...]} or {float: [low, high]}"
    rule = f"{name} must say what may vary, such as {example}; 'fixed' is for what never does"
    if not faults.expect(node, isinstance(node.value, dict), rule):
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


def _when(name: str, node: Node, faults: Faults) -> dict[str, tuple[HyperValue, ...]]:
    is_mapping = isinstance(node.value, dict) and bool(node.value)
    rule = f"{name}: when must be a mapping such as {{optimizer: SGD}}"
    if not faults.expect(node, is_mapping, rule):
        return {}
    when = {}
    for other, item in node.value.items():
        value = plain(item)
        values = value if isinstance(value, tuple) else (value,)
        is_list = bool(values) and not any(isinstance(v, dict) for v in values)
        rule = f"{name}: when {other} must be a value or a list of values"
        if value is not BROKEN and faults.expect(item, is_list, rule):
            when[other] = values
    return when


def _choices(name: str, node: Node, faults: Faults) -> Points:
    """(line, value) of each sound choice."""
    is_list = isinstance(node.value, list) and bool(node.value)
    if not faults.expect(node, is_list, f"{name}: choices must be a list of values"):
        return []
    points: Points = []
    for item in node.value:
        value = plain(item)
        rule = f"{name}: a choice must be a value or a list of values"
        if not faults.expect(item, _is_flat(value), rule):
            continue
        if any(_collide(value, other) for _, other in points):
            faults.add(item.line, f"{name}: {show(value)} is among the choices twice")
        else:
            points.append((item.line, value))
    return points


def _collide(a: HyperValue, b: HyperValue) -> bool:
    """Whether Optuna could not tell two choices apart: true and 1, [1] and "[1]"."""
    return bool(a == b) or choice_code(a) == choice_code(b)


def _is_flat(value: object) -> bool:
    """Whether it is a scalar or a tuple of scalars."""
    parts = value if isinstance(value, tuple) else (value,)
    return not any(isinstance(part, tuple | dict) or part is BROKEN for part in parts)


def _numbers(
    name: str, kind: str, keys: Mapping[str, Node], faults: Faults
) -> Range | Widths | None:
    """A Range or Widths; None with a fault."""
    values, n_before = {key: plain(node) for key, node in keys.items()}, len(faults)
    is_whole, is_log = kind != "float", values.get("log") is True
    is_valid, number = (_is_exact, "whole number") if is_whole else (is_number, "number")
    bounds, step = values[kind], values.get("step", 0)

    def expect(key: str, is_fine: bool, rule: str, got: object = None) -> bool:
        return faults.expect(keys[key], is_fine, f"{name}: {rule}", got)

    if "log" in keys:
        expect("log", isinstance(values["log"], bool), "log must be true or false")
    is_pair = isinstance(bounds, tuple) and len(bounds) == 2 and all(map(is_valid, bounds))
    if expect(kind, is_pair, f"{kind} must be [low, high], two {number}s"):
        low, high = bounds
        hint = " (a value that never changes goes under 'fixed')" if low == high else ""
        is_pair = low < high or (low == high and kind == "widths")
        expect(kind, is_pair, f"low must be below high{hint}")
        if is_pair and kind == "widths":
            expect(kind, low >= 1, "a width must be >= 1", low)
        elif is_pair and is_log:
            expect(kind, low > 0, "low must be > 0 with log: true", low)
    is_step = is_valid(step) and step > 0
    if "step" in keys and expect("step", is_step, f"step must be a {number} > 0"):
        if is_log:
            text = "log and step cannot both be given: leave one out"
            faults.add(keys["step"].line, f"{name}: {text}")
        elif is_pair:
            rest, rule = _off_step(low, high, step)
            expect("step", rest == 0, rule, high)
    layers = _layers(name, keys, faults) if kind == "widths" else None
    is_broken = not is_pair or len(faults) > n_before or BROKEN in values.values()
    if is_broken or (kind == "widths" and layers is None):
        return None
    if not is_whole:
        return Range(name, float(low), float(high), is_log, float(step) if step else None)
    range_ = Range(name, int(low), int(high), is_log, int(step or 1), True)
    if layers is None:
        return range_
    return Widths(name, Range(f"{name}.n_layers", *layers, step=1, is_whole=True), range_)


def _off_step(low: Any, high: Any, step: Any) -> tuple[Decimal, str]:
    """How far `high` is off the last step, and the rule: Optuna would lower it, with a warning."""
    low_, high_, step_ = Decimal(str(low)), Decimal(str(high)), Decimal(str(step))
    n_steps, rest = divmod(high_ - low_, step_)
    near = [low_ + k * step_ for k in (n_steps, n_steps + 1) if k]
    options = " or ".join(f"{x.normalize():f}" for x in near)
    return rest, f"high must be low plus a multiple of step ({options})"


def _layers(name: str, keys: Mapping[str, Node], faults: Faults) -> tuple[int, int] | None:
    """(least, most) number of layers; None with a fault."""
    rule = f"{name}: layers must be a whole number or [min, max], from 0 to {MAX_LAYERS}"
    if "layers" not in keys:
        if all(key in ("widths", *_KEYS["widths"]) for key in keys):  # not just misspelt
            faults.add(keys["widths"].line, f"{rule}, but got none")
        return None
    value = plain(keys["layers"])
    pair = value if isinstance(value, tuple) else (value, value)
    is_pair = len(pair) == 2 and all(map(is_integer, pair))
    is_valid = is_pair and 0 <= pair[0] <= pair[1] <= MAX_LAYERS and pair[1] > 0
    return (int(pair[0]), int(pair[1])) if faults.expect(keys["layers"], is_valid, rule) else None


def _is_exact(value: object) -> bool:
    return is_integer(value) and abs(value) <= MAX_INTEGER  # type: ignore[arg-type]
