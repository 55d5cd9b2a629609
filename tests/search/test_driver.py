"""The driver with a scripted trainer, the real Optuna storage, and every decision it takes."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from searches import SIX_SPACE, ScriptedStudy, Search, rising, score

from sweep.files.trial_files import TrialFiles
from sweep.search.driver import MAX_RETRIES
from sweep.space import canonical_key
from sweep.testing import DATASET, ScriptedTrainer
from sweep.trial import (
    EpochReport,
    Failure,
    FailureKind,
    Notice,
    Stop,
    TrialFinished,
    TrialResult,
    TrialSpec,
    TrialStarted,
    WorkerReady,
)

Metrics = dict[str, float]


@pytest.fixture
def study(tmp_path: Path) -> ScriptedStudy:
    """A study with an endless space."""
    return ScriptedStudy(tmp_path)


def constant(value: float, n_epochs: int = 3) -> list[Metrics]:
    """Epochs that all score the same."""
    return [{"val_acc": value} for _ in range(n_epochs)]


def optuna_trials(search: Search) -> list[optuna.trial.FrozenTrial]:
    """What plain Optuna reads from the storage."""
    return optuna.load_study(study_name="scripted", storage=search.config.storage).trials


def interrupt_at(study: ScriptedStudy, number: int, epoch: int, **settings: object) -> Search:
    """A search that is asked to stop in the midst of a trial."""
    search = study.prepare(study.config(**settings))

    def script(spec: TrialSpec) -> Iterator[Metrics]:
        for i, metrics in enumerate(rising(spec), start=1):
            if (spec.number, i) == (number, epoch):
                search.driver.request_stop("interrupted")
            yield metrics

    ScriptedTrainer(script).train(search.driver.exchange)
    search.leave()
    return search


@pytest.mark.parametrize("n_slots", [1, 4, 16])
def test_a_search_finishes_exactly_the_trials_asked_for(
    study: ScriptedStudy, n_slots: int
) -> None:
    """N is met exactly, however many trials go at once."""
    search = study.run(trials=10, n_slots=n_slots)
    assert [t.number for t in optuna_trials(search)] == list(range(10))
    assert search.states() == ["COMPLETE"] * 10
    assert search.driver.reason == "done"


def test_continuing_adds_only_what_is_missing(study: ScriptedStudy) -> None:
    """The total is the study's: 4, then 7 in all, then nothing."""
    assert len(study.run(trials=4).trials) == 4
    second = study.run(trials=7)
    assert sorted(second.listener.finished()) == [4, 5, 6]
    third = study.run(trials=7)
    assert not third.listener.finished()
    assert len(third.trials) == 7


def test_the_objective_is_the_best_epoch_not_the_last(study: ScriptedStudy) -> None:
    """Value, best epoch and metrics are those of the best epoch, in Optuna and in the records."""

    def script(spec: TrialSpec) -> list[Metrics]:
        return [{"val_acc": a, "val_loss": b} for a, b in ((0.2, 3.0), (0.9, 2.0), (0.4, 1.0))]

    search = study.run(script, trials=1)
    record = search.listener.finished()[0]
    assert (record.value, record.best_epoch, record.best_metrics["val_loss"]) == (0.9, 2, 2.0)
    (trial,) = optuna_trials(search)
    assert trial.value == 0.9
    assert trial.intermediate_values == {1: 0.2, 2: 0.9, 3: 0.4}


def test_a_minimized_metric_keeps_its_smallest(study: ScriptedStudy) -> None:
    """A loss is minimized without being told so."""

    def script(spec: TrialSpec) -> list[Metrics]:
        return [{"val_loss": 2.0}, {"val_loss": 0.5}, {"val_loss": 1.0}]

    search = study.run(script, trials=1, metric="val_loss")
    assert search.ledger.direction == "minimize"
    assert search.trials[0].value == 0.5


def test_duplicates_are_not_trained_twice(tmp_path: Path) -> None:
    """A space of six is searched with six different trials, and then it is exhausted."""
    study = ScriptedStudy(tmp_path, SIX_SPACE)
    seen: Counter[str] = Counter()

    def script(spec: TrialSpec) -> list[Metrics]:
        seen[canonical_key(spec.hyperparameters)] += 1
        return rising(spec)

    search = study.run(script, trials=50)
    assert (len(seen), set(seen.values())) == (6, {1})
    assert search.driver.reason == "exhausted"
    again = study.run(script, trials=50)
    assert (len(again.trials), again.driver.reason) == (6, "exhausted")


