"""Which display a stream gets."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, TextIO

from sweep.reporting.formats import encodable
from sweep.reporting.lines import LineDisplay, format_line, write_line

if TYPE_CHECKING:
    from sweep.reporting.live import LiveDisplay


def make_display(stream: TextIO, verbosity: int = 0) -> LiveDisplay | LineDisplay:
    """The live table on a terminal that can move its cursor, else lines.

    `verbosity`: -1 nothing (-q), 0 normal, 1 a line per epoch as well (-v), also on a terminal.
    """
    if verbosity == 0 and _is_terminal(stream):
        from rich.console import Console

        console = Console(file=stream)
        if console.is_terminal and console.is_interactive:
            from sweep.reporting.live import LiveDisplay

            return LiveDisplay(console)
    return LineDisplay(stream, verbosity)


def announce(stream: TextIO, message: str) -> None:
    """Write a line before the display starts: words on a terminal, a notice in a pipe."""
    line = message if _is_terminal(stream) else format_line([("notice", message)])
    write_line(stream, for_stream(line, stream))


def width_and_color(stream: TextIO) -> tuple[int | None, bool]:
    """(cells, whether colours are welcome) for a table on `stream`; (None, False) for a pipe."""
    if not _is_a_tty(stream):
        return None, False
    if not _is_terminal(stream):
        return shutil.get_terminal_size().columns, False  # rich takes any such terminal for 80
    from rich.console import Console

    console = Console(file=stream)
    return console.width, not console.no_color and console.color_system is not None


def for_stream(text: str, stream: TextIO) -> str:
    """`text` as `stream` can show it (see `formats.encodable`)."""
    return encodable(text, getattr(stream, "encoding", None))


def _is_terminal(stream: TextIO) -> bool:
    """Whether `stream` is a terminal with a movable cursor, whatever FORCE_COLOR says."""
    return _is_a_tty(stream) and os.environ.get("TERM", "") not in ("dumb", "unknown")


def _is_a_tty(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):  # none, or closed
        return False
