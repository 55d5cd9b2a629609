"""Numbers, durations, times and curves as people read them."""

from __future__ import annotations

import codecs
import itertools
import math
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

BLOCKS = "▁▂▃▄▅▆▇█"
_BYTES = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
_ASCII = str.maketrans(BLOCKS + "━╸─·…▸–", "__..--^^#=-..>-")


def _drawn(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end].translate(_ASCII)
    return letters.encode("ascii", "backslashreplace").decode(), error.end


ENCODING_ERRORS = "sweep.drawn"
"""Error handler for text streams: drawings in ASCII, other missing letters escaped."""
codecs.register_error(ENCODING_ERRORS, _drawn)


def format_number(value: float) -> str:
    """`value` with at most 5 significant digits; below 0.01 with an exponent.

    >>> [format_number(x) for x in (0.98222222, 0.0012, 12.0, 1e-5, 3.2e7, float("nan"))]
    ['0.98222', '1.2e-3', '12', '1e-5', '3.2e7', 'nan']
    """
    if not math.isfinite(value) or value == 0:
        return "0" if value == 0 else str(float(value))
    text = f"{value:.4e}" if abs(value) < 0.01 else f"{value:.5g}"
    mantissa, has_exponent, exponent = text.partition("e")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}e{int(exponent)}" if has_exponent else mantissa


def format_metric(value: float | None) -> str:
    """`value` with 4 significant digits, trailing zeros kept for columns; None is "-".

    >>> [format_metric(x) for x in (0.98, 1.0, 12.345678, 0.00012, None)]
    ['0.9800', '1.000', '12.35', '1.2e-4', '-']
    """
    if value is None:
        return "-"
    if math.isfinite(value) and 0.01 <= abs(value) < 1000:
        return f"{value:#.4g}".rstrip(".")
    return format_number(value)


def format_value(value: Any) -> str:
    """A hyperparameter or any other plain value on one line.

    >>> [format_value(x) for x in ((256, 64), (), True, None, 1e-3, "Adam")]
    ['256-64', '()', 'true', 'none', '1e-3', 'Adam']
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return format_number(value)
    if isinstance(value, tuple | list):
        return "-".join(format_value(item) for item in value) or "()"
    return str(value)


def is_missing(value: Any) -> bool:
    """Whether it is None or NaN."""
    return value is None or value != value


def format_duration(seconds: float) -> str:
    """A duration in its two largest units.

    >>> [format_duration(s) for s in (0.42, 3.14, 34, 192, 7500, 97200)]
    ['0.4s', '3.1s', '34s', '3m12s', '2h05m', '1d03h']
    """
    if round(seconds, 1) < 10:
        return f"{max(seconds, 0.0):.1f}s"
    minutes, rest_s = divmod(round(seconds), 60)
    hours, rest_min = divmod(minutes, 60)
    days, rest_h = divmod(hours, 24)
    if days:
        return f"{days}d{rest_h:02d}h"
    if hours:
        return f"{hours}h{rest_min:02d}m"
    return f"{minutes}m{rest_s:02d}s" if minutes else f"{rest_s}s"


def format_bytes(n_bytes: float) -> str:
    """A size in decimal units, with 3 significant digits.

    >>> [format_bytes(n) for n in (0, 999, 20480, 1.5e6, 2.04e10)]
    ['0 B', '999 B', '20.5 kB', '1.5 MB', '20.4 GB']
    """
    unit = max((u for u in _BYTES if n_bytes >= _BYTES[u]), key=lambda u: _BYTES[u], default="B")
    return f"{n_bytes / _BYTES[unit]:.3g} {unit}"


def format_time(time_ms: float) -> str:
    """Unix milliseconds as local ISO 8601 (no offset), to the second."""
    return datetime.fromtimestamp(time_ms / 1000).isoformat(timespec="seconds")


def sparkline(
    values: Sequence[float], width: int, scale: tuple[float, float] | None = None
) -> str:
    """The curve of `values` as at most `width` block characters.

    `scale`: (low, high) at the lowest and the highest block, the curve is cut beyond it; None: the
    curve's own range. With more values than places each place shows the mean of its share. NaN
    and infinity are blanks; a flat curve is drawn at half height.

    >>> sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8), sparkline([1, 1], 8), sparkline([0, 0, 9, 9], 2)
    ('▁▂▃▄▅▆▇█', '▄▄', '▁█')
    >>> sparkline([0, 1, 2, 3], 8, (2, 4))
    '▁▁▁▅'
    """
    means = condensed(values, width)
    finite = [m for m in means if not math.isnan(m)]
    low, high = scale or (min(finite, default=0.0), max(finite, default=0.0))
    return "".join(" " if math.isnan(m) else _block(m, low, high) for m in means)


def condensed(values: Sequence[float], width: int) -> list[float]:
    """`values` as at most `width` means of equal shares; NaN where nothing is finite.

    The mean of a large share is that of 16 of its values: a frame is drawn four times a second.
    """
    n = min(len(values), max(width, 0))
    if n == 0:
        return []
    edges = [i * len(values) // n for i in range(n + 1)]
    shares = itertools.pairwise(edges)
    return [_finite_mean(values[a : b : max(1, (b - a) // 16)]) for a, b in shares]


def common_scale(curves: Iterable[Sequence[float]], *, is_up: bool) -> tuple[float, float] | None:
    """One scale for the spark lines of (condensed) `curves`; None where nothing is finite.

    It runs from the worst tenth of all points to the best point: a diverged trial does not make
    the others look alike. `is_up`: larger is better.
    """
    points = sorted(point for curve in curves for point in curve if math.isfinite(point))
    if not points:
        return None
    tenth = len(points) // 10
    return (points[tenth], points[-1]) if is_up else (points[0], points[-1 - tenth])


def _finite_mean(values: Sequence[float]) -> float:
    """The mean of the finite values, divided before the sum: it cannot overflow."""
    finite = [v for v in values if math.isfinite(v)]
    return sum(v / len(finite) for v in finite) if finite else math.nan


def _block(value: float, low: float, high: float) -> str:
    """Halves keep `high - low` finite where both are near the largest float."""
    span = high / 2 - low / 2
    if span <= 0:
        return BLOCKS[3]
    share = min(max((value / 2 - low / 2) / span, 0.0), 1.0)
    return BLOCKS[min(int(share * len(BLOCKS)), len(BLOCKS) - 1)]
