"""The live table on a terminal."""

from __future__ import annotations

import io
import sys
import threading
import time

import pytest
from reporting_records import a_study, curve, finished, ready, report, started
from reporting_screen import Screen
from rich.console import Console
from waiting import wait_until

from sweep.reporting.display import Display
from sweep.reporting.formats import ENCODING_ERRORS
from sweep.reporting.live import LiveTable, frame
from sweep.reporting.progress import Progress
from sweep.trial import Notice, StudyFinished, TrialState


class Clock:
    """Seconds that a test moves."""

    now_s = 100.0

    def __call__(self):
        return self.now_s


def picture(records, width=80, height=24, clock=None, **study):
    progress = Progress(a_study(**study), clock or Clock())
    for record in records:
        progress.apply(record)
    return shown(progress, width, height)


def shown(progress, width=80, height=24, **settings):
    console = Console(file=io.StringIO(), width=width, height=height, _environ={})
    lines = frame(console, progress, width, height, **settings)
    return ["".join(part.text for part in line).rstrip() for line in lines]


def many_running(n):
    return [record for number in range(n) for record in curve(number, number % 10)]


def test_the_frame_says_what_is_running_and_what_is_best():
    """The frame holds the bar, the best trial, the counts and a row with a curve per trial."""
    records = [*curve(12, 10), finished(12, 0.9833), *curve(13, 4)]
    records += [
        finished(14, None, state=TrialState.FAIL),
        finished(15, 0.5, state=TrialState.PRUNED),
    ]
    lines = picture(records)
    assert "3/50 trials" in lines[0]
    assert lines[1] == "best val_acc 0.9833  t012 Adam lr=1.2e-3 256-64"
    assert lines[2] == "1 complete · 1 pruned · 1 failed · 1 running"
    assert lines[4].split() == ["running", "epoch", "val_acc", "best", "0.909–0.933"]
    assert lines[5].split() == [
        *("▸", "t013", "Adam", "lr=1.2e-3", "256-64", "4/10", "0.9333", "0.9333", "▁▃▆█"),
    ]


def test_a_continued_study_shows_its_best():
    """Before a trial is better, the best line names the trial of an earlier session."""
    lines = picture([], n_done=12, best_value=0.97, best_number=4)
    assert lines[1] == "best val_acc 0.9700  trial 4"


@pytest.mark.parametrize("width", [12, 24, 39, 40, 60, 80, 120, 200])
@pytest.mark.parametrize("height", [3, 8, 24, 60])
def test_the_frame_fits_any_terminal(width, height):
    """No line is wider than the terminal, there are fewer lines than rows, the bar comes first."""
    lines = picture(many_running(70), width, height, n_done=12, best_value=0.97)
    assert max(len(line) for line in lines) <= width
    assert len(lines) < height
    assert ("12/50 trials"[: width - 1] in lines[0]) or width < 14


def test_rows_are_sorted_by_the_best_so_far():
    """Best first, equals by number, trials without a value last; the first one is marked."""
    records = [*curve(1, 3), *curve(2, 5), report(2, 6, 0.1), started(3), started(9)]
    records += [report(9, 1, 0.9242), report(1, 3, 0.9242), report(0, 1, float("nan"))]
    rows = [line.split() for line in picture(records)[5:]]
    assert [row[row.index("Adam") - 1 if "Adam" in row else 0] for row in rows] == [
        *("t002", "t001", "t009", "t000", "t003"),
    ]
    assert [row[0] == "▸" for row in rows] == [True, False, False, False, False]
    assert rows[0][6:8] == ["0.1000", "0.9402"]


def test_rows_are_sorted_downwards_where_the_lowest_wins():
    """With a metric to minimise the lowest value comes first."""
    lines = picture([*curve(1, 3), *curve(2, 5), report(3, 1, 0.2)], direction="minimize")
    assert [line[2:6] for line in lines[5:]] == ["t003", "t001", "t002"]


