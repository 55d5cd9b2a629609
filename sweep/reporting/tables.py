"""Rows and fields as a table for people, or as JSON or CSV for programs.

Every function returns text that ends with a newline. Columns say their unit in their names:
a table shows `*_ms` as local time, `*_s` as a duration and drops the suffix; JSON and CSV keep
names and numbers as they are.
"""

from __future__ import annotations

import csv
import io
import json
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from sweep.errors import UsageError, must_be_one_of
from sweep.reporting.formats import (
    format_duration,
    format_number,
    format_time,
    format_value,
)

Format = Literal["table", "json", "csv"]
FORMATS: tuple[Format, ...] = ("table", "json", "csv")
ID_COLUMNS = ("id", "name", "number", "run", "study", "trial")
"""Columns that are never cut, as are those that end in `_id`."""

_GAP, _LEAST = 2, 8
"""Cells between columns; cells that a column has at least."""
_STATE_STYLES = {
    "COMPLETE": "green",
    "PRUNED": "yellow",
    "FAIL": "red",
    "RUNNING": "cyan",
    "WAITING": "dim",
}


def render_rows(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    format: Format,
    *,
    width: int | None = None,
    is_colored: bool = False,
    least_first: Sequence[str] = (),
) -> str:
    """`rows` with `columns` in that order; what a row does not have is missing.

    Args:
        rows: Plain values by column.
        columns: Columns to show.
        format: table, json (a list of objects) or csv (RFC 4180, but lines end with LF).
        width: Cells of the terminal; None: as many as it takes, nothing is cut (a pipe).
            A table that is wider loses columns, named in a line below it; no row wraps.
        is_colored: Whether a table may hold colours (a terminal without NO_COLOR).
        least_first: Columns that are left out before text is cut, the least important one first.

    Raises UsageError for another format.
    """
    if format == "json":
        return _json([{c: plain(row.get(c)) for c in columns} for row in rows])
    if format == "csv":
        return _csv(rows, columns)
    _check_is_table(format)
    shown = _fitting(rows, columns, width, least_first)
    table = _table(rows, shown, width, is_colored=is_colored)
    gone = [c for c in columns if c not in shown]
    return table + _left_out(gone, width or 0) if gone else table


def _table(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], width: int | None, *,
    is_colored: bool,
) -> str:  # fmt: skip
    cells = _cells(rows, columns)
    widths = _fit(_natural_widths(cells), [_is_cut(rows, c) for c in columns], width)
    are_numbers = [bool(rows) and _is_numeric(rows, c) for c in columns]
    return "".join(
        _line(row, widths, are_numbers, _styles(row, at == 0) if is_colored else None)
        for at, row in enumerate(cells)
    )


def _cells(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[list[str]]:
    """The header and all rows as text."""
    return [
        [_label(c) for c in columns],
        *([_cell(c, row.get(c)) for c in columns] for row in rows),
    ]


def _fitting(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], width: int | None,
    least_first: Sequence[str],
) -> list[str]:  # fmt: skip
    """Columns that fit into `width` cells: `least_first` go while text is whole, then the last.

    The first column stays.
    """
    shown = list(columns)
    if width is None:
        return shown
    natural = dict(zip(columns, _natural_widths(_cells(rows, columns)), strict=True))
    least = {c: min(w, _LEAST) if _is_cut(rows, c) else w for c, w in natural.items()}
    shown = shown[:1] + [c for c in shown[1:] if _total([least[shown[0]], least[c]]) <= width]
    for column in least_first:
        if column in shown and _total([natural[c] for c in shown]) > width:
            shown.remove(column)
    while len(shown) > 1 and _total([least[c] for c in shown]) > width:
        ids = [c for c in shown[1:] if not _is_id(c)]
        shown.remove(ids[-1] if ids else shown[-1])
    return shown


def _left_out(columns: Sequence[str], width: int) -> str:
    """The line that says which columns are missing, and how to see them."""
    text = f"left out to fit: {', '.join(columns)} (see --columns, or --format csv)"
    return "\n".join(textwrap.wrap(text, max(width, 20))) + "\n"


def render_fields(fields: Mapping[str, Any], format: Format, *, is_colored: bool = False) -> str:
    """One study or trial: `key: value` lines, a JSON object, or CSV with one row.

    In a table a mapping is a block of indented lines, and so is text of several lines.
    Raises UsageError for another format.
    """
    if format == "json":
        return _json({key: plain(value) for key, value in fields.items()})
    if format == "csv":
        return _csv([fields], list(fields))
    _check_is_table(format)
    lines = _field_lines(fields)
    return "".join(
        f"{_styled(key, 'dim') if is_colored else key}{value}".rstrip() + "\n"
        for key, value in lines
    )


def sort_rows(
    rows: Iterable[Mapping[str, Any]], key: str, *, is_descending: bool = False
) -> list[Mapping[str, Any]]:
    """`rows` sorted by column `key`, stable; missing values (None, NaN) are always last.

    Numbers come before text, and text before lists. Raises UsageError where no row has the
    column.
    """
    rows = list(rows)
    known = dict.fromkeys(column for row in rows for column in row)
    if rows and key not in known:
        raise UsageError(must_be_one_of("--sort", key, known))
    present = [row for row in rows if not _is_missing(row.get(key))]
    missing = [row for row in rows if _is_missing(row.get(key))]
    present.sort(key=lambda row: _sort_key(row[key]), reverse=is_descending)
    return present + missing


