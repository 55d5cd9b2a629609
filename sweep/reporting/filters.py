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
from typing import Any

from sweep.errors import UsageError, must_be_one_of
from sweep.reporting.formats import format_value, is_missing
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


Condition = tuple[str, str, str]
"""(column, operator, value as text); "==" is "="."""


def parse_where(text: str) -> list[Condition]:
    """The conditions of a `--where`. Raises UsageError for any other text.

    >>> parse_where("lr<=1e-2 and data='my data'")
    [('lr', '<=', '1e-2'), ('data', '=', 'my data')]
    """
    conditions, at = [], 0
    while True:
        match = _CONDITION.match(text, at)
        if match is None:
            raise UsageError(f"--where {_GRAMMAR}, but got {text[at:]!r}")
        op, value = match["op"].replace("==", "="), match["value"]
        quoted = value[0] in "\"'"
        conditions.append((match["name"], op, value[1:-1] if quoted else value))
        if not match["end"]:
            return conditions
        at = match.end()


def matching(rows: Sequence[Row], columns: Sequence[str], where: str) -> list[Row]:
    """The rows for which `where` holds. Raises UsageError for a name outside `columns`."""
    found = list(rows)
    for name, op, value in parse_where(where) if rows else ():
        _check_known("--where", name, columns)
        is_match = _test_of(name, op, value, [row.get(name) for row in rows])
        found = [row for row in found if is_match(row.get(name))]
    return found


def in_states(rows: Sequence[Row], states: str) -> list[Row]:
    """The rows with one of `states`, a list with commas. Raises UsageError."""
    wanted = {_state(word.strip()) for word in states.split(",")}
    return [row for row in rows if row["state"] in wanted]


def chosen(columns: Sequence[str], names: str) -> list[str]:
    """The columns in `names`, a list with commas. Raises UsageError."""
    wanted = list(dict.fromkeys(name.strip() for name in names.split(",")))
    for name in wanted:
        _check_known("--columns", name, columns)
    return wanted


def _check_known(flag: str, name: str, columns: Sequence[str]) -> None:
    if name not in columns:
        raise UsageError(must_be_one_of(flag, name, dict.fromkeys(columns)))


def _state(word: str) -> str:
    known = {state.value.lower(): state.value for state in TrialState}
    state = {**known, "failed": "FAIL"}.get(word.lower())
    if state is None:
        raise UsageError(must_be_one_of("--state", word, known))
    return state


def _test_of(name: str, op: str, value: str, column: Sequence[Any]) -> Callable[[Any], bool]:
    """The test of one cell. Raises UsageError if no cell of `column` compares with `value`."""
    wanted, number = _as_shown(value), _number(value)
    present = [cell for cell in column if not is_missing(cell)]
    n_numbers = sum(map(_is_number, present))
    is_order = op in _ORDERS
    if is_order and present and not n_numbers:
        raise UsageError(f"--where: {name} holds no numbers, so only = and != compare it")
    is_text_fine = wanted.lower() == "none" or n_numbers < len(present) or not present
    if number is None and (is_order or not is_text_fine):
        raise UsageError(f"--where: {name} must be compared with a number, but got {wanted!r}")
    if is_order:
        order, bound = _ORDERS[op], number or 0.0
        return lambda value: _is_number(value) and order(value, bound)
    is_wanted = op == "="
    return lambda value: _equals(value, wanted, number) == is_wanted


def _as_shown(text: str) -> str:
    """A list in brackets as a table shows it: 256-64 for [256,64]."""
    if len(text) < 2 or text[0] + text[-1] not in ("[]", "()"):
        return text
    items = [item.strip() for item in text[1:-1].split(",")]
    return "-".join(item for item in items if item) or "()"


def _equals(value: Any, wanted: str, number: float | None) -> bool:
    if is_missing(value):
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