def test_rows_that_do_not_fit_are_counted():
    """The best trials are shown, and the last line counts the others."""
    lines = picture(many_running(30), height=24)
    numbers = [int(line[3:6]) for line in lines if line.startswith(("  t0", "▸ t0"))]
    assert numbers[:4] == [29, 19, 9, 28]
    assert len(numbers) == 16
    assert lines[-1] == "+14 more"


def test_columns_line_up():
    """Epoch and metrics end at the same cell in every row."""
    rows = [line for line in picture(many_running(9)) if line[2:4] == "t0"]
    assert len(rows) == 9
    assert len({row.index("/10") for row in rows}) == 1
    assert len({len(row) for row in rows}) > 1


def test_all_curves_have_one_scale():
    """A trial that is worse throughout has lower blocks than a better one, also where it rises."""
    records = [report(0, e, 0.5 + e / 100) for e in range(1, 9)]
    records += [report(1, e, 0.9 + e / 100) for e in range(1, 9)]
    better, worse = (line.split()[-1] for line in picture(records)[5:7])
    assert set(worse) <= set("▁▂")
    assert set(better) <= set("▇█")


def test_the_bar_moves_by_epochs():
    """50 trials at epoch 5 of 10 are half the bar, though none has ended."""
    lines = picture([report(number, 5, 0.9) for number in range(50)])
    assert lines[0].count("━") == 20, "of 40"
    assert "0/50 trials" in lines[0]


def test_after_an_interruption_the_bar_is_not_full():
    """Interrupted trials keep their epochs in the bar and are not counted as finished."""
    progress = Progress(a_study(n_trials=12), Clock())
    for number in range(12):
        for record in [*curve(number, 5), finished(number, 0.9, state=TrialState.WAITING)]:
            progress.apply(record)
    bar, counts = shown(progress, 80, 0)
    assert "0/12 trials" in bar
    assert bar.count("━") == 20, "of 40"
    assert counts == "0 complete · 0 pruned · 0 failed · 12 interrupted"


def test_a_stop_that_was_asked_for_is_shown():
    """The frame says that the search stops, and what a second Ctrl-C does; no time is promised."""
    clock = Clock()
    progress = Progress(a_study(), clock)
    for epoch in (1, 2, 3):
        clock.now_s += 1
        progress.apply(report(0, epoch, 0.9))
    lines = shown(progress, 80, 24, is_stopping=True)
    assert lines[3] == "stopping and saving; Ctrl-C again stops now"
    assert "ETA" in shown(progress, 80, 24)[0]
    assert "ETA" not in lines[0]


def test_a_narrow_terminal_keeps_names_and_what_a_second_ctrl_c_does():
    """At 60 columns the curve gives way to the names, and the line of a stop is not cut."""
    lines = picture(many_running(4), 57, 24, epochs=200)
    row = next(line for line in lines if "t000" in line)
    assert row.startswith("  t000 Adam lr=1.2e…")
    progress = Progress(a_study(), Clock())
    progress.apply(report(0, 1, 0.9))
    told = shown(progress, 57, 20, is_stopping=True)
    assert "stopping and saving; Ctrl-C again stops now" in told


def test_something_moves_within_a_long_epoch():
    """Frames of two seconds of one epoch differ, also after hours, where clocks count minutes."""
    clock = Clock()
    progress = Progress(a_study(), clock)
    for record in [ready(), *curve(0, 1)]:
        progress.apply(record)
    clock.now_s += 7200
    before = shown(progress, 80, 24)
    clock.now_s += 1
    after = shown(progress, 80, 24)
    assert "this epoch 2h00m" in before[2]
    assert before != after


def test_before_a_trial_is_done_the_leader_is_shown():
    """The line of the best names the running leader until a complete trial is better."""
    records = [*curve(1, 3), *curve(2, 3), report(2, 4, float("nan"))]
    assert picture(records)[1].startswith("leading val_acc 0.9242  t002")
    assert picture([*records, finished(5, 0.93)])[1].startswith("best val_acc 0.9300  t005")
    assert picture([*records, finished(5, 0.91)])[1].startswith("leading val_acc 0.9242  t002")


