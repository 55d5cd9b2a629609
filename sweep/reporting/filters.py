"""Which rows are meant: `--state`, `--where` and `--columns` of `sweep trials`.

    lr<0.01 and optimizer=Adam and hidden=256-64

A condition is NAME OP VALUE; OP is one of = != < <= > >=. `and` joins conditions: all of them must
hold. A value with blanks stands in quotes; `none` means a missing value. Text is compared as a
table shows it, without regard to case; a list may also be written as in YAML, [256,64].
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweep.errors import UsageError, must_be_one_of
from sweep.reporting.formats import format_value
from sweep.trial import TrialState

Row = Mapping[str, Any]

_ORDERS: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_GRAMMAR = "must be conditions NAME OP VALUE joined by `and`, such as 'lr<0.01 and optimizer=Adam'"
_CONDITION = re.compile(
    r"""\s*(?P<name>[^\s<>=!"']+)\s*(?P<op><=|>=|==|!=|=|<|>)\s*"""
    r"""(?P<value>"[^"]*"|'[^']*'|[^\s<>=!"']+)\s*(?P<end>and\s|$)""",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Filter:
    """One comparison of a column with a value."""

    name: str
    op: str
    value: str


def parse_where(text: str) -> list[Filter]:
    """The conditions of a `--where`. Raises UsageError for any other text.

    >>> parse_where("lr<=1e-2 and data='my data'")[1]
    Filter(name='data', op='=', value='my data')
    """
    conditions, at = [], 0
    while True:
        match = _CONDITION.match(text, at)
        if match is None:
            raise UsageError(f"--where {_GRAMMAR}, but got {text[at:]!r}")
        op, value = match["op"].replace("==", "="), match["value"]
        quoted = value[0] in "\"'"
        conditions.append(Filter(match["name"], op, value[1:-1] if quoted else value))
        if not match["end"]:
            return conditions
        at = match.end()


def matching(rows: Sequence[Row], columns: Sequence[str], where: str) -> list[Row]:
    """The rows for which `where` holds. Raises UsageError for a name that is not in `columns`."""
    conditions = parse_where(where)
    if not rows:
        return []
    for condition in conditions:
        if condition.name not in columns:
            raise UsageError(must_be_one_of("--where", condition.name, dict.fromkeys(columns)))
    tests = [
        _test_of(condition, [row.get(condition.name) for row in rows]) for condition in conditions
    ]
    return [
        row for row in rows
        if all(test(row.get(c.name)) for c, test in zip(conditions, tests, strict=True))
    ]  # fmt: skip


def in_states(rows: Sequence[Row], states: str) -> list[Row]:
    """The rows whose state is one of `states`, a list with commas. Raises UsageError."""
    wanted = {_state(word.strip()) for word in states.split(",")}
    return [row for row in rows if row["state"] in wanted]


def chosen(columns: Sequence[str], names: str) -> list[str]:
    """The columns that `names`, a list with commas, asks for. Raises UsageError."""
    wanted = list(dict.fromkeys(name.strip() for name in names.split(",")))
    for name in wanted:
        if name not in columns:
            raise UsageError(must_be_one_of("--columns", name, dict.fromkeys(columns)))
    return wanted


def _state(word: str) -> str:
    known = {state.value.lower(): state.value for state in TrialState}
    state = {**known, "failed": "FAIL"}.get(word.lower())
    if state is None:
        raise UsageError(must_be_one_of("--state", word, known))
    return state


def _test_of(condition: Filter, column: Sequence[Any]) -> Callable[[Any], bool]:
    """What a cell must pass. Raises UsageError where the value cannot be compared with any."""
    name, wanted, number = condition.name, _as_shown(condition.value), _number(condition.value)
    present = [value for value in column if not _is_missing(value)]
    n_numbers = sum(map(_is_number, present))
    is_order = condition.op in _ORDERS
    if is_order and present and not n_numbers:
        raise UsageError(f"--where: {name} holds no numbers, so only = and != compare it")
    is_text_fine = wanted.lower() == "none" or n_numbers < len(present) or not present
    if number is None and (is_order or not is_text_fine):
        raise UsageError(f"--where: {name} must be compared with a number, but got {wanted!r}")
    if is_order:
        order, bound = _ORDERS[condition.op], number or 0.0
        return lambda value: _is_number(value) and order(value, bound)
    is_wanted = condition.op == "="
    return lambda value: _equals(value, wanted, number) == is_wanted


def _as_shown(text: str) -> str:
    """A list in brackets as a table shows it: 256-64 for [256,64]."""
    if len(text) < 2 or text[0] + text[-1] not in ("[]", "()"):
        return text
    items = [item.strip() for item in text[1:-1].split(",")]
    return "-".join(item for item in items if item) or "()"


def _equals(value: Any, wanted: str, number: float | None) -> bool:
    if _is_missing(value):
        return wanted.lower() == "none"
    if _is_number(value) and number is not None:
        return bool(value == number or math.isclose(value, number, rel_tol=5e-5))
    return format_value(value).lower() == wanted.lower()


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _is_missing(value: Any) -> bool:
    return value is None or value != value
