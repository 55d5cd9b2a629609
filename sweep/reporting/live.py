"""The live table on a terminal: how far the search is, the best so far, what is running.

`frame` lays one picture out; `LiveDisplay` draws it, at most REFRESH_HZ times a second.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sweep.reporting.formats import (
    common_scale,
    condensed,
    encodable,
    format_duration,
    format_metric,
    sparkline,
)
from sweep.reporting.lines import LOADING, STOPPING
from sweep.reporting.progress import Progress, TrialProgress
from sweep.trial import Notice, Record, StudyInfo, TrialState, WorkerReady

if TYPE_CHECKING:
    from rich.console import Console
    from rich.control import Control
    from rich.live import Live
    from rich.text import Text

REFRESH_HZ = 4
LINES_AROUND_ROWS = 8
"""Lines that are not rows of trials: bar, best, counts, stopping, blank, header, "+12 more", one
spare."""
RIGHT_MARGIN = 3
"""Cells kept free: a terminal writes ^C behind the last line, which must not wrap."""
SLOW_EPOCH_S = 3.0
"""An epoch that takes longer shows its age."""
SPINNER = "|/-\\"

_STATES = (
    (TrialState.COMPLETE, "complete", "green"),
    (TrialState.PRUNED, "pruned", "yellow"),
    (TrialState.FAIL, "failed", "red"),
)


class LiveDisplay:
    """Listener: one live table on `console`. `write` never waits for the terminal.

    Records change the picture under a lock; a thread draws it outside of that lock, so that a
    terminal that is held (Ctrl-S) holds up nobody else. A terminal that goes away ends the
    display, not the search. Whoever leaves the process other than by its normal end (os._exit)
    calls `close` first: it brings the cursor back.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._progress: Progress | None = None
        self._notices: list[tuple[str, str]] = []
        """(line above the table, its style)"""
        self._is_changed = True
        self._is_stopping = False
        self._live: Live | None = None
        self._thread: threading.Thread | None = None
        self._drawn: tuple[int, list[int]] = (0, [])
        """Width of the terminal, and of each line, when the last frame was drawn."""

    def open(self, study: StudyInfo) -> None:
        """Show the table of `study`."""
        from rich.live import Live

        self._progress = Progress(study)
        self._live = Live(console=self._console, auto_refresh=False, vertical_overflow="crop")
        self._thread = threading.Thread(target=self._run, name="sweep-live", daemon=True)
        atexit.register(self.close)
        if self._guarded_start():
            self._thread.start()

    def write(self, records: Sequence[Record]) -> None:
        """Take `records` into the picture; it is drawn a moment later."""
        if self._progress is None:
            return
        with self._lock:
            for record in records:
                if isinstance(record, Notice):
                    self._notices.append((record.message, "yellow"))
                elif isinstance(record, WorkerReady) and self._progress.worker is None:
                    self._notices.append((start_text(self._progress.study, record), ""))
                self._progress.apply(record)
            self._is_changed = True

    def acknowledge(self) -> None:
        """Say that the search stops. Safe in a signal handler: takes no lock."""
        self._is_stopping = self._is_changed = True

    def close(self) -> None:
        """Leave the last bar and counts on the terminal, cursor below. May be called twice."""
        atexit.unregister(self.close)
        live, self._live = self._live, None
        if live is None:
            return
        self._closing.set()
        if self._thread is not None and self._thread.ident is not None:
            self._thread.join()
        self._attempt(live, is_last=True)

    def _run(self) -> None:
        """Draw what has changed, and once a second the clocks."""
        live, second = self._live, -1
        while live is not None and not self._closing.is_set():
            assert self._progress is not None
            now = int(self._progress.elapsed_s)
            if (self._is_changed or now != second) and not self._attempt(live):
                return
            second = now
            self._closing.wait(1 / REFRESH_HZ)

    def _guarded_start(self) -> bool:
        try:
            assert self._live is not None
            self._live.start()
        except (OSError, ValueError, SystemExit):
            return False
        return True

    def _attempt(self, live: Live, *, is_last: bool = False) -> bool:
        """Draw one frame; False where the terminal is gone (rich exits on a broken pipe)."""
        try:
            self._draw(live, is_last=is_last)
            if is_last:
                live.stop()
        except (OSError, ValueError, SystemExit):
            return False
        return True

    def _draw(self, live: Live, *, is_last: bool) -> None:
        from rich.console import Group
        from rich.text import Text

        size = self._console.size
        with self._lock:
            assert self._progress is not None
            notices, self._notices, self._is_changed = self._notices, [], False
            width, height = max(1, size.width - RIGHT_MARGIN), 0 if is_last else size.height
            lines = frame(self._progress, width, height, is_stopping=self._is_stopping)
        for line in lines:
            line.plain = encodable(line.plain, self._console.encoding)
        self._console.control(rewrap(size.width, *self._drawn))
        self._drawn = (size.width, [line.cell_len for line in lines])
        for notice, style in notices:
            text = encodable(notice, self._console.encoding)
            self._console.print(Text(text, style), highlight=False)
        live.update(Group(*lines), refresh=True)


