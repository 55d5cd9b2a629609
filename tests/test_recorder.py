"""What the driver decides is written behind its answer, and in its order."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from searches import ScriptedStudy

from sweep.errors import StoreError
from sweep.ledger import open_study
from sweep.recorder import Recorder, Step
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


def test_a_trial_is_open_when_it_is_told_and_told_when_it_is_closed(tmp_path: Path) -> None:
    study = ScriptedStudy(tmp_path)
    config = study.config(trials=2)
    listener = Watching(config.storage)
    search = study.prepare(config, listener)
    exchange = search.driver.exchange
    exchange([], 1)
    exchange([EpochReport(0, 1, {"val_acc": 0.5}, 0), TrialResult(0, "finished", 1)], 1)
    exchange([EpochReport(1, 1, {"val_acc": 0.5}, 0), TrialResult(1, "finished", 1)], 0)
    assert search.states() == ["COMPLETE"] * 2
    assert listener.seen == [("TrialStarted", "RUNNING"), ("TrialFinished", "RUNNING")] * 2
    search.leave()
