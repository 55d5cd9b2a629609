"""What the driver decides is written behind its answer: openings first, all else in its order."""

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
from sweep.trial import EpochReport, Record, TrialFinished, TrialResult, TrialStarted, TrialState


def noting(done: list[str], *names: str) -> list[Step]:
    """Steps that leave their names in `done`."""
    return [lambda name=name: done.append(name) for name in names]  # type: ignore[misc]


def test_openings_overtake_what_waits() -> None:
    """All else is done in its order."""
    done: list[str] = []
    recorder, may_go_on = Recorder(), threading.Event()
    recorder.record([may_go_on.wait, *noting(done, "a")], noting(done, "d"), noting(done, "e"))
    recorder.record(noting(done, "b"), noting(done, "f"))
    recorder.record([], noting(done, "g"), noting(done, "h"))
    recorder.record(noting(done, "c"), [])
    may_go_on.set()
    recorder.settle()
    assert "".join(done) == "abcdefgh"


def test_only_the_openings_asked_for_are_waited_for() -> None:
    """Whoever asks goes on as soon as a trial is open, however long others take."""
    done: list[str] = []
    recorder, may_open, may_close = Recorder(), threading.Event(), threading.Event()
    recorder.record([functools.partial(time.sleep, 0.1), *noting(done, "first")], [])
    n_first = recorder.n_openings
    recorder.record([may_open.wait, *noting(done, "second")], [may_close.wait])
    recorder.catch_up(n_first)
    assert done == ["first"]
    may_open.set()
    recorder.catch_up(recorder.n_openings)
    assert done == ["first", "second"]
    may_close.set()
    recorder.settle()


def test_nothing_is_done_after_what_failed() -> None:
    """A listener must not hear of a trial that could not be opened."""
    done: list[str] = []
    recorder = Recorder()

    def fail() -> None:
        raise StoreError("the disk is full")

    recorder.record([fail, *noting(done, "b")], noting(done, "c"))
    recorder.record(noting(done, "d"), [])
    for wait in (lambda: recorder.catch_up(0), recorder.settle):
        with pytest.raises(StoreError, match="full"):
            wait()
    recorder.abandon()
    assert not done


def test_closings_that_wait_are_bounded() -> None:
    """Whoever ends trials faster than they are written has to wait; records are no burden."""
    recorder, may_go_on = Recorder(), threading.Event()
    recorder.record([], [may_go_on.wait] * MOST_BEHIND, [int] * MOST_BEHIND)
    recorder.catch_up(0)
    recorder.record([], [int])
    threading.Timer(0.2, may_go_on.set).start()
    recorder.catch_up(0)
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


def test_a_report_waits_until_its_trial_exists(tmp_path: Path) -> None:
    """Another trial's does not, nor the answer, but for the first: its trials begin together."""
    study = ScriptedStudy(tmp_path)
    search = study.prepare(study.config(trials=3))
    exchange, held = search.driver.exchange, Held(study)
    threading.Timer(0.3, held.let_go).start()
    began = time.monotonic()
    assert exchange([], 1).start
    assert time.monotonic() - began > 0.2
    held = Held(study)
    assert exchange([], 1).start
    assert not exchange([EpochReport(0, 1, {"val_acc": 0.5}, 0)], 0).stop
    assert len(search.ledger.trials()) == 1
    threading.Timer(0.3, held.let_go).start()
    began = time.monotonic()
    exchange([EpochReport(1, 1, {"val_acc": 0.5}, 0)], 0)
    assert time.monotonic() - began > 0.2
    assert search.states() == ["RUNNING"] * 2
    search.leave()


def test_a_trial_opens_while_others_wait_to_be_closed(tmp_path: Path) -> None:
    """Hundreds may end together: their closings hold up no worker, and all are written."""
    study, n = ScriptedStudy(tmp_path), 64
    search = study.prepare(study.config(trials=2 * n))
    exchange = search.driver.exchange
    assert len(exchange([], n).start) == n
    held = Held(study)
    for number in range(n):
        ended = EpochReport(number, 1, {"val_acc": 0.5}, 0), TrialResult(number, "finished", 1)
        assert exchange(ended, 1).start
    assert [t.state for t in search.ledger.trials()] == ["RUNNING"] * n
    held.let_go()
    exchange([EpochReport(2 * n - 1, 1, {"val_acc": 0.5}, 0)], 0)
    states = [t.state for t in search.ledger.trials()]
    assert len(states) == 2 * n
    assert states.count(TrialState.COMPLETE) < n
    assert search.states() == ["COMPLETE"] * n + ["RUNNING"] * n
    search.leave()


def test_trials_that_were_not_closed_yet_are_closed_after_a_kill(tmp_path: Path) -> None:
    """Their verdicts lie in their folders: each is recorded once, and none trains again."""
    study, n = ScriptedStudy(tmp_path), 20
    search = study.prepare(study.config(trials=n + 1))
    specs = search.driver.exchange([], n).start
    held = Held(study)
    for spec in specs:
        report = EpochReport(spec.number, 1, {"val_acc": spec.number / n}, 0)
        result = TrialResult(spec.number, "finished", 1, best_epoch=1)
        TrialFiles(search.config.study_dir, spec.number).write_verdict([report], result, spec)
        search.driver.exchange([report, result], 0)
    again = ScriptedStudy(tmp_path / "copy")
    shutil.copytree(tmp_path, again.folder, ignore=shutil.ignore_patterns("copy"))
    second = again.prepare(again.config(trials=n + 1))
    assert second.states() == ["RUNNING"] * n
    second.driver.recall(second.config.study_dir)
    assert [(t.number, t.state, t.value) for t in second.trials] == [
        (number, "COMPLETE", number / n) for number in range(n)
    ]
    assert [spec.number for spec in second.driver.exchange([], 2).start] == [n]
    second.leave()
    held.let_go()
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
