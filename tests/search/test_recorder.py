"""What the driver decides is written behind its answer, and in its order."""

from __future__ import annotations

import dataclasses
import functools
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from searches import ScriptedStudy

from sweep.errors import StoreError
from sweep.files.trial_files import TrialFiles
from sweep.ledger.study import open_study
from sweep.search.recorder import MOST_BEHIND, Recorder, Step
from sweep.testing import RecordingListener
from sweep.trial import EpochReport, Record, TrialFinished, TrialResult, TrialStarted


def noting(done: list[str], *names: str) -> list[Step]:
    """Steps that leave their names in `done`."""
    return [lambda name=name: done.append(name) for name in names]  # type: ignore[misc]


def test_steps_are_done_in_their_order() -> None:
    done: list[str] = []
    recorder = Recorder()
    recorder.record(noting(done, "a"), noting(done, "b", "c"))
    recorder.record(noting(done, "d"), [])
    recorder.record([], noting(done, "e"))
    recorder.settle()
    assert "".join(done) == "abcde"


def test_only_openings_are_waited_for() -> None:
    """Whoever asks goes on as soon as all trials are open, however long others take to close."""
    done: list[str] = []
    recorder, may_go_on = Recorder(), threading.Event()
    takes_time = functools.partial(time.sleep, 0.1)
    recorder.record(
        [takes_time, *noting(done, "opened")], [may_go_on.wait, *noting(done, "closed")]
    )
    recorder.catch_up()
    assert done == ["opened"]
    may_go_on.set()
    recorder.settle()
    assert done == ["opened", "closed"]


def test_nothing_is_done_after_what_failed() -> None:
    """A listener must not hear of a trial that could not be opened."""
    done: list[str] = []
    recorder = Recorder()

    def fail() -> None:
        raise StoreError("the disk is full")

    recorder.record([fail, *noting(done, "b")], noting(done, "c"))
    recorder.record(noting(done, "d"), [])
    for wait in (recorder.catch_up, recorder.settle):
        with pytest.raises(StoreError, match="full"):
            wait()
    recorder.abandon()
    assert not done


def test_what_waits_is_bounded() -> None:
    """Whoever decides faster than is written has to wait."""
    recorder, may_go_on = Recorder(), threading.Event()
    for _ in range(MOST_BEHIND):
        recorder.record([], [may_go_on.wait])
    recorder.catch_up()
    recorder.record([], [may_go_on.wait])
    threading.Timer(0.2, may_go_on.set).start()
    recorder.catch_up()
    assert may_go_on.is_set()
    recorder.settle()


def test_whoever_does_not_want_to_wait_ends_it() -> None:
    """A second Ctrl-C: what is being done is done, and nothing after it."""
    done: list[str] = []
    recorder, may_go_on = Recorder(), threading.Event()
    recorder.record([], [may_go_on.wait, *noting(done, "same batch")])
    recorder.record([], noting(done, "next batch"))
    # Not SIGINT itself, which is ignored where tests run in the background of a shell.
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            recorder.abandon()
    finally:
        signal.signal(signal.SIGALRM, before)
    may_go_on.set()
    time.sleep(0.1)
    assert not done


class Held:
    """The way to a storage that can be closed for a while: SQLite's own lock."""

    def __init__(self, study: ScriptedStudy) -> None:
        self._connection = sqlite3.connect(study.folder / "optuna.db", check_same_thread=False)
        self._connection.execute("BEGIN IMMEDIATE")

    def let_go(self) -> None:
        """Others may write."""
        self._connection.rollback()
        self._connection.close()


def test_a_report_waits_until_what_was_handed_out_exists(tmp_path: Path) -> None:
    """The answer does not, but for the first one: its trials begin together."""
    study = ScriptedStudy(tmp_path)
    search = study.prepare(study.config(trials=3))
    held = Held(study)
    threading.Timer(0.3, held.let_go).start()
    began = time.monotonic()
    assert search.driver.exchange([], 1).start
    assert time.monotonic() - began > 0.2
    held = Held(study)
    assert search.driver.exchange([], 1).start
    threading.Timer(0.3, held.let_go).start()
    began = time.monotonic()
    search.driver.exchange([EpochReport(0, 1, {"val_acc": 0.5}, 0)], 0)
    assert time.monotonic() - began > 0.2
    search.leave()


def test_a_number_that_was_never_opened_is_given_anew(tmp_path: Path) -> None:
    """Its driver was killed before; what the trial left is another configuration's."""
    study = ScriptedStudy(tmp_path)
    search = study.prepare(study.config(trials=2))
    (first,) = search.driver.exchange([], 1).start
    held = Held(study)
    (lost,) = search.driver.exchange([], 1).start
    files = TrialFiles(search.config.study_dir, 1)
    other = dataclasses.replace(lost, hyperparameters={**lost.hyperparameters, "lr": 0.5})
    files.write_verdict([], TrialResult(1, "finished", 3), other)
    files.put("last.ckpt", b"of another configuration")
    again = ScriptedStudy(tmp_path / "copy")
    shutil.copytree(tmp_path, again.folder, ignore=shutil.ignore_patterns("copy"))
    second = again.prepare(again.config(trials=2))
    second.driver.recall(second.config.study_dir)
    old, spec = second.driver.exchange([], 2).start
    assert (old.number, spec.number, spec.is_resumed) == (first.number, 1, False)
    assert second.states() == ["RUNNING", "RUNNING"]
    second.leave()
    held.let_go()
    search.leave()


class Watching(RecordingListener):
    """Notes the state that the storage has for each trial that it is told of."""

    def __init__(self, storage: str) -> None:
        super().__init__()
        self.storage, self.seen = storage, list[tuple[str, str]]()

    def write(self, records: Sequence[Record]) -> None:
        super().write(records)
        ledger = open_study(self.storage, "scripted")
        for record in records:
            if isinstance(record, TrialStarted | TrialFinished):
                state = ledger.trials()[record.number].state
                self.seen.append((type(record).__name__, str(state)))
        ledger.close()


def test_what_is_told_stands_in_the_ledger_already(tmp_path: Path) -> None:
    study = ScriptedStudy(tmp_path)
    config = study.config(trials=2)
    listener = Watching(config.storage)
    search = study.prepare(config, listener)
    exchange = search.driver.exchange
    exchange([], 1)
    exchange([EpochReport(0, 1, {"val_acc": 0.5}, 0), TrialResult(0, "finished", 1)], 1)
    exchange([EpochReport(1, 1, {"val_acc": 0.5}, 0), TrialResult(1, "finished", 1)], 0)
    assert search.states() == ["COMPLETE"] * 2
    assert listener.seen == [("TrialStarted", "RUNNING"), ("TrialFinished", "COMPLETE")] * 2
    search.leave()
