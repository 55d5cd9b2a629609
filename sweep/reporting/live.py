"""The live table on a terminal: how far the search is, the best so far, what is running.

`frame` lays one picture out; `LiveDisplay` draws it, at most REFRESH_HZ times a second.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Sequence

from rich.cells import cell_len
from rich.console import Console, Group
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType
from rich.text import Text

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

    Records change the picture under a lock; a thread draws it outside of the lock, so a paused
    terminal (Ctrl-S) delays nothing else. A terminal that goes away ends the display, not the
    search. Call `close` before os._exit: it brings the cursor back.
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
        self._progress = progress = Progress(study)
        self._live = live = Live(
            console=self._console, auto_refresh=False, vertical_overflow="crop"
        )
        atexit.register(self.close)
        if _is_done(live.start):
            self._thread = threading.Thread(
                target=self._run, args=(live, progress), name="sweep-live", daemon=True
            )
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
        if live is None or self._progress is None:
            return
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        self._draw(live, self._progress, is_last=True)

    def _run(self, live: Live, progress: Progress) -> None:
        """Draw every change, and once a second the clocks."""
        second = -1
        while not self._closing.is_set():
            now = int(progress.elapsed_s)
            if (self._is_changed or now != second) and not self._draw(live, progress):
                return
            second = now
            self._closing.wait(1 / REFRESH_HZ)

    def _draw(self, live: Live, progress: Progress, *, is_last: bool = False) -> bool:
        """Draw one frame; False if the terminal is gone."""
        size, encoding = self._console.size, self._console.encoding
        with self._lock:
            notices, self._notices, self._is_changed = self._notices, [], False
            width, height = max(1, size.width - RIGHT_MARGIN), 0 if is_last else size.height
            lines = frame(progress, width, height, is_stopping=self._is_stopping)

        def draw() -> None:
            for line in lines:
                line.plain = encodable(line.plain, encoding)
            self._console.control(rewrap(size.width, *self._drawn))
            self._drawn = (size.width, [line.cell_len for line in lines])
            for notice, style in notices:
                self._console.print(Text(encodable(notice, encoding), style), highlight=False)
            live.update(Group(*lines), refresh=True)
            if is_last:
                live.stop()

        return _is_done(draw)


def _is_done(write: Callable[[], object]) -> bool:
    """Call `write`; False if the terminal is gone (rich exits on a broken pipe)."""
    try:
        write()
    except (OSError, ValueError, SystemExit):
        return False
    return True


def rewrap(width: int, drawn_width: int, line_widths: Sequence[int]) -> Control:
    """Erases the extra rows of a frame after its terminal became narrower.

    A terminal that reflows breaks long lines, so the frame is higher than rich remembers and its
    top would stay behind. On other terminals this erases as many rows above the table.
    """
    n_extra = 0
    if width < drawn_width:
        n_extra = sum(max(cells - 1, 0) // max(width, 1) for cells in line_widths)
    erase_up = ((ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1))
    return Control(*erase_up * n_extra)


def start_text(study: StudyInfo, worker: WorkerReady) -> str:
    """The first line of a search in words: budget, objective, slots, device."""
    towards = "highest" if study.direction == "maximize" else "lowest"
    slots = "one" if worker.n_slots == 1 else f"up to {worker.n_slots}"
    return (
        f"{study.name}: {study.n_trials} trials of at most {study.epochs} epochs, "
        f"{towards} {study.metric} wins, {slots} at a time on {worker.device}"
    )


def frame(progress: Progress, width: int, height: int, *, is_stopping: bool = False) -> list[Text]:
    """The picture as fewer than `height` lines of at most `width` cells.

    Running trials are sorted by their best metric so far; the rest of them is counted. Height 0
    is the last frame: bar and counts only.
    """
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
    done, total = progress.n_done, progress.study.n_trials
    count = f"{done}/{total} trials"
    tail = f"  {_clock(progress.elapsed_s)}"
    eta = None if is_stopping else progress.eta_s()
    if eta is not None and done < total:
        tail += f"  ETA {_clock(round(eta))}"
    cells = min(40, width - len(count) - len(tail) - 2)
    line = Text()
    if cells >= 4:
        filled, half = divmod(int(2 * cells * progress.share), 2)
        line.append("━" * filled + "╸" * half, "green")
        line.append("─" * (cells - filled - half), "dim").append("  ")
    return line.append(count, "bold").append(tail, "dim")


def _best_line(progress: Progress) -> Text:
    """The best complete trial, or the running one that is ahead of it."""
    label, value, name = "best", progress.best_value, progress.best_name or "from before"
    leader = progress.leader()
    if leader is not None and progress.is_better(leader.best or 0.0, value):
        label, value, name = "leading", leader.best, leader.name
    line = Text().append(f"{label} {progress.study.metric} ", "dim")
    if value is None:
        begun = [*progress.running.values(), *progress.interrupted.values()]
        has_news = progress.n_done > 0 or any(trial.epoch for trial in begun)
        if has_news:
            return line.append("-", "dim")
        return Text(LOADING if progress.worker is None else "in the first epoch", "dim")
    return line.append(format_metric(value), "bold green").append(f"  {name}")


def _counts_line(progress: Progress, width: int) -> Text:
    """Trials by state; zeros are dim, and left out on a narrow terminal."""
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
    return f" {SPINNER[age_s % len(SPINNER)]} this epoch {_clock(age_s)}"


def _clock(seconds: float) -> str:
    """A duration without tenths of a second."""
    return format_duration(int(seconds)).replace(".0s", "s")


def _trial_lines(progress: Progress, width: int, n_rows: int) -> list[Text]:
    """A blank line, a header, a row for each of the best `n_rows` trials, "+12 more"."""

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
    """The metric at the lowest and at the highest block of all curves."""
    if scale is None:
        return ""
    low, high = (f"{edge:.3g}" for edge in scale)
    return f"{low}–{high}"


def _column_widths(
    progress: Progress, shown: Sequence[TrialProgress], width: int
) -> tuple[int, int, int, int, int]:
    """Cells for name, epoch, metric, best and curve.

    On a narrow terminal the curve is cut to 8 cells before the name is cut to 20; then the curve
    goes, then the best, and the name is cut to 8.
    """

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
    name = Text(cells[0], style)
    name.truncate(widths[0], overflow="ellipsis", pad=True)
    line = name.append(f"  {cells[1]:>{widths[1]}}", "dim")
    for cell, width in zip(cells[2:4], widths[2:4], strict=True):
        if width:
            line.append(f"  {cell[:width]:>{width}}", style)
    if widths[4] and cells[4]:
        line.append(f"  {cells[4]}", "cyan" if style != "dim" else style)
    return line
