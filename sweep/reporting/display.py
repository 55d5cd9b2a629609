"""What a search shows while it runs, and which display a stream gets."""

from __future__ import annotations

import atexit
import os
import shutil
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from sweep.reporting.lines import Lines, format_line, write_line
from sweep.reporting.progress import Progress
from sweep.trial import Record, StudyInfo

if TYPE_CHECKING:
    from rich.console import Console

    from sweep.reporting.live import LiveTable


class Display:
    """Listener: shows a search on `screen`, drawn by a thread of its own.

    `write` never waits for the screen: records change it under a lock, and the thread draws it
    outside of the lock. A paused terminal (Ctrl-S) or reader (`| less`) delays nothing else, and
    one that goes away (`| head`) ends the display, not the search. Call `close` before os._exit:
    it draws the rest, and brings a terminal's cursor back.
    """

    def __init__(self, screen: Lines | LiveTable) -> None:
        self.screen = screen
        self._progress: Progress | None = None
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._is_stopping = False
        self._thread: threading.Thread | None = None

    def open(self, study: StudyInfo) -> None:
        """Start the thread."""
        self._progress = progress = Progress(study)
        self._thread = threading.Thread(
            target=self._run, args=(progress,), name="sweep-display", daemon=True
        )
        self._thread.start()
        atexit.register(self.close)

    def write(self, records: Sequence[Record]) -> None:
        """Take in `records`; the screen shows them a moment later."""
        if self._progress is None:
            return
        with self._lock:
            for record in records:
                self.screen.take(self._progress, record, self._progress.apply(record))

    def acknowledge(self) -> None:
        """Say that the search stops. Safe in a signal handler: takes no lock."""
        self._is_stopping = True

    def close(self) -> None:
        """Draw for the last time. May be called twice."""
        atexit.unregister(self.close)
        self._closing.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, progress: Progress) -> None:
        is_last = is_gone = False
        while not (is_last or is_gone):
            is_last = self._closing.wait(self.screen.PERIOD_S)
            with self._lock:
                draw = self.screen.picture(progress, self._is_stopping, is_last)
            is_gone = not draw()


def make_display(stream: TextIO, verbosity: int = 0) -> Display:
    """The live table on a terminal that can move its cursor, else lines.

    `verbosity`: -1 nothing (-q), 0 normal, 1 a line per epoch as well (-v), also on a terminal.
    """
    if verbosity == 0 and (console := live_console(stream)) is not None:
        from sweep.reporting.live import LiveTable

        return Display(LiveTable(console))
    return Display(Lines(stream, verbosity))


def live_console(stream: TextIO) -> Console | None:
    """A terminal that a live table can be drawn on; None for any other stream."""
    if not _is_terminal(stream):
        return None
    from rich.console import Console

    console = Console(file=stream)
    return console if console.is_terminal and console.is_interactive else None


def announce(stream: TextIO, message: str) -> None:
    """Write a line before the display starts: words on a terminal, a notice in a pipe."""
    write_line(stream, message if _is_terminal(stream) else format_line({"notice": message}))


def width_and_color(stream: TextIO) -> tuple[int | None, bool]:
    """(cells, whether colours are welcome) for a table on `stream`; (None, False) for a pipe."""
    if not _is_a_tty(stream):
        return None, False
    if not _is_terminal(stream):
        return shutil.get_terminal_size().columns, False  # rich takes any such terminal for 80
    from rich.console import Console

    console = Console(file=stream)
    return console.width, not console.no_color and console.color_system is not None


def _is_terminal(stream: TextIO) -> bool:
    """Whether `stream` is a terminal with a movable cursor, whatever FORCE_COLOR says."""
    return _is_a_tty(stream) and os.environ.get("TERM", "") not in ("dumb", "unknown")


def _is_a_tty(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):  # none, or closed
        return False