def test_a_slow_score_ends_when_patience_is_out(study: ScriptedStudy) -> None:
    """Two epochs without a better metric end a trial, which is complete."""
    search = study.run(lambda spec: constant(0.5, 9), trials=1, epochs=9, patience=2)
    (trial,) = search.trials
    assert (str(trial.state), trial.result["n_epochs"]) == ("COMPLETE", 3)


def test_pruned_trials_are_pruned_in_optuna_too(study: ScriptedStudy) -> None:
    """What the median pruner ends early is PRUNED, keeps its curve, and counts as finished."""

    def script(spec: TrialSpec) -> list[Metrics]:
        return constant(0.9 if spec.number < 5 else 0.1, 5)

    search = study.run(script, trials=8, epochs=5, pruner="median")
    assert search.states() == ["COMPLETE"] * 5 + ["PRUNED"] * 3
    pruned = optuna_trials(search)[-1]
    assert pruned.intermediate_values == {1: 0.1, 2: 0.1}
    assert pruned.value == 0.1


def test_a_pruner_has_no_say_over_the_last_epoch(study: ScriptedStudy) -> None:
    """A trial that trained all its epochs is complete, however poor."""

    def script(spec: TrialSpec) -> list[Metrics]:
        last = 0.9 if spec.number < 5 else 0.0
        return [*constant(0.5, 2), {"val_acc": last}]

    assert study.run(script, trials=7, pruner="median").states() == ["COMPLETE"] * 7


def test_a_trial_past_its_time_has_failed(study: ScriptedStudy) -> None:
    """--trial-timeout fails the trial with class timeout at the next epoch; others go on."""

    def script(spec: TrialSpec) -> Iterator[Metrics]:
        for metrics in rising(spec):
            time.sleep(0.6 if spec.number == 1 else 0)
            yield metrics

    search = study.run(script, trials=3, trial_timeout_s=0.5)
    assert search.states() == ["COMPLETE", "FAIL", "COMPLETE"]
    assert search.trials[1].result["failure"]["kind"] == "timeout"


def test_a_search_past_its_time_stops_and_can_go_on(study: ScriptedStudy) -> None:
    """--timeout interrupts the running trial; the same command finishes the rest."""

    def script(spec: TrialSpec) -> Iterator[Metrics]:
        for metrics in rising(spec):
            time.sleep(0.06)
            yield metrics

    search = study.run(script, trials=50, timeout_s=0.25)
    assert search.driver.reason == "timeout"
    assert 1 <= len(search.trials) < 50
    assert search.states()[-1] == "WAITING"
    n = len(search.trials) + 2
    assert study.run(trials=n).states() == ["COMPLETE"] * n


def test_an_interrupted_trial_waits_and_goes_on_under_its_number(study: ScriptedStudy) -> None:
    """Ctrl-C leaves the trial WAITING; the next run trains that configuration as that trial."""
    first = interrupt_at(study, number=2, epoch=2, trials=5)
    assert first.states() == ["COMPLETE", "COMPLETE", "WAITING"]
    waiting = first.trials[2]
    second = study.run(trials=5)
    assert second.states() == ["COMPLETE"] * 5
    assert second.trials[2].hyperparameters == waiting.hyperparameters
    assert sorted(second.listener.finished()) == [2, 3, 4]


@pytest.mark.parametrize("kind", ["killed", "oom"])
def test_a_worker_that_dies_as_the_search_is_interrupted_fails_no_trial(
    study: ScriptedStudy, kind: FailureKind
) -> None:
    """Its trial waits for the next run, as one does that could be interrupted."""
    first = study.prepare(study.config(trials=1))
    (spec,) = first.driver.exchange([], 1).start
    first.driver.exchange([EpochReport(spec.number, 1, {"val_acc": 0.1}, 1)], 0)
    first.driver.request_stop("interrupted")
    died = TrialResult(spec.number, "failed", 1, failure=Failure(kind, "it is gone"))
    assert first.driver.exchange([died], 1).is_last
    first.leave()
    assert study.prepare(study.config(trials=1)).states() == ["WAITING"]
    again = study.run(trials=1)
    assert again.states() == ["COMPLETE"]
    assert again.trials[0].hyperparameters == spec.hyperparameters


