"""What real terminals and pipes get: displays by their kind, and a terminal left sane."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios
import textwrap
import threading

import pytest
from reporting_screen import Screen
from waiting import PATIENCE_S

from sweep.reporting.display import make_display, width_and_color
from sweep.reporting.lines import Lines


def run_in_terminal(code, *, width=100, environ=None):
    """Run `code` with a real pseudo-terminal as stdin, stdout and stderr."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, width, 0, 0))
    before = termios.tcgetattr(theirs)
    kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    path = os.pathsep.join(p for p in sys.path if p)
    child = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**kept, "PYTHONPATH": path, "TERM": "xterm-256color", **(environ or {})},
    )
    chunks = []

    def collect():
        try:
            while chunk := os.read(ours, 65536):
                chunks.append(chunk)
        except OSError:  # the last writer has closed it
            pass

    reader = threading.Thread(target=collect)
    reader.start()
    assert child.wait(PATIENCE_S) == 0
    after = termios.tcgetattr(theirs)
    os.close(theirs)
    reader.join(PATIENCE_S)
    os.close(ours)
    assert after == before
    return b"".join(chunks).decode()


SEARCH = """
    import sys, time
    from reporting_records import a_study, curve, finished
    from sweep.reporting.display import make_display
    display = make_display(sys.stdout)
    display.open(a_study(n_trials=4))
    display.write([r for n in range(4) for r in curve(n, 5)])
    time.sleep(0.4)
    {middle}
    display.write([finished(n) for n in range(4)])
    display.close()
    print("Best val_acc 0.98")
"""


def test_a_real_terminal_is_left_sane():
    """On a pseudo-terminal: cursor back, modes unchanged, later output below the table."""
    output = run_in_terminal(SEARCH.format(middle="print('said by a library')"))
    screen = Screen(100)
    screen.feed(output)
    assert "t003 Adam" in output
    assert "\x1b[32m" in output
    lines = screen.lines()
    assert lines[0] == "said by a library"
    assert "4/4 trials" in lines[1]
    assert lines[3:] == ["Best val_acc 0.98"]
    assert screen.is_cursor_shown


def test_a_first_line_and_a_stop_on_a_real_terminal():
    """The first line is plain words above the table, and a stop is acknowledged within it."""
    search = textwrap.dedent(SEARCH).format(middle="display.acknowledge(); time.sleep(0.6)")
    first = (
        "from sweep.reporting.display import announce\nimport sys\nannounce(sys.stdout, 'x: on')"
    )
    output = run_in_terminal(f"{first}\n{search}")
    screen = Screen(100)
    screen.feed(output)
    assert screen.lines()[0] == "x: on"
    assert "4/4 trials" in screen.lines()[1]
    assert "stopping and saving; Ctrl-C again stops now" in output


def test_a_search_that_ends_without_close_brings_the_cursor_back():
    """A driver that leaves through sys.exit still gets its terminal back."""
    screen = Screen(100)
    screen.feed(run_in_terminal(SEARCH.format(middle="sys.exit(0)")))
    assert screen.is_cursor_shown


def test_no_color_is_respected():
    """NO_COLOR leaves the live table without colours."""
    output = run_in_terminal(SEARCH.format(middle=""), environ={"NO_COLOR": "1"})
    assert "t003 Adam" in output
    assert not any(f"\x1b[{n}m" in output for n in range(30, 38))


def test_a_dumb_terminal_gets_lines():
    """TERM=dumb gets one line per trial and not one control sequence."""
    output = run_in_terminal(SEARCH.format(middle=""), environ={"TERM": "dumb"})
    assert "\x1b" not in output
    assert output.startswith("trial=0 state=COMPLETE")


@pytest.mark.parametrize(("term", "is_colored"), [("dumb", False), ("xterm-256color", True)])
def test_tables_know_the_width_of_any_terminal(term, is_colored):
    """A terminal of 61 cells has 61, also where it has no control sequences; colours only else."""
    code = """
        import sys
        from sweep.reporting.display import width_and_color
        print(width_and_color(sys.stdout))
    """
    said = run_in_terminal(code, width=61, environ={"TERM": term}).strip()
    assert said == f"(61, {is_colored})"


def test_a_pipe_gets_lines():
    """A stream that is no terminal gets lines, even where FORCE_COLOR is set, and no width."""
    assert isinstance(make_display(io.StringIO()).screen, Lines)
    assert width_and_color(io.StringIO()) == (None, False)
