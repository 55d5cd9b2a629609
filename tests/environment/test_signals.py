"""Signals, sent to real processes: who answers them, and who does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import PATIENCE_S, wait_until

from sweep.environment.signals import SAME_SIGNAL_S, interrupting, stopping


def send(number: signal.Signals) -> None:
    """To this very process."""
    os.kill(os.getpid(), number)


def state_of(pid: int) -> str:
    """R, S, T (suspended), Z, ..."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_asks_to_stop(number: signal.Signals) -> None:
    """Whichever it is; the same one again at once, as a group gets it, changes nothing."""
    asked: list[int] = []
    with stopping(lambda: asked.append(1)):
        send(number)
        send(number)
    assert asked == [1, 1]


def test_a_second_one_stops_at_once() -> None:
    """It is a KeyboardInterrupt to whoever called."""
    asked: list[int] = []

    def impatient() -> None:
        with stopping(lambda: asked.append(1)):
            send(signal.SIGTERM)
            time.sleep(SAME_SIGNAL_S + 0.1)
            send(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        impatient()
    assert asked == [1]


def test_a_hang_up_is_no_second_one() -> None:
    """A lost terminal is followed by SIGTERM and more SIGHUP: there is time to save."""
    asked: list[int] = []
    with stopping(lambda: asked.append(1)):
        send(signal.SIGHUP)
        time.sleep(SAME_SIGNAL_S + 0.1)
        send(signal.SIGTERM)
        send(signal.SIGHUP)
    assert len(asked) == 3


@pytest.fixture
def nohup() -> Iterator[None]:
    """SIGHUP is ignored, as `nohup` starts a command."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("nohup")
def test_an_ignored_hang_up_stays_ignored() -> None:
    """While a command starts, and while its search runs."""
    asked: list[int] = []
    with interrupting(), stopping(lambda: asked.append(1)):
        send(signal.SIGHUP)
    assert asked == []
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_command_that_starts_is_interrupted() -> None:
    """SIGTERM before the search begins is a Ctrl-C; afterwards it is what it was before."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), interrupting():
        send(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


WORKER = """
import multiprocessing, os, signal, subprocess, sys, time
from sweep.environment import signals

signals.leave_to_driver()
for number in signals.STOPPING:
    os.kill(os.getpid(), number)
child = subprocess.Popen(["sleep", "600"])
child.terminate()
fork = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
fork.start()
fork.terminate()
fork.join()
print(child.wait(), fork.exitcode)
"""


def test_a_worker_lets_signals_pass_and_its_children_do_not() -> None:
    """What the user's code starts can still be ended, as multiprocessing.Pool does."""
    done = subprocess.run(
        [sys.executable, "-c", WORKER],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert (done.stdout.split(), done.stderr) == (["-15", "-15"], "")


DRIVER = """
import subprocess, time
from sweep.environment import signals

child = subprocess.Popen(["sleep", "600"], process_group=0)
print(child.pid, flush=True)
with signals.suspending(lambda: [child.pid]):
    while child.poll() is None:
        time.sleep(0.02)
"""


def test_ctrl_z_suspends_workers_too() -> None:
    """They stand in a group of their own, which the terminal does not reach; `fg` wakes them."""
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, text=True, process_group=0
    ) as driver:
        assert driver.stdout is not None
        worker = int(driver.stdout.readline())
        try:
            time.sleep(0.3)
            os.killpg(driver.pid, signal.SIGTSTP)
            wait_until(lambda: state_of(driver.pid) == state_of(worker) == "T")
            os.killpg(driver.pid, signal.SIGCONT)
            wait_until(lambda: "T" not in (state_of(driver.pid), state_of(worker)))
        finally:
            os.kill(worker, signal.SIGKILL)
            driver.kill()
