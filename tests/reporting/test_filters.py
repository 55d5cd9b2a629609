"""Conditions, states and columns of `sweep trials`."""

from __future__ import annotations

import doctest
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep.errors import UsageError
from sweep.reporting import filters
from sweep.reporting.filters import chosen, in_states, matching, parse_where

ROWS = [
    {"number": 0, "state": "COMPLETE", "lr": 0.1, "optimizer": "SGD", "hidden": (256, 64)},
    {"number": 1, "state": "FAIL", "lr": 1e-3, "optimizer": "Adam", "hidden": (32,)},
    {"number": 2, "state": "PRUNED", "lr": 0.0050832123, "optimizer": None, "hidden": ()},
    {"number": 3, "state": "COMPLETE", "lr": math.nan, "optimizer": "Adam W", "hidden": (256, 64)},
]
COLUMNS = list(ROWS[0])


def numbers(where):
    return [row["number"] for row in matching(ROWS, COLUMNS, where)]


def test_examples_in_docstrings_are_true():
    """The examples in the docstrings give what they say."""
    assert doctest.testmod(filters).failed == 0


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("lr<0.01", [1, 2]),
        ("lr <= 1e-3", [1]),
        ("lr>0.001 and lr<0.1", [2]),
        ("lr >= .1", [0]),
        ("lr=5.0832e-3", [2]),
        ("lr==0.1", [0]),
        ("lr!=0.1", [1, 2, 3]),
        ("lr=none", [3]),
        ("optimizer=adam", [1]),
        ("optimizer='Adam W'", [3]),
        ('optimizer="adam w" AND number>2', [3]),
        ("optimizer!=SGD and optimizer!=none", [1, 3]),
        ("hidden=256-64 and state=complete", [0, 3]),
        ("hidden=32", [1]),
        ("number>5", []),
    ],
)
def test_conditions_mean_what_they_say(where, expected):
    """Numbers are compared as numbers, text as it is shown, and missing values only equal none."""
    assert numbers(where) == expected


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("lrr<0.1", "did you mean lr?"),
        ("lr<fast", "lr must be compared with a number, but got 'fast'"),
        ("lr=fast", "lr must be compared with a number"),
        ("optimizer<3", "optimizer holds no numbers, so only = and != compare it"),
        ("hidden>100", "hidden holds no numbers"),
        ("lr", "NAME OP VALUE"),
        ("lr<", "NAME OP VALUE"),
        ("lr<0.1 or lr>0.5", "but got 'lr<0.1 or lr>0.5'"),
        ("lr<0.1 and", "NAME OP VALUE"),
        ("lr=>1", "NAME OP VALUE"),
        ("__import__('os')", "NAME OP VALUE"),
        ("", "NAME OP VALUE"),
    ],
)
def test_what_is_no_condition_is_one_line(where, words):
    """A wrong name has the nearest one, anything else is told the grammar."""
    with pytest.raises(UsageError) as caught:
        numbers(where)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=30))
def test_any_text_is_conditions_or_a_usage_error(text):
    """No text does anything else, however odd."""
    try:
        conditions = parse_where(text)
    except UsageError:
        return
    assert conditions
    assert all(op in ("=", "!=", "<", "<=", ">", ">=") and name for name, op, _ in conditions)


@pytest.mark.parametrize(
    ("states", "expected"), [("complete", [0, 3]), ("FAIL,pruned", [1, 2]), ("failed", [1])]
)
def test_states_are_chosen_by_their_names(states, expected):
    """In either case, several with commas, and `failed` is FAIL."""
    assert [row["number"] for row in in_states(ROWS, states)] == expected


def test_wrong_states_and_columns_have_the_nearest_name():
    """One line says what there is."""
    with pytest.raises(UsageError, match=r"--state .* got 'prund' \(did you mean pruned\?\)"):
        in_states(ROWS, "prund")
    with pytest.raises(UsageError, match=r"--columns .* got 'optimiser' \(did you mean optimizer"):
        chosen(COLUMNS, "lr,optimiser")
    assert chosen(COLUMNS, "lr, number,lr") == ["lr", "number"]


@pytest.mark.parametrize("form", ["256-64", "[256,64]", "'[256, 64]'", "(256,64)"])
def test_a_list_may_be_written_in_brackets(form: str) -> None:
    """As a table shows it, or as YAML and Python have it."""
    rows = [{"hidden": (256, 64)}, {"hidden": (256,)}, {"hidden": ()}]
    assert matching(rows, ["hidden"], f"hidden={form}") == rows[:1]
    assert matching(rows, ["hidden"], "hidden=[]") == rows[2:]