def test_a_stop_is_no_verdict_on_a_trial_that_was_tried_before(study: ScriptedStudy) -> None:
    """A worker that is ended because the search stops does not use up its trial's last try."""
    search = study.prepare(study.config(trials=1))
    died = TrialResult(0, "failed", 0, failure=Failure("killed", "it is gone"))
    reports: list[TrialResult] = []
    for _ in range(1 + MAX_RETRIES):
        assert len(search.driver.exchange(reports, 1).start) == 1
        reports = [died]
    search.driver.request_stop("timeout")
    assert search.driver.exchange(reports, 1).is_stopping
    search.leave()
    assert study.prepare(study.config(trials=1)).states() == ["WAITING"]


def test_a_trial_that_lost_epochs_is_stopped_where_it_was(study: ScriptedStudy) -> None:
    """Patience ended it after epoch 4, and its worker died: it trains up to that epoch again."""
    search = study.prepare(study.config(trials=1, epochs=9, patience=2))
    driver = search.driver
    (spec,) = driver.exchange([], 1).start

    def told(epoch: int, value: float) -> tuple[Stop, ...]:
        return driver.exchange([EpochReport(spec.number, epoch, {"val_acc": value}, 1)], 0).stop

    stop = (Stop(spec.number, "converged"),)
    curve = [(1, 0.1), (2, 0.5), (3, 0.4), (4, 0.3)]
    assert [told(*point) for point in curve] == [(), (), (), stop]
    died = TrialResult(spec.number, "failed", 0, failure=Failure("killed", "it is gone"))
    assert len(driver.exchange([died], 1).start) == 1
    assert [told(*point) for point in curve] == [(), (), (), stop]
    driver.exchange([TrialResult(spec.number, "stopped", 4, best_epoch=2)], 1)
    search.leave()
    (trial,) = study.prepare(study.config(trials=1)).trials
    assert (str(trial.state), trial.value, trial.result["best_epoch"]) == ("COMPLETE", 0.5, 2)


def test_a_finite_space_is_searched_to_its_end_beside_the_baseline(tmp_path: Path) -> None:
    """The reference network is none of its six configurations, and does not count as one."""
    search = ScriptedStudy(tmp_path, SIX_SPACE).run(trials=20, baseline=True)
    assert search.states() == ["COMPLETE"] * 7


def test_what_is_not_saved_is_counted(study: ScriptedStudy) -> None:
    """A trial that was stopped and has no resume state; one that has it is not named."""
    first = interrupt_at(study, number=0, epoch=2, trials=2)
    lost = "trial 0 starts again: it was stopped before its first checkpoint"
    assert first.driver.unsaved == [lost]
    other = study.prepare(study.config(trials=2))
    (spec,) = other.driver.exchange([], 1).start
    other.driver.exchange([EpochReport(spec.number, 1, {"val_acc": 0.1}, 1)], 0)
    other.driver.request_stop("interrupted")
    TrialFiles(other.config.study_dir, spec.number).put("last.ckpt", b"state")
    other.driver.exchange([TrialResult(spec.number, "stopped", 1)], 1)
    other.leave()
    assert other.driver.unsaved == []


def test_a_killed_driver_leaves_a_running_trial_that_goes_on(study: ScriptedStudy) -> None:
    """What Optuna calls RUNNING at the start belongs to a dead driver and is trained again."""

    class PowerCut(BaseException):
        pass

    def script(spec: TrialSpec) -> Iterator[Metrics]:
        yield {"val_acc": 0.1}
        if spec.number == 1:
            raise PowerCut
        yield {"val_acc": 0.2}

    with pytest.raises(PowerCut):
        study.run(script, trials=4)
    left = study.prepare(study.config(trials=4))
    assert left.states() == ["COMPLETE", "RUNNING"]
    assert study.run(trials=4).states() == ["COMPLETE"] * 4


def test_what_workers_say_as_they_start_is_said_once(study: ScriptedStudy) -> None:
    """A worker in the place of another does not repeat it; other lines are repeated."""
    search = study.prepare(study.config(trials=1))
    ready = WorkerReady(DATASET, "cpu", 1, 0)
    for _ in range(2):
        search.driver.exchange([ready, Notice(0, "one at a time")], 0)
        search.driver.exchange([Notice(0, "no room")], 0)
    search.driver.settle()
    said = [r.message for r in search.listener.of(Notice)]
    assert said == ["one at a time", "no room", "no room"]