def plain(value: Any) -> Any:
    """`value` as JSON has it: not finite is None, a tuple a list, a time ISO 8601 text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    return format_value(value)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    lines = [columns, *([_csv_cell(row.get(c)) for c in columns] for row in rows)]
    return "".join(map(_csv_line, lines))


def _csv_line(cells: Sequence[str]) -> str:
    """A row as in RFC 4180, but it ends with LF: tools of a shell would keep the CR."""
    text = io.StringIO()
    csv.writer(text).writerow(cells)  # with its own line end, else a CR in a cell is not quoted
    return text.getvalue().removesuffix("\r\n") + "\n"


def _csv_cell(value: Any) -> str:
    """Numbers keep all their digits; what is missing is empty."""
    if _is_missing(value):
        return ""
    if isinstance(value, Mapping):
        return json.dumps(plain(value), ensure_ascii=False)
    if isinstance(value, float):
        return repr(value)
    return format_value(value)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _sort_key(value: Any) -> tuple[int, Any]:
    """Comparable for any two plain values: (kind, value within its kind)."""
    if isinstance(value, bool | int | float):
        return 0, value
    if isinstance(value, datetime):
        return 0, value.timestamp()
    if isinstance(value, list | tuple):
        return 2, [_sort_key(item) for item in value]
    return 1, format_value(value)


def _check_is_table(format: str) -> None:
    if format != "table":
        raise UsageError(must_be_one_of("format", format, FORMATS))


def _cell(column: str, value: Any) -> str:
    """`value` for people, on one line."""
    if _is_missing(value):
        return "-"
    if isinstance(value, int | float) and not isinstance(value, bool):
        if column.endswith("_ms"):
            return format_time(value)
        if column.endswith("_s"):
            return format_duration(value)
        return format_number(value) if isinstance(value, float) else str(value)
    if isinstance(value, Mapping):
        return " ".join(f"{k}={_cell(str(k), v)}" for k, v in value.items())
    return " ".join(format_value(value).split())


def _label(column: str) -> str:
    return column.removesuffix("_ms").removesuffix("_s") or column


def _is_id(column: str) -> bool:
    return column in ID_COLUMNS or column.endswith("_id")


def _natural_widths(cells: Sequence[Sequence[str]]) -> list[int]:
    """Terminal cells of each column at full length; the first row of `cells` is the header."""
    from rich.cells import cell_len

    return [max(map(cell_len, column)) for column in zip(*cells, strict=True)]


def _is_numeric(rows: Sequence[Mapping[str, Any]], column: str) -> bool:
    return all(isinstance(row.get(column), int | float | None) for row in rows)


def _is_cut(rows: Sequence[Mapping[str, Any]], column: str) -> bool:
    """Whether cells may end in an ellipsis: no ids, no numbers (a part is another number)."""
    return not _is_id(column) and not (rows and _is_numeric(rows, column))


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)


def _fit(widths: Sequence[int], may_be_cut: Sequence[bool], width: int | None) -> list[int]:
    """`widths` for a terminal of `width` cells: of those that may be cut, the widest gives way.

    None of them gets narrower than _LEAST.
    """
    fitted = list(widths)
    for _ in range(0 if width is None else _total(fitted) - width):
        wide = [i for i, w in enumerate(fitted) if may_be_cut[i] and w > _LEAST]
        if not wide:
            break
        fitted[max(wide, key=lambda i: fitted[i])] -= 1
    return fitted


def _line(
    row: Sequence[str],
    widths: Sequence[int],
    are_numbers: Sequence[bool],
    styles: Sequence[str] | None,
) -> str:
    """One row, numbers to the right. rich's Table takes 3.5 s for 10,000 rows, this 0.4 s."""
    from rich.cells import cell_len, set_cell_size

    parts = []
    for at, (cell, width, is_number) in enumerate(zip(row, widths, are_numbers, strict=True)):
        text = cell if cell_len(cell) <= width else set_cell_size(cell, width - 1) + "…"
        blanks = " " * (width - cell_len(text))
        text = _styled(text, styles[at]) if styles else text
        parts.append(blanks + text if is_number else text + blanks)
    return (" " * _GAP).join(parts).rstrip() + "\n"


def _styles(row: Sequence[str], is_header: bool) -> list[str]:
    return ["bold" if is_header else _STATE_STYLES.get(cell, "") for cell in row]


def _styled(text: str, style: str) -> str:
    from rich.style import Style

    return Style.parse(style).render(text)


def _field_lines(fields: Mapping[str, Any], indent: str = "") -> list[tuple[str, str]]:
    """(key with colon and padding, value) of each line."""
    labels = {key: f"{indent}{_label(str(key))}: " for key in fields}
    column = max((len(label) for label in labels.values()), default=0)
    lines: list[tuple[str, str]] = []
    for key, value in fields.items():
        if isinstance(value, Mapping) and value:
            lines.append((labels[key], ""))
            lines += _field_lines(value, indent + "  ")
        elif isinstance(value, str) and "\n" in value.strip():
            lines.append((labels[key], ""))
            lines += [(f"{indent}  ", line) for line in value.strip("\n").splitlines()]
        else:
            lines.append((labels[key].ljust(column), _cell(str(key), value)))
    return lines
