"""What the driver makes of orders: each is followed once, late, stale and lost ones too."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from searches import ScriptedStudy, Search, rising

from sweep.errors import StoreError
from sweep.ledger.orders import LIVE, ORDER, LiveSearch, LiveTrial, OrderBook, UserOrder
from sweep.search.steering import Steering, extended
from sweep.testing import DATASET, ScriptedTrainer
from sweep.trial import (
    EpochReport,
    Notice,
    Pulse,
    StudyExtended,
    TrialResult,
    TrialSpec,
    TrialState,
    WorkerReady,
    now_ms,
)


@pytest.fixture
def study(tmp_path: Path) -> ScriptedStudy:
    """A study with an endless space."""
    return ScriptedStudy(tmp_path)


def looked(search: Search, book: OrderBook | None = None, began_ms: int = 0) -> Steering:
    """A Steering that has read the orders there are, which it follows at its next turn."""
    steering = Steering(search.driver, search.ledger, began_ms, book)
    steering.turn()
    search.driver.exchange([WorkerReady(DATASET, "scripted", 1, now_ms())], 0)
    search.driver.settle()
    return steering


def train(search: Search, steering: Steering) -> None:
    """Train until the end, in turns with `steering`."""

    def exchange(reports: Any, n_free: int) -> Any:
        steering.turn()
        return search.driver.exchange(reports, n_free)

    ScriptedTrainer(rising).train(exchange)
    search.driver.settle()


def said(search: Search) -> list[str]:
    return [record.message for record in search.listener.of(Notice)]


def interrupted(study: ScriptedStudy) -> None:
    """Leave trial 0 of two trials after its first epoch."""
    search = study.prepare(study.config(trials=2))

    def script(spec: TrialSpec) -> Any:
        search.driver.request_stop("interrupted")
        return rising(spec)

    ScriptedTrainer(script).train(search.driver.exchange)
    search.leave()


def test_a_stop_is_for_the_search_it_was_given_to(study: ScriptedStudy) -> None:
    """One that came as the last search ended stops no other; a new one stops, and is said."""
    search = study.prepare(study.config(trials=2))
    search.ledger.orders.give("stop")
    assert extended(search.config, search.ledger) == search.config  # as a search begins
    train(search, looked(search))
    assert (search.states(), search.driver.reason) == (["COMPLETE"] * 2, "done")
    assert search.ledger.orders.kept() == []
    search.leave()
    search = study.prepare(study.config(trials=4))
    search.ledger.orders.give("stop")
    train(search, looked(search))
    assert search.driver.reason == "interrupted"
    assert [line.partition(" process")[0] for line in said(search)] == ["asked to stop by"]
    assert search.ledger.orders.kept() == []
    search.leave()


def test_a_prune_waits_for_an_interrupted_trial(study: ScriptedStudy) -> None:
    """The next search ends it at its first report. The order is kept until the ledger has that."""
    interrupted(study)
    search = study.prepare(study.config(trials=2))
    search.ledger.orders.give("prune", 0)
    steering = looked(search)
    steering.turn()
    search.driver.exchange((), 1)  # trial 0 runs
    search.driver.settle()
    (order,) = search.ledger.orders.kept()
    assert search.states() == ["RUNNING"]
    search.driver.exchange([TrialResult(0, "stopped", 0)], 0)
    search.driver.settle()
    assert search.states() == ["PRUNED"]
    assert [line.partition(" pruned")[0] for line in said(search)] == [
        "trial 0 ends at its next report:"
    ]
    search.leave()  # as a kill, before it was emptied
    search = study.prepare(study.config(trials=2))
    assert search.ledger.orders.kept() == [order]
    train(search, looked(search))
    assert (search.states(), said(search)) == (["PRUNED", "COMPLETE"], [])
    assert search.ledger.orders.kept() == []
    search.leave()


def test_a_prune_is_known_before_any_trial_trains(study: ScriptedStudy) -> None:
    """However soon the trial reports: nothing is left to whether a look comes in time."""
    interrupted(study)
    search = study.prepare(study.config(trials=2))
    search.ledger.orders.give("prune", 0)
    Steering(search.driver, search.ledger, 0).turn()
    orders = search.driver.exchange([WorkerReady(DATASET, "scripted", 1, now_ms())], 1)
    assert [spec.number for spec in orders.start] == [0]
    orders = search.driver.exchange([Pulse(0, 1)], 0)
    assert [(stop.number, stop.reason) for stop in orders.stop] == [(0, "pruned")]
    search.leave()


def test_a_trial_pruned_within_its_first_epoch_did_not_fail(study: ScriptedStudy) -> None:
    """It has no score, and is PRUNED all the same, in Optuna too."""
    search = study.prepare(study.config(trials=2))
    driver = search.driver
    driver.exchange([WorkerReady(DATASET, "scripted", 1, now_ms())], 1)
    assert driver.prune(0)
    (stop,) = driver.exchange([Pulse(0, 0)], 0).stop
    assert stop.reason == "pruned"
    driver.exchange([TrialResult(0, "stopped", 0)], 0)
    trial = search.trials[0]
    assert (trial.state, trial.value) == (TrialState.PRUNED, None)
    search.leave()
    assert study.run(trials=2).driver.reason == "done"


def test_a_search_is_extended_while_its_last_trial_runs(study: ScriptedStudy) -> None:
    """The trainer was told that none is to come, and gets more; listeners hear of the total."""
    search = study.prepare(study.config(trials=1))
    steering = looked(search)

    def script(spec: TrialSpec) -> Any:
        if spec.number == 0:
            search.driver.extend(3)
        return rising(spec)

    ScriptedTrainer(script).train(search.driver.exchange)
    steering.turn()
    assert search.states() == ["COMPLETE"] * 3
    assert [record.n_trials for record in search.listener.of(StudyExtended)] == [3]
    search.leave()


def test_an_extension_that_came_too_late_is_for_the_next_search(study: ScriptedStudy) -> None:
    """The last search ended before it read the order."""
    search = study.run(trials=1)
    search = study.prepare(search.config)
    search.ledger.describe({"trials": 1}, "")
    search.ledger.orders.give("extend", 3)
    search.ledger.orders.give("extend", 2)
    assert extended(search.config, search.ledger).trials == 3
    assert search.ledger.config["trials"] == 3
    assert search.ledger.orders.kept() == []
    search.leave()


class AwayBook(OrderBook):
    """A storage that does not answer."""

    def __init__(self) -> None:
        pass

    def kept(self) -> list[UserOrder]:
        raise StoreError("connection refused")


def test_a_storage_that_is_away_at_a_look_ends_nothing(study: ScriptedStudy) -> None:
    """Nobody waits for an order; it is read later."""
    search = study.prepare(study.config(trials=2))
    search.ledger.orders.give("stop")
    train(search, looked(search, AwayBook()))
    assert search.states() == ["COMPLETE"] * 2
    assert [order.verb for order in search.ledger.orders.kept()] == ["stop"]
    search.leave()


def test_the_driver_says_how_far_its_trials_are(study: ScriptedStudy) -> None:
    """Six digits of the latest points; what cannot be read is as if nothing was said."""
    search = study.prepare(study.config(trials=1, epochs=50))
    driver, book = search.driver, search.ledger.orders
    driver.exchange([WorkerReady(DATASET, "scripted", 1, now_ms())], 1)
    assert looked(search, began_ms=5)
    told = book.told()
    assert told is not None
    assert (told.began_ms, told.trials) == (5, (LiveTrial(0, 0, 0, math.nan, ()),))
    for epoch in range(1, 41):
        driver.exchange(
            [EpochReport(0, epoch, {"val_acc": epoch / 41}, 0, is_replay=epoch < 3)], 0
        )
    book.tell(LiveSearch(5, 5, 6, driver.live()))
    told = book.told()
    assert told is not None
    (trial,) = told.trials
    assert (trial.epochs_done, trial.resumed_at, trial.best) == (40, 2, 0.97561)
    assert (len(trial.values), trial.values[-1]) == (32, 0.97561)
    storage = optuna.storages.RDBStorage(search.config.storage)
    storage.set_study_system_attr(1, LIVE, "{")
    storage.set_study_system_attr(1, f"{ORDER}x", "[1]")
    assert (book.told(), book.kept()) == (None, [])
    search.leave()


def test_a_prune_goes_with_its_trial_to_the_next_search(study: ScriptedStudy) -> None:
    """Its worker was silent after a stop: the trial waits, and so does the order."""
    search = study.prepare(study.config(trials=2))
    search.driver.exchange([WorkerReady(DATASET, "scripted", 1, now_ms())], 1)
    search.ledger.orders.give("prune", 0)
    search.driver.request_stop("interrupted")
    search.driver.exchange([TrialResult(0, "stopped", 0)], 0)
    search.driver.settle()
    assert search.states() == ["WAITING"]
    steering = looked(search)
    steering.turn()
    search.driver.exchange((), 0)
    search.driver.settle()
    assert [order.verb for order in search.ledger.orders.kept()] == ["prune"]
    search.leave()
    search = study.prepare(study.config(trials=2))
    train(search, looked(search))
    assert search.states() == ["PRUNED", "COMPLETE"]
    search.leave()


def test_what_is_asked_too_late_is_said(study: ScriptedStudy) -> None:
    """The search ended before its next look: the user hears who goes on."""
    search = study.run(trials=1)
    steering = Steering(search.driver, search.ledger, 0)
    search.ledger.orders.give("extend", 3)
    steering.last_look()
    search.driver.exchange((), 0)
    search.driver.settle()
    assert said(search)[-1].endswith("3 trials as the search ended: the next `sweep run` does")
    search.leave()