def test_before_the_first_epoch_the_frame_says_what_it_waits_for():
    """While a worker loads, and in the first epoch, the line of the best says so."""
    assert picture([started(0)])[1] == "starting: a worker loads PyTorch and the data"
    assert picture([started(0), ready()])[1] == "in the first epoch"
    assert picture([finished(0, None, state=TrialState.FAIL)])[1] == "best val_acc -"
    stopped = finished(0, None, state=TrialState.WAITING)
    told = [started(0), ready(), report(0, 1, 0.9), stopped]
    assert picture(told)[1] == "best val_acc -", "after Ctrl-C, in its second epoch"


def test_the_remaining_time_is_known_before_the_first_trial_ends():
    """50 trials at once, 2 of 10 epochs, the second in 3 s: 24 s are left, and they count down."""
    clock = Clock()
    progress = Progress(a_study(), clock)
    clock.now_s += 8  # start-up and a slow first epoch: not counted
    for epoch in (1, 2):
        assert progress.eta_s() is None, "one epoch says nothing of the next"
        clock.now_s += 3
        for number in range(50):
            progress.apply(report(number, epoch, 0.9))
    assert progress.eta_s() == pytest.approx(24.0)
    clock.now_s += 2
    assert progress.eta_s() == pytest.approx(22.0)


def test_a_resumed_trial_counts_only_what_is_trained_now():
    """A trial that goes on from epoch 5 and ends has done half a trial in this session."""
    clock = Clock()
    progress = Progress(a_study(n_trials=12, n_done=10), clock)
    progress.apply(started(3))
    for epoch in range(6, 11):
        clock.now_s += 1
        progress.apply(report(3, epoch, 0.9, epoch_s=1.0))
    progress.apply(finished(3))
    assert progress.n_done == 11
    assert progress.eta_s() == pytest.approx(10.0)


def test_epochs_of_an_earlier_session_are_not_measured():
    """Replays count for the bar, not for the speed, whenever they come."""
    clock = Clock()
    progress = Progress(a_study(n_trials=2), clock)
    for epoch in (1, 2):
        clock.now_s += 2
        progress.apply(report(0, epoch, 0.9))
    assert progress.eta_s() == pytest.approx(18 * 2.0)
    for epoch in range(1, 6):
        progress.apply(report(1, epoch, 0.9, is_replay=True))
    assert progress.share == pytest.approx(0.35)
    assert progress.eta_s() == pytest.approx(13 * 2.0)


def test_a_trial_that_starts_again_is_not_counted_twice():
    """A retried trial keeps its curve up to where it goes on, and counts once when finished."""
    progress = Progress(a_study())
    for record in [*curve(4, 6), started(4), report(4, 3, 0.5)]:
        progress.apply(record)
    assert list(progress.running[4].metrics)[-2:] == [2, 3]
    assert progress.running[4].values[-2:] == [pytest.approx(0.9164), 0.5]
    for record in [finished(4, None, state=TrialState.FAIL), started(4), finished(4), finished(4)]:
        progress.apply(record)
    assert progress.n_done == 1
    assert progress.counts == {TrialState.COMPLETE: 1, TrialState.FAIL: 0}


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_terminal_is_left_with_bar_and_counts(width):
    """After close only notices, bar and counts remain, and the cursor is shown, below them."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, height=24, _environ={})
    display = Display(LiveTable(console))
    display.open(a_study(n_trials=30))
    display.write(many_running(30))
    wait_until(lambda: "more" in out.getvalue())
    display.write([Notice(0, "halved to 16"), *(finished(i) for i in range(30))])
    display.write([StudyFinished(0, {}, 0, 0.98, 0.95, "done")])
    display.close()
    display.close()
    screen = Screen(width)
    screen.feed(out.getvalue())
    lines = screen.lines()
    assert lines[0] == "halved to 16"
    assert "30/30 trials" in lines[1]
    assert lines[2:] == ["30 complete" + (" · 0 pruned · 0 failed" if width > 48 else "")]
    assert screen.is_cursor_shown
    assert (screen.row, screen.column) == (3, 0)


def test_a_narrower_terminal_leaves_nothing_behind():
    """When the terminal reflows a frame to 40 cells, the next frame replaces all of it."""

    class Terminal(io.StringIO):
        def __init__(self):
            super().__init__()
            self.screen = Screen(100)

        def write(self, text):
            if console.width < self.screen.width:
                self.screen.narrow(console.width)
            self.screen.feed(text)
            return super().write(text)

    terminal = Terminal()
    console = Console(file=terminal, force_terminal=True, width=100, height=30, _environ={})
    display = Display(LiveTable(console))
    display.open(a_study())
    display.write(many_running(5))
    wait_until(lambda: "t004" in terminal.getvalue())
    console.width = 40
    display.write(curve(5, 3))
    wait_until(lambda: "t005" in terminal.getvalue())
    display.close()
    lines = terminal.screen.lines()
    assert "0/50 trials" in lines[0]
    assert lines[1:] == ["6 running"]


def test_what_is_searched_stays_above_the_table():
    """When a worker is ready, one line says study, objective, population and device, and stays."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, height=24, _environ={})
    display = Display(LiveTable(console))
    display.open(a_study())
    display.write([ready(), ready(), *curve(0, 2)])
    display.close()
    screen = Screen(120)
    screen.feed(out.getvalue())
    assert screen.lines()[0] == (
        "mnist-mlp: 50 trials of at most 10 epochs, highest val_acc wins, "
        "up to 32 at a time on cpu, 2 threads"
    )
    assert "0/50 trials" in screen.lines()[1]


