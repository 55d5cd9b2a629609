"""Trials that fail, whose worker dies, or that it gives back: scripted trainer, real storage."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from searches import ScriptedStudy, rising

from sweep.trial import (
    EpochReport,
    Failure,
    Notice,
    Orders,
    TrialFinished,
    TrialResult,
    TrialSpec,
    TrialStarted,
)

Metrics = dict[str, float]


@pytest.fixture
def study(tmp_path: Path) -> ScriptedStudy:
    """A study with an endless space."""
    return ScriptedStudy(tmp_path)


def test_an_exception_fails_its_trial_only(study: ScriptedStudy) -> None:
    """A trial that raises is FAIL with its message, and the search goes on."""

    def script(spec: TrialSpec) -> Iterator[Metrics]:
        yield {"val_acc": 0.5}
        if spec.number == 1:
            raise ValueError("width must divide 8")
        yield {"val_acc": 0.6}

    search = study.run(script, trials=3)
    assert search.states() == ["COMPLETE", "FAIL", "COMPLETE"]
    failure = search.trials[1].result["failure"]
    assert (failure["kind"], failure["message"]) == (
        "exception",
        "ValueError: width must divide 8",
    )
    storage = search.config.storage
    assert optuna.load_study(study_name="scripted", storage=storage).trials[1].value is None


def test_identical_failures_stop_the_search(study: ScriptedStudy) -> None:
    """Three equal failures in a row end the search, and say which."""

    def script(spec: TrialSpec) -> list[Metrics]:
        raise ValueError("bad shape")

    search = study.run(script, trials=50, max_failures=3)
    assert (search.driver.reason, search.states()) == ("failed", ["FAIL"] * 3)
    assert "3 identical failures" in search.driver.failure_message
    assert "bad shape" in search.driver.failure_message


def test_different_or_scattered_failures_do_not_stop_the_search(study: ScriptedStudy) -> None:
    """Failures that differ, or with a success between them, are not a pattern."""

    def script(spec: TrialSpec) -> list[Metrics]:
        if spec.number % 2:
            raise ValueError("every second one")
        if spec.number in (4, 6):
            raise ValueError(f"number {spec.number}")
        return rising(spec)

    search = study.run(script, trials=9, max_failures=2)
    assert (search.driver.reason, len(search.trials)) == ("done", 9)


def test_a_search_of_nan_trials_goes_on(study: ScriptedStudy) -> None:
    """NaN is a poor configuration and not a fault of the set-up: it never stops a search."""
    nan = Failure("nan", "train_loss is nan after epoch 1")
    search = study.run(lambda spec: [nan], trials=4, max_failures=2)
    assert search.states() == ["FAIL"] * 4
    assert {t.result["failure"]["kind"] for t in search.trials} == {"nan"}


def test_a_killed_trial_is_tried_again_under_its_number(study: ScriptedStudy) -> None:
    """The machine's fault is retried, and each point of the curve is recorded once."""
    n_tries: Counter[int] = Counter()

    def script(spec: TrialSpec) -> Iterator[Metrics | Failure]:
        n_tries[spec.number] += 1
        yield {"val_acc": 0.5}
        if spec.number == 1 and n_tries[1] <= 2:
            yield Failure("killed", "its worker was ended by SIGKILL")
        yield {"val_acc": 0.6}

    search = study.run(script, trials=3)
    assert (search.states(), n_tries[1]) == (["COMPLETE"] * 3, 3)
    points = [r.epoch for r in search.listener.of(EpochReport) if r.number == 1]
    assert points == [1, 2]
    assert [r.number for r in search.listener.of(TrialStarted)] == [0, 1, 2]
    notices = [r.message for r in search.listener.of(Notice)]
    assert len(notices) == 2
    assert all("SIGKILL" in m for m in notices)


@pytest.mark.parametrize("n_slots", [1, 2])
def test_a_trial_is_not_tried_again_for_ever(study: ScriptedStudy, n_slots: int) -> None:
    """A trial whose worker dies three times has failed with class killed."""
    killed = Failure("killed", "its worker was ended by SIGKILL")
    search = study.run(
        lambda spec: [killed] if spec.number == 1 else rising(spec), trials=3, n_slots=n_slots
    )
    assert search.states() == ["COMPLETE", "FAIL", "COMPLETE"]
    assert search.trials[1].result["failure"]["kind"] == "killed"


