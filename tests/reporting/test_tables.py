"""Rows and fields as table, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep.errors import UsageError
from sweep.reporting.tables import render_fields, render_rows, sort_rows

RUN_ID = "0123456789abcdef0123456789abcdef"
COLUMNS = ["trial", "state", "val_acc", "hidden", "duration_s", "run_id"]
ROWS = [
    {
        "trial": 0,
        "state": "COMPLETE",
        "val_acc": 0.98222222,
        "hidden": (256, 64),
        "duration_s": 192.3,
        "run_id": RUN_ID,
    },
    {"trial": 11, "state": "FAIL", "val_acc": math.nan, "run_id": RUN_ID[::-1]},
]


def test_a_table_shows_values_as_people_read_them():
    """A table rounds numbers, shows durations, a dash where nothing is."""
    head, first, second = render_rows(ROWS, COLUMNS, "table").splitlines()
    assert head.split() == ["trial", "state", "val_acc", "hidden", "duration", "run_id"]
    assert first.split()[:4] == ["0", "COMPLETE", "0.98222", "256-64"]
    assert first.split()[4:] == ["3m12s", RUN_ID]
    assert second.split() == ["11", "FAIL", "-", "-", "-", RUN_ID[::-1]]


def test_a_piped_table_cuts_nothing():
    """Without a width, even a very long value is whole and on its row's line."""
    rows = [{"trial": 1, "message": "no " * 200, "run_id": RUN_ID, "note": "日本" * 40}]
    lines = render_rows(rows, ["trial", "message", "note", "run_id"], "table").splitlines()
    assert len(lines) == 2
    assert "…" not in lines[1]
    assert lines[1].count("no") == 200
    assert lines[1].endswith("日本" * 40 + "  " + RUN_ID)


WIDE = [{**row, "lr": 0.0050832, "message": "a long story " * 20} for row in ROWS]
WIDE_COLUMNS = ["trial", "lr", *COLUMNS[1:], "message"]


@pytest.mark.parametrize("width", [8, 15, 20, 40, 60, 80, 200])
def test_no_row_of_a_narrow_table_wraps(width):
    """Text is cut with an ellipsis, columns go, ids and numbers are whole or not there."""
    text = render_rows(WIDE, WIDE_COLUMNS, "table", width=width)
    table, note = text.splitlines()[:3], text.splitlines()[3:]
    assert max(map(len, table)) <= width
    shown = table[0].split()
    gone = [c for c in WIDE_COLUMNS if c.removesuffix("_s") not in shown]
    assert " ".join(note).startswith("left out to fit: ") == bool(gone)
    assert all(name in " ".join(note) for name in gone)
    assert (RUN_ID in text) == ("run_id" in shown)
    assert ("5.0832e-3" in text) == ("lr" in shown)


def test_the_least_important_columns_go_first():
    """Columns of `least_first` go before text is cut, in that order, as far as needed."""
    least = ["hidden", "duration_s"]
    whole = render_rows(ROWS, COLUMNS, "table").splitlines()
    text = render_rows(ROWS, COLUMNS, "table", width=len(whole[1]) - 1, least_first=least)
    assert text.splitlines()[0].split() == ["trial", "state", "val_acc", "duration", "run_id"]
    assert text.splitlines()[3] == ("left out to fit: hidden (see --columns, or --format csv)")
    assert "…" not in text


def test_colours_only_where_welcome():
    """A table holds control sequences only when colours are asked for."""
    assert "\x1b" not in render_rows(ROWS, COLUMNS, "table")
    assert "\x1b" not in render_fields(ROWS[0], "table")
    colored = render_rows(ROWS, COLUMNS, "table", width=200, is_colored=True)
    assert "\x1b[32mCOMPLETE" in colored
    assert "\x1b[" in render_fields(ROWS[0], "table", is_colored=True)


def test_json_holds_plain_values():
    """JSON is a list of objects with all digits; NaN and missing values are null."""
    first, second = json.loads(render_rows(ROWS, COLUMNS, "json"))
    assert first == {**ROWS[0], "hidden": [256, 64]}
    assert list(second) == COLUMNS
    assert second["val_acc"] is None
    assert second["hidden"] is None


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1)))
def test_csv_reads_back(texts):
    """Whatever text a cell holds, RFC 4180 readers get it back."""
    rows = [{"a": text, "b": 0.1} for text in texts]
    text = render_rows(rows, ["a", "b"], "csv")
    back = list(csv.DictReader(io.StringIO(text, newline="")))
    assert back == [{"a": t, "b": "0.1"} for t in texts]


def test_csv_keeps_digits_and_leaves_missing_values_empty():
    """CSV holds all digits, nothing for what is missing, and lines end with LF."""
    text = render_rows(ROWS, COLUMNS[:4], "csv")
    assert text == ("trial,state,val_acc,hidden\n0,COMPLETE,0.98222222,256-64\n11,FAIL,,\n")


def test_no_rows_are_no_error():
    """Without rows there are the header, an empty list, or nothing to sort."""
    assert render_rows([], ["trial", "state"], "table") == "trial  state\n"
    assert json.loads(render_rows([], ["trial"], "json")) == []
    assert render_rows([], ["trial"], "csv") == "trial\n"
    assert sort_rows([], "trial") == []


def test_an_unknown_sort_key_is_a_usage_error():
    """A column that no row has names the nearest one."""
    with pytest.raises(UsageError, match=r"did you mean val_acc\?"):
        sort_rows(ROWS, "val_ac")


VALUES = st.one_of(
    st.none(),
    st.integers(-(10**6), 10**6),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.one_of(st.integers(0, 9), st.text(max_size=1)), max_size=3).map(tuple),
)


@given(st.lists(VALUES), st.booleans())
def test_any_values_sort_with_missing_ones_last(values, is_descending):
    """Mixed values sort either way, and what is missing comes last both ways."""
    rows = [{"x": value, "at": at} for at, value in enumerate(values)]
    ordered = sort_rows(rows, "x", is_descending=is_descending)
    assert sorted(row["at"] for row in ordered) == list(range(len(values)))
    missing = [row["x"] is None or row["x"] != row["x"] for row in ordered]
    assert missing == sorted(missing)
    numbers = [row["x"] for row in ordered if isinstance(row["x"], int | float)]
    numbers = [x for x in numbers if not math.isnan(x)]
    assert numbers == sorted(numbers, reverse=is_descending)


def test_equal_values_keep_their_order():
    """Sorting is stable, also downwards."""
    rows = [{"x": 1, "at": at} for at in range(5)]
    assert [row["at"] for row in sort_rows(rows, "x", is_descending=True)] == [0, 1, 2, 3, 4]


def test_fields_are_aligned_and_nested():
    """One study is a block of `key: value` lines; mappings and long texts are indented."""
    fields = {
        "study": "mnist-mlp",
        "best_value": 0.98333333,
        "duration_s": 34,
        "params": {"lr": 1e-3, "hidden": (256, 64)},
        "space_text": "a: 1\nb:\n  - 2\n",
        "note": None,
    }
    assert render_fields(fields, "table").splitlines() == [
        "study:      mnist-mlp",
        "best_value: 0.98333",
        "duration:   34s",
        "params:",
        "  lr:     1e-3",
        "  hidden: 256-64",
        "space_text:",
        "  a: 1",
        "  b:",
        "    - 2",
        "note:       -",
    ]
    assert json.loads(render_fields(fields, "json"))["params"] == {"lr": 1e-3, "hidden": [256, 64]}
    assert render_fields({"a": 1, "b": (2, 3)}, "csv") == "a,b\n1,2-3\n"
