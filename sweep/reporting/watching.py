"""The screens of `sweep status`: a live table on a terminal, lines in a pipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from sweep.reporting.lines import write_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

    from sweep.reporting.status import StudyStatus


class StatusLines:
    """Lines of `key=value`: all that is known, or with several looks the study's line alone."""

    PERIOD_S = 2.0

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._seen = stream, ""

    def show(self, status: StudyStatus, *, is_last: bool) -> bool:
        """Write what is new; False if the reader is gone."""
        lines = status.lines()
        was_shown, now = self._seen, lines[0].partition(" elapsed=")[0]
        if now == was_shown:
            return True
        self._seen = now
        chosen = lines if is_last and not was_shown else lines[:1]
        return all(write_line(self._stream, line) for line in chosen)

    def close(self) -> None:
        """Nothing to put back."""


class StatusTable:
    """The table that the search itself draws, below a line on who runs it."""

    PERIOD_S = 1.0

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None

    def show(self, status: StudyStatus, *, is_last: bool) -> bool:
        """Draw it; False if the terminal is gone."""
        from rich.console import Group
        from rich.live import Live
        from rich.segment import SegmentLines
        from rich.text import Text

        from sweep.reporting.live import RIGHT_MARGIN, frame

        size = self._console.size
        width = max(1, size.width - RIGHT_MARGIN)
        lines = frame(self._console, status.progress, width, size.height - 1)
        head = Text(status.headline, no_wrap=True, overflow="ellipsis")
        try:
            if self._live is None:
                self._live = Live(
                    console=self._console, auto_refresh=False, vertical_overflow="crop"
                )
                self._live.start()
            self._live.update(Group(head, SegmentLines(lines, new_lines=True)), refresh=True)
        except (OSError, ValueError, SystemExit):  # rich exits on a broken pipe
            return False
        return True

    def close(self) -> None:
        """Leave the last picture, and bring the cursor back."""
        if self._live is not None:
            self._live.stop()