def test_write_returns_while_the_terminal_is_held():
    """write() returns at once while the terminal takes nothing, and frames stay rare."""

    class HeldTerminal(io.StringIO):
        gate = threading.Event()
        n_writes = 0

        def write(self, text):
            self.n_writes += 1
            self.gate.wait(10)
            return super().write(text)

    held = HeldTerminal()
    held.gate.set()
    display = Display(LiveTable(Console(file=held, force_terminal=True, width=80, height=24)))
    display.open(a_study())
    held.gate.clear()
    begin = time.monotonic()
    for epoch in range(1, 500):
        display.write([report(number, epoch, 0.9) for number in range(10)])
    assert time.monotonic() - begin < 2
    held.gate.set()
    display.close()
    assert held.n_writes < 20


def test_a_terminal_that_fails_ends_the_display_only():
    """A terminal whose writes fail stops being drawn on; write() and close() do not raise."""

    class LostTerminal(io.StringIO):
        is_lost = False

        def write(self, text):
            if self.is_lost:
                raise OSError(5, "Input/output error")
            return super().write(text)

    lost = LostTerminal()
    display = Display(LiveTable(Console(file=lost, force_terminal=True, width=80, height=24)))
    display.open(a_study())
    lost.is_lost = True
    for number in range(5):
        display.write(curve(number, 3))
    display.close()
    assert sys.stdout is not lost


def test_an_ascii_terminal_gets_ascii():
    """On a stream that cannot encode blocks, bar and curves are drawn in ASCII."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", errors=ENCODING_ERRORS)
    console = Console(file=stream, force_terminal=True, width=80, height=24, _environ={})
    display = Display(LiveTable(console))
    display.open(a_study(n_trials=2))
    display.write([finished(0), *curve(1, 8)])
    wait_until(lambda: b"t001" in raw.getvalue())
    display.close()
    assert b"----" in raw.getvalue()


def test_a_latin_1_terminal_keeps_its_letters():
    """What an encoding has is shown, drawings are ASCII, other letters are escaped."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="latin-1", errors=ENCODING_ERRORS)
    console = Console(file=stream, force_terminal=True, width=80, height=24, _environ={})
    display = Display(LiveTable(console))
    display.open(a_study(name="café-実験"))
    display.write([ready(), *curve(1, 8)])
    wait_until(lambda: b"t001" in raw.getvalue())
    display.close()
    assert "café-\\u5b9f".encode("latin-1") in raw.getvalue()
    assert b"> t001" in raw.getvalue()
