"""The live table on a terminal: how far the search is, the best so far, what is running.

`frame` lays one picture out; `LiveTable` draws it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console, Group, RenderableType
from rich.control import Control
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import ControlType, Segment, SegmentLines
from rich.table import Table
from rich.text import Text

from sweep.reporting.formats import (
    common_scale,
    condensed,
    format_duration,
    format_metric,
    sparkline,
)
from sweep.reporting.lines import LOADING, STOPPING
from sweep.reporting.progress import Progress, TrialProgress
from sweep.trial import Notice, Record, StudyInfo, TrialState, WorkerReady

LINES_AROUND_ROWS = 8
"""Lines that are not rows of trials: bar, best, counts, stopping, blank, header, "+12 more", one
spare."""
MOST_OF_A_NAME = 40
"""Cells: with whole names, the numbers would be far away."""
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


class LiveTable:
    """A screen with one live table on `console`; bar and counts stay on it at the end."""

    PERIOD_S = 0.25

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="crop")
        self._notices: list[tuple[str, str]] = []
        """(line above the table, its style)"""
        self._is_changed = True
        self._seen: tuple[int, bool] | None = None
        """Second, and whether the search was stopping, when the last frame was drawn."""
        self._drawn: tuple[int, list[int]] = (0, [])
        """Width of the terminal, and of each line, when the last frame was drawn."""

    def take(self, progress: Progress, record: Record, trial: TrialProgress | None) -> None:
        """Add the line of a record that is to stay above the table, if it has one."""
        self._is_changed = True
        if isinstance(record, Notice):
            self._notices.append((record.message, "yellow"))
        elif record is progress.worker:
            self._notices.append((start_text(progress.study, record), ""))

    def picture(self, progress: Progress, is_stopping: bool, is_last: bool) -> Callable[[], bool]:
        """Draws a frame, outside of the lock; returns False if the terminal is gone.

        Every change is drawn, and once a second the clocks.
        """
        seen = int(progress.elapsed_s), is_stopping
        if not self._is_changed and not is_last and seen == self._seen:
            return lambda: True
        notices, self._notices, self._is_changed, self._seen = self._notices, [], False, seen
        size = self._console.size
        width, height = max(1, size.width - RIGHT_MARGIN), 0 if is_last else size.height
        lines = frame(self._console, progress, width, height, is_stopping=is_stopping)

        def draw() -> bool:
            try:
                self._live.start()
                self._console.control(rewrap(size.width, *self._drawn))
                self._drawn = (size.width, [Segment.get_line_length(line) for line in lines])
                for notice, style in notices:
                    self._console.print(Text(notice, style), highlight=False)
                self._live.update(SegmentLines(lines, new_lines=True), refresh=True)
                if is_last:
                    self._live.stop()
            except (OSError, ValueError, SystemExit):  # rich exits on a broken pipe
                return False
            return True

        return draw


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


def frame(
    console: Console, progress: Progress, width: int, height: int, *, is_stopping: bool = False
) -> list[list[Segment]]:
    """The picture as fewer than `height` lines of at most `width` cells.

    Running trials are sorted by their best metric so far; the rest of them is counted. Height 0
    is the last frame: bar and counts only.
    """
    bar, counts = _bar(progress, width, is_stopping=is_stopping), _counts_line(progress, width)
    parts: list[RenderableType] = [bar, counts]
    if height:
        n_rows, trials = max(1, height - LINES_AROUND_ROWS), progress.ranked()
        parts = [bar, _best_line(progress), counts]
        if is_stopping:
            parts.append(Text(STOPPING, "bold yellow"))
        if trials:
            parts += [Text(), *_trials(progress, trials[:n_rows], width)]
        if len(trials) > n_rows:
            parts.append(Text(f"+{len(trials) - n_rows} more", "dim"))
    options = console.options.update(width=width, no_wrap=True, overflow="ellipsis")
    lines = console.render_lines(Group(*parts), options, pad=False)
    return lines[: max(1, height - 1)] if height else lines


def _bar(progress: Progress, width: int, *, is_stopping: bool) -> RenderableType:
    done, total = progress.n_done, progress.study.n_trials
    tail = _clock(progress.elapsed_s)
    eta = None if is_stopping else progress.eta_s()
    if eta is not None and done < total:
        tail += f"  ETA {_clock(round(eta))}"
    count = Text(f"{done}/{total} trials", "bold")
    cells = min(40, width - len(count) - len(tail) - 4)
    if cells < 4:
        return count.append(f"  {tail}", "dim")
    table = Table.grid(padding=(0, 2, 0, 0))
    bar = ProgressBar(1.0, progress.share, cells, complete_style="green", style="dim")
    table.add_row(bar, count, Text(tail, "dim"))
    return table


def _best_line(progress: Progress) -> Text:
    """The best complete trial, or the running one that is ahead of it."""
    label, value, name = "best", progress.best_value, progress.best_name or "from before"
    leader = progress.leader()
    if leader is not None and progress.is_better(leader.best or 0.0, value):
        label, value, name = "leading", leader.best, leader.name
    line = Text().append(f"{label} {progress.study.metric} ", "dim")
    if value is not None:
        return line.append(format_metric(value), "bold green").append(f"  {name}")
    begun = [*progress.running.values(), *progress.interrupted.values()]
    if progress.n_done > 0 or any(trial.epoch for trial in begun):
        return line.append("-", "dim")
    return Text(LOADING if progress.worker is None else "in the first epoch", "dim")


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
    return Text(" · ", "dim").join(Text(word, style) for word, style in parts)


def _age(progress: Progress) -> str:
    """Signs of life within a long epoch."""
    age_s = int(progress.epoch_age_s)
    if age_s < SLOW_EPOCH_S:
        return ""
    return f" {SPINNER[age_s % len(SPINNER)]} this epoch {_clock(age_s)}"


def _clock(seconds: float) -> str:
    """A duration without tenths of a second."""
    return format_duration(int(seconds)).replace(".0s", "s")


def _trials(progress: Progress, shown: Sequence[TrialProgress], width: int) -> list[Text]:
    """A header and a row for each of `shown`; a narrow terminal cuts curves, then names.

    rich's Table takes three times as long, and frames are drawn beside the training.
    """
    study = progress.study
    n_cells = min(study.epochs, 32, max(8, width // 2 - 20)) if width >= 36 else 0
    curves = [condensed(trial.values, n_cells) for trial in shown]
    scale = common_scale(curves, is_up=study.direction == "maximize")
    edges = f"{scale[0]:.3g}–{scale[1]:.3g}" if scale and n_cells else ""
    labels = ["epoch", study.metric[:12], *(["best"] if width >= 48 else [])]
    done = [len(f"{trial.epochs_done:.4g}") for trial in shown]
    n_epoch = max([len(str(study.epochs)), *done]) + len(str(study.epochs)) + 1
    widths = [max(5, n_epoch), max(7, len(labels[1])), 7][: len(labels)]
    others = [*widths, n_cells] if n_cells else widths
    n_name = max(8, min(MOST_OF_A_NAME, width - sum(others) - 2 * len(others)))

    def row(name: str, cells: Sequence[str], curve: str, style: str) -> Text:
        line = Text(name, style)
        line.truncate(n_name, overflow="ellipsis", pad=True)
        for cell, n in zip(cells, widths, strict=False):
            line.append(f"  {cell:>{n}}", style)
        return line.append(f"  {curve}" if curve else "", style if style == "dim" else "cyan")

    lines = [row("  running", labels, edges, "dim")]
    for trial, curve in zip(shown, curves, strict=True):
        is_leader = trial is shown[0] and trial.best is not None
        value = format_metric(trial.values[-1] if trial.values else None)
        cells = (f"{trial.epochs_done:.4g}/{study.epochs}", value, format_metric(trial.best))
        name, style = ("▸ ", "bold") if is_leader else ("  ", "")
        lines.append(row(name + trial.name, cells, sparkline(curve, n_cells, scale), style))
    return lines