def test_the_last_trial_is_tried_again_too(study: ScriptedStudy) -> None:
    """A death after the driver said that nothing more will come is retried all the same."""
    n_tries: Counter[int] = Counter()

    def script(spec: TrialSpec) -> Iterator[Metrics | Failure]:
        n_tries[spec.number] += 1
        if spec.number == 2 and n_tries[2] == 1:
            yield Failure("killed", "gone")
        yield {"val_acc": 0.6}

    assert study.run(script, trials=3).states() == ["COMPLETE"] * 3


def test_a_trial_without_the_metric_fails_by_itself(study: ScriptedStudy) -> None:
    """Epochs without it have no point; a trial without one fails, and says what it did log."""

    def script(spec: TrialSpec) -> Iterator[Metrics]:
        yield {"val_loss": 1.0, "val_accuracy": 0.5}
        yield {"val_loss": 0.9} | ({"val_acc": 0.7} if spec.number != 1 else {})
        yield {"val_loss": 0.8}

    search = study.run(script, trials=3, epochs=3)
    assert search.states() == ["COMPLETE", "FAIL", "COMPLETE"]
    assert search.trials[0].curve == {2: 0.7}
    assert search.trials[0].result["best_epoch"] == 2
    assert search.trials[1].result["failure"]["message"] == (
        "the trial never logged 'val_acc'; it logged val_accuracy, val_loss (did you mean "
        "val_accuracy?)"
    )


def test_patience_counts_epochs_with_the_metric(study: ScriptedStudy) -> None:
    """Two values without progress, four epochs after the best one."""

    def script(spec: TrialSpec) -> Iterator[Metrics]:
        for epoch in range(1, 11):
            yield {"val_loss": 1.0} | ({"val_acc": 1 / epoch} if epoch % 2 else {})

    search = study.run(script, trials=1, epochs=10, patience=2)
    assert search.trials[0].result["n_epochs"] == 5


def test_the_reference_network_is_trial_0(study: ScriptedStudy) -> None:
    """Every search starts from the reference network, unless --no-baseline leaves it out."""
    search = study.run(trials=2, baseline=True)
    assert search.trials[0].hyperparameters == {
        "hidden": (128, 64), "optimizer": "SGD", "lr": 0.01,
    }  # fmt: skip


def test_no_baseline_leaves_the_reference_out(study: ScriptedStudy) -> None:
    """Without it trial 0 is the sampler's."""
    search = study.run(trials=3, baseline=False)
    assert (128, 64) not in [t.hyperparameters["hidden"] for t in search.trials]


def test_the_space_says_what_to_try_first(tmp_path: Path) -> None:
    """Entries of `first:` come after the reference network, in order, and once."""
    space = (
        "# A line.\nparameters:\n  optimizer: {choices: [SGD, Adam]}\n"
        "  lr: {float: [1e-4, 0.1], log: true}\n  hidden: {widths: [16, 64], layers: [1, 2]}\n"
        "first:\n  - {optimizer: Adam, lr: 2e-3, hidden: [32]}\n"
        "  - {optimizer: SGD, lr: 0.05, hidden: [16, 16]}\n"
    )
    study = ScriptedStudy(tmp_path, space)
    assert len(study.run(trials=2, baseline=True).trials) == 2
    trials = study.run(trials=5, baseline=True).trials
    first = {"optimizer": "Adam", "lr": 2e-3, "hidden": (32,)}
    second = {"optimizer": "SGD", "lr": 0.05, "hidden": (16, 16)}
    assert [t.hyperparameters for t in trials[1:3]] == [first, second]
    assert [t.hyperparameters for t in trials].count(first) == 1


def test_records_come_in_the_order_of_events(study: ScriptedStudy) -> None:
    """The worker is ready, then each trial starts, reports its epochs and finishes."""
    search = study.run(trials=3, n_slots=2)
    kinds = search.listener.records
    assert isinstance(kinds[0], WorkerReady)
    for number in range(3):
        told = [type(r) for r in kinds if getattr(r, "number", None) == number]
        assert told == [TrialStarted, EpochReport, EpochReport, EpochReport, TrialFinished]


def test_weights_have_a_seed_of_their_own(study: ScriptedStudy) -> None:
    """A trial's seed depends on the study's seed and its number, and is recorded."""
    seeds: dict[int, int] = {}

    def script(spec: TrialSpec) -> list[Metrics]:
        seeds[spec.number] = spec.seed
        return rising(spec)

    search = study.run(script, trials=3)
    assert len(set(seeds.values())) == 3
    recorded = {r.number: int(r.tags["sweep.seed"]) for r in search.listener.of(TrialStarted)}
    assert recorded == seeds


