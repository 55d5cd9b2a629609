"""Numbers, durations, times and spark lines."""

from __future__ import annotations

import doctest
import math
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep.reporting import formats, lines
from sweep.reporting.formats import BLOCKS, format_duration, format_number, format_time, sparkline


@pytest.mark.parametrize("module", [formats, lines])
def test_examples_in_docstrings_are_true(module):
    """The examples in the docstrings give what they say."""
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


@given(st.floats(min_value=-1e308, max_value=1e308))
def test_a_number_keeps_five_significant_digits(value):
    """A printed number reads back within half a unit of its fifth digit."""
    assert float(format_number(value)) == pytest.approx(value, rel=5.1e-5, abs=5e-324)


@given(st.lists(st.floats(), max_size=200), st.integers(min_value=-1, max_value=50))
def test_a_spark_line_fits_its_width(values, width):
    """A spark line is as long as its values, at most `width`, and made of blocks and blanks."""
    line = sparkline(values, width)
    assert len(line) == max(0, min(len(values), width))
    assert set(line) <= set(BLOCKS + " ")


def test_a_spark_line_shows_the_extremes_and_the_holes():
    """The lowest and highest values get the lowest and highest block, NaN a blank."""
    assert sparkline([0.1, math.nan, 0.9, math.inf], 10) == "▁ █ "
    assert sparkline([math.nan], 10) == " "


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (9.94, "9.9s"),
        (9.96, "10s"),
        (59.6, "1m00s"),
        (3599.6, "1h00m"),
        (86399.9, "1d00h"),
        (-1, "0.0s"),
    ],
)
def test_durations_carry_over_at_their_edges(seconds, text):
    """A duration that rounds up to the next unit is written in that unit."""
    assert format_duration(seconds) == text


def test_a_time_is_local_and_reads_back():
    """A time stamp is local ISO 8601 and names the same second."""
    text = format_time(1_700_000_000_999)
    assert datetime.fromisoformat(text).timestamp() == 1_700_000_000
    assert len(text) == len("2023-11-14T22:13:20")