def rewrap(width: int, drawn_width: int, line_widths: Sequence[int]) -> Control:
    """Erases the rows that a frame gained when its terminal became narrower.

    Terminals that reflow break each line that no longer fits, so the frame is higher than rich
    remembers and its top would stay behind. Cost where a terminal does not reflow: as many
    rows above the table.
    """
    from rich.control import Control
    from rich.segment import ControlType

    n_extra = 0
    if width < drawn_width:
        n_extra = sum(max(cells - 1, 0) // max(width, 1) for cells in line_widths)
    erase_up = ((ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1))
    return Control(*erase_up * n_extra)


def start_text(study: StudyInfo, worker: WorkerReady) -> str:
    """What is searched, and where, in words."""
    towards = "highest" if study.direction == "maximize" else "lowest"
    slots = "one" if worker.n_slots == 1 else f"up to {worker.n_slots}"
    return (
        f"{study.name}: {study.n_trials} trials of at most {study.epochs} epochs, "
        f"{towards} {study.metric} wins, {slots} at a time on {worker.device}"
    )


def frame(progress: Progress, width: int, height: int, *, is_stopping: bool = False) -> list[Text]:
    """The picture as lines of at most `width` cells, fewer than `height` of them.

    Running trials are sorted by their best metric so far; those that do not fit are counted.
    Height 0 asks for the last frame: bar and counts alone.
    """
    from rich.text import Text

    lines = [_bar_line(progress, width, is_stopping=is_stopping)]
    if height == 0:
        lines.append(_counts_line(progress, width))
    else:
        lines += [_best_line(progress), _counts_line(progress, width)]
        lines += [Text(STOPPING, "bold yellow")] if is_stopping else []
        lines += _trial_lines(progress, width, max(1, height - LINES_AROUND_ROWS))
        lines = lines[: max(1, height - 1)]
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
        line.truncate(width, overflow="ellipsis")
    return lines


def _bar_line(progress: Progress, width: int, *, is_stopping: bool) -> Text:
    from rich.text import Text

    done, total = progress.n_done, progress.study.n_trials
    clock = format_duration(int(progress.elapsed_s)).replace(".0s", "s")
    count = f"{done}/{total} trials"
    tail = f"  {clock}"
    eta = None if is_stopping else progress.eta_s()
    if eta is not None and done < total:
        tail += f"  ETA {format_duration(round(eta)).replace('.0s', 's')}"
    cells = min(40, width - len(count) - len(tail) - 2)
    line = Text()
    if cells >= 4:
        filled, half = divmod(int(2 * cells * progress.share), 2)
        line.append("━" * filled + "╸" * half, "green")
        line.append("─" * (cells - filled - half), "dim").append("  ")
    return line.append(count, "bold").append(tail, "dim")


def _best_line(progress: Progress) -> Text:
    """The best complete trial, or the running one that is ahead of it."""
    from rich.text import Text

    label, value, name = "best", progress.best_value, progress.best_name or "from before"
    leader = progress.leader()
    if leader is not None and progress.is_better(leader.best or 0.0, value):
        label, value, name = "leading", leader.best, leader.name
    line = Text().append(f"{label} {progress.study.metric} ", "dim")
    if value is None:
        begun = [*progress.running.values(), *progress.interrupted.values()]
        has_news = progress.n_done > 0 or any(trial.epoch for trial in begun)
        return line.append("-", "dim") if has_news else Text(_waiting_for(progress), "dim")
    return line.append(format_metric(value), "bold green").append(f"  {name}")


def _waiting_for(progress: Progress) -> str:
    """Why there is nothing to see yet: loading torch and the data takes seconds."""
    return LOADING if progress.worker is None else "in the first epoch"


def _counts_line(progress: Progress, width: int) -> Text:
    """Trials by state; zeros are dim, and left out where there is little room."""
    from rich.text import Text

    counts = [(progress.counts[state], word, style) for state, word, style in _STATES]
    parts = [
        (f"{n} {word}", style if n else "dim") for n, word, style in counts if n or width > 48
    ]
    if progress.running:
        parts.append((f"{len(progress.running)} running{_age(progress)}", "cyan"))
    if progress.interrupted:
        parts.append((f"{len(progress.interrupted)} interrupted", "yellow"))
    if progress.study.n_done:
        parts.append((f"{progress.study.n_done} before", "dim"))
    return Text().join(
        Text.assemble(part, (" · " if at < len(parts) else "", "dim"))
        for at, part in enumerate(parts, start=1)
    )


def _age(progress: Progress) -> str:
    """Signs of life within a long epoch."""
    age_s = int(progress.epoch_age_s)
    if age_s < SLOW_EPOCH_S:
        return ""
    clock = format_duration(age_s).replace(".0s", "s")
    return f" {SPINNER[age_s % len(SPINNER)]} this epoch {clock}"


def _trial_lines(progress: Progress, width: int, n_rows: int) -> list[Text]:
    """A blank line, a header, a row for each of the best `n_rows` trials, "+12 more"."""
    from rich.text import Text

    trials = progress.ranked()
    if not trials:
        return []
    shown = trials[:n_rows]
    widths = _column_widths(progress, shown, width)
    curves = [condensed(trial.values, widths[4]) for trial in shown]
    scale = common_scale(curves, is_up=progress.study.direction == "maximize")
    header = ("  running", "epoch", progress.study.metric, "best", _scale_text(scale))
    lines = [Text(), _row(header, widths, "dim")]
    for trial, curve in zip(shown, curves, strict=True):
        is_leader = trial is shown[0] and trial.best is not None
        cells = (
            f"{'▸' if is_leader else ' '} {trial.name}",
            f"{trial.epoch}/{progress.study.epochs}",
            format_metric(trial.values[-1] if trial.values else None),
            format_metric(trial.best),
            sparkline(curve, widths[4], scale),
        )
        lines.append(_row(cells, widths, "bold" if is_leader else ""))
    if len(trials) > n_rows:
        lines.append(Text(f"+{len(trials) - n_rows} more", "dim"))
    return lines


def _scale_text(scale: tuple[float, float] | None) -> str:
    """What the lowest and the highest block of all curves stand for."""
    if scale is None:
        return ""
    low, high = (f"{edge:.3g}" for edge in scale)
    return f"{low}–{high}"


def _column_widths(
    progress: Progress, shown: Sequence[TrialProgress], width: int
) -> tuple[int, int, int, int, int]:
    """Cells for name, epoch, metric, best and curve.

    Where there is little room the curve is cut down to 8 cells before the name is cut down to 20;
    then the curve goes, then the best, and the name is cut down to 8.
    """
    from rich.cells import cell_len

    epoch = max(5, 2 * len(str(progress.study.epochs)) + 1)
    metric = max(7, min(len(progress.study.metric), 12))
    best = 7 if width >= 48 else 0
    room = width - epoch - metric - best - 8
    curve = min(progress.study.epochs, 32, width // 5, max(8, room - 20)) if width >= 36 else 0
    room -= curve
    # Steps of 8 keep the columns still while trials come and go.
    name = -(-max(2 + cell_len(trial.name) for trial in shown) // 8) * 8
    return max(8, min(name, room)), epoch, metric, best, curve


def _row(cells: Sequence[str], widths: Sequence[int], style: str) -> Text:
    from rich.text import Text

    name = Text(cells[0], style)
    name.truncate(widths[0], overflow="ellipsis", pad=True)
    line = name.append(f"  {cells[1]:>{widths[1]}}", "dim")
    for cell, width in zip(cells[2:4], widths[2:4], strict=True):
        if width:
            line.append(f"  {cell[:width]:>{width}}", style)
    if widths[4] and cells[4]:
        line.append(f"  {cells[4]}", "cyan" if style != "dim" else style)
    return line