def test_a_late_report_of_an_ended_trial_is_ignored(study: ScriptedStudy) -> None:
    """A second result for a trial changes nothing."""
    search = study.run(trials=1)
    before = search.trials
    from sweep.trial import TrialResult

    search.driver.exchange((TrialResult(0, "failed", 0, failure=Failure("killed", "late")),), 0)
    assert search.trials == before


def test_a_late_epoch_of_an_ended_trial_is_ignored(study: ScriptedStudy) -> None:
    """An epoch that was on its way when a trial was given up for hung does no harm."""
    search = study.run(trials=1)
    search.driver.exchange((EpochReport(0, 4, {"val_acc": 1.0}, 0),), 0)
    assert search.states() == ["COMPLETE"]


def test_scores_are_what_the_script_says(study: ScriptedStudy) -> None:
    """Each trial's value is the score of its own configuration, also when trials go in step."""
    for trial in study.run(trials=9, n_slots=4).trials:
        spec = TrialSpec(trial.number, trial.hyperparameters, 0)
        assert trial.value is not None
        assert math.isclose(trial.value, score(spec))


def test_a_verdict_that_nobody_heard_is_recorded_without_training(study: ScriptedStudy) -> None:
    """A driver that dies at hand-over leaves a trained trial: the next one only records it."""
    first = study.prepare(study.config(trials=2))
    (spec,) = first.driver.exchange([], 1).start
    files = TrialFiles(first.config.study_dir, spec.number)
    reports = [
        EpochReport(spec.number, epoch, {"train_loss": 1.0, "val_acc": acc}, 1_000 + epoch)
        for epoch, acc in enumerate([0.2, 0.7, 0.6], start=1)
    ]
    result = TrialResult(spec.number, "finished", 3, best_epoch=2)
    files.write_verdict(reports, result, spec)
    first.leave()  # the driver is gone; nobody was told

    second = study.prepare(study.config(trials=2))
    second.driver.recall(second.config.study_dir)
    trainer = ScriptedTrainer(rising, 1)
    trainer.train(second.driver.exchange)
    recorded, trained = second.trials
    assert (recorded.number, recorded.value, recorded.result["best_epoch"]) == (0, 0.7, 2)
    assert recorded.curve == {1: 0.2, 2: 0.7, 3: 0.6}
    assert recorded.hyperparameters == spec.hyperparameters
    assert trained.number == 1
    told = [r.number for r in second.listener.records if isinstance(r, TrialStarted)]
    assert told == [0, 1]


def test_a_pruned_verdict_is_pruned(study: ScriptedStudy) -> None:
    """The reason for which a trial was stopped is part of its verdict."""
    first = study.prepare(study.config(trials=1))
    (spec,) = first.driver.exchange([], 1).start
    result = TrialResult(spec.number, "stopped", 1, best_epoch=1, notes={"sweep.stop": "pruned"})
    report = EpochReport(spec.number, 1, {"train_loss": 1.0, "val_acc": 0.3}, 1_000)
    TrialFiles(first.config.study_dir, spec.number).write_verdict([report], result, spec)
    first.leave()

    second = study.prepare(study.config(trials=1))
    second.driver.recall(second.config.study_dir)
    assert second.states() == ["PRUNED"]


def test_what_a_killed_worker_was_writing_goes(study: ScriptedStudy) -> None:
    """The next driver removes broken-off writes of other processes, and nothing that is whole."""
    first = study.run(trials=1)
    folder = TrialFiles(first.config.study_dir, 0).folder
    folder.mkdir(parents=True)
    for name in (".verdict.json.77", ".last.ckpt.77", "best.ckpt"):
        (folder / name).write_bytes(b"half")
    whole = {"tracking.json", f".spool.cursor.{os.getpid()}", ".hidden.txt"}
    for name in (".tracking.json.77", *whole):
        (first.config.study_dir / name).write_text("{}")
    study.prepare(first.config).driver.recall(first.config.study_dir)
    assert [file.name for file in folder.iterdir()] == ["best.ckpt"]
    assert {f.name for f in first.config.study_dir.iterdir() if f.is_file()} >= whole
    assert not (first.config.study_dir / ".tracking.json.77").exists()