def given_back(number: int, n_epochs: int) -> list[TrialResult]:
    """What a worker says of a trial that its executor, not the driver, interrupted."""
    notes = {"sweep.stop": "interrupted"}
    return [TrialResult(number, "stopped", n_epochs, notes=notes)]


def test_a_trial_that_its_worker_gives_back_goes_on(study: ScriptedStudy) -> None:
    """Under its number, in its data order, however often; it is neither a failure nor a retry."""
    search = study.prepare(study.config(trials=1))
    exchange = search.driver.exchange
    (spec,) = exchange([], 1).start
    for epoch in (1, 2, 3, 4):
        report = EpochReport(0, epoch, {"val_acc": 0.1 * epoch}, 0, start_epoch=7)
        orders = exchange([report], -1)
        assert (orders.stop, orders.start) == ((), ())
        assert not exchange(given_back(0, epoch), 0).is_last
        (again,) = exchange([], 1).start
        assert (again.number, again.seed, again.start_epoch) == (0, spec.seed, 7)
    exchange([EpochReport(0, 2, {"val_acc": 0.2}, 0, 7, is_replay=True)], 0)
    exchange([TrialResult(0, "finished", 4)], 1)
    assert [r.number for r in search.listener.of(TrialStarted)] == [0]
    assert [r.epoch for r in search.listener.of(EpochReport)] == [1, 2, 3, 4]
    assert [str(r.state) for r in search.listener.of(TrialFinished)] == ["COMPLETE"]
    assert not search.listener.of(Notice)


def test_a_death_before_the_first_report_keeps_the_data_order(study: ScriptedStudy) -> None:
    """A continued trial whose worker dies at once sees the minibatches that it began with."""
    first = study.prepare(study.config(trials=1))
    first.driver.exchange([], 1)
    first.driver.exchange([EpochReport(0, 1, {"val_acc": 0.1}, 0, start_epoch=7)], 0)
    first.leave()  # the driver is gone
    second = study.prepare(study.config(trials=1))
    (spec,) = second.driver.exchange([], 1).start
    killed = Failure("killed", "its worker was ended by SIGKILL")
    (again,) = second.driver.exchange([TrialResult(0, "failed", 0, failure=killed)], 1).start
    assert (spec.start_epoch, again.start_epoch) == (7, 7)


def test_time_with_every_worker_counts(study: ScriptedStudy) -> None:
    """A trial that went from one worker to another has no more time than others."""
    search = study.prepare(study.config(trials=1, trial_timeout_s=2.0))
    exchange = search.driver.exchange
    exchange([], 1)
    time.sleep(1.2)
    assert exchange([EpochReport(0, 1, {"val_acc": 0.1}, 0)], -1).stop == ()
    exchange(given_back(0, 1), 0)
    assert exchange([], 1).start
    time.sleep(0.9)
    (stop,) = exchange([EpochReport(0, 2, {"val_acc": 0.1}, 0)], 0).stop
    assert stop.reason == "timeout"


def test_nothing_is_started_in_place_of_a_trial_that_leaves(study: ScriptedStudy) -> None:
    """A worker that gives its trials back has fewer than none free, also where one is stopped."""
    search = study.prepare(study.config(trials=5, trial_timeout_s=0.01))
    specs = search.driver.exchange([], 2).start
    time.sleep(0.02)
    reports = [EpochReport(spec.number, 1, {"val_acc": 0.5}, 0) for spec in specs]
    orders = search.driver.exchange(reports, -2)
    assert (len(orders.stop), orders.start) == (2, ())


def test_ctrl_c_while_no_worker_has_the_trial(study: ScriptedStudy) -> None:
    """A trial between two workers waits for the next run, like one that was training."""
    search = study.prepare(study.config(trials=2))
    search.driver.exchange([], 1)
    search.driver.exchange(given_back(0, 1), 0)
    search.driver.request_stop("interrupted")
    assert search.driver.exchange([], 1) == Orders(is_last=True, is_stopping=True)
    assert search.states() == ["WAITING"]
    assert [r.state for r in search.listener.of(TrialFinished)] == ["WAITING"]
