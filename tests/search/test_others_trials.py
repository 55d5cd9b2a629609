"""Trials and studies of other programs in a storage: queued, running, finished, changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from searches import INLINE, Call, ScriptedStudy, Search, query

import sweep
from sweep.errors import ConfigError, NotFoundError, StoreError
from sweep.ledger.study import create_study, list_studies, open_study
from sweep.search.driver import Driver
from sweep.testing import ScriptedTrainer
from sweep.trial import EpochReport, Notice

FITS = {"optimizer": "Adam", "lr": 0.0123, "hidden.n_layers": 1, "hidden.0": 33}


@pytest.fixture
def study(tmp_path: Path) -> ScriptedStudy:
    """Two trials are done."""
    made = ScriptedStudy(tmp_path)
    made.run(trials=2)
    return made


def others(study: ScriptedStudy) -> optuna.Study:
    """The study as another program opens it."""
    return optuna.load_study(study_name="scripted", storage=f"sqlite:///{study.folder}/optuna.db")


def train(search: Search, exchange: Any) -> None:
    """Train until the end, and record it."""
    ScriptedTrainer(lambda spec: [{"val_acc": 0.5}] * 3, 1).train(exchange)
    search.driver.settle()


def said(listener: Any) -> list[str]:
    """Notices that a listener was told."""
    return [record.message for record in listener.records if isinstance(record, Notice)]


def test_a_queued_configuration_is_trained_under_its_number(study: ScriptedStudy) -> None:
    """`enqueue_trial` gives trial 2: it is trained as asked for, and counts."""
    others(study).enqueue_trial(FITS)
    search = study.run(trials=3)
    queued = others(study).trials[2]
    assert (queued.state.name, queued.params) == ("COMPLETE", FITS)
    assert queued.value is not None
    assert len(others(study).trials) == 3
    assert said(search.listener) == []


def test_what_a_queued_trial_leaves_open_is_drawn(study: ScriptedStudy) -> None:
    """A trial queued with one parameter has it, and others of the space; the same each time."""
    others(study).enqueue_trial({"lr": 0.0123})
    study.run(trials=3)
    queued = others(study).trials[2]
    assert queued.params["lr"] == 0.0123
    assert study.space.params_for(queued.user_attrs["sweep:hyperparameters"]) == queued.params


@pytest.mark.parametrize(
    ("params", "why"),
    [
        (FITS | {"lr": 5.0}, "lr must be"),
        (FITS | {"lr": "fast"}, "lr must be"),
        (FITS | {"momentum": 0.9}, "a parameter of this space must be one of"),
        (FITS | {"hidden.1": 16}, "hidden.1 is not active in that configuration"),
        (FITS | {"hidden.n_layers": "two"}, "no configuration of this space has"),
    ],
)
def test_a_queued_trial_outside_the_space_is_left_alone(
    study: ScriptedStudy, params: dict[str, Any], why: str
) -> None:
    """It still waits after the search, which says why in one line and finishes its own trials."""
    others(study).enqueue_trial(params)
    search = study.run(trials=3)
    assert [t.state.name for t in others(study).trials] == [
        "COMPLETE", "COMPLETE", "WAITING", "COMPLETE",
    ]  # fmt: skip
    (line,) = said(search.listener)
    assert line.startswith("trial 2 is left alone: it was queued, but ")
    assert why in line


def test_a_running_trial_of_another_program_does_not_count(study: ScriptedStudy) -> None:
    """It is neither trained nor ended; the search gives its trials the numbers behind it."""
    others(study).ask()
    search = study.run(trials=4)
    states = [(t.number, t.state.name, bool(t.params)) for t in others(study).trials]
    assert states[2:] == [(2, "RUNNING", False), (3, "COMPLETE", True), (4, "COMPLETE", True)]
    assert said(search.listener) == ["trial 2 is left alone: it is RUNNING, and another program's"]


def test_a_queued_trial_that_was_half_taken_is_taken_again(study: ScriptedStudy) -> None:
    """A kill after one parameter leaves a queued trial: the next search trains it whole."""
    others(study).enqueue_trial(FITS)
    config = study.config(trials=3)
    search = study.prepare(config)
    (planned,) = [p for p in search.driver._planned if p.is_queued]
    given = planned.hyperparameters, planned.params
    frozen = search.driver._proposals.adopt(2, *given).frozen
    storage = optuna.storages.RDBStorage(f"sqlite:///{study.folder}/optuna.db")
    trial_id = others(study).trials[2]._trial_id
    lr = frozen.distributions["lr"]
    storage.set_trial_param(trial_id, "lr", lr.to_internal_repr(0.0123), lr)
    search.leave()
    study.run(trials=3)
    assert others(study).trials[2].params == FITS


def test_a_trial_that_another_program_ended_is_one_line(study: ScriptedStudy) -> None:
    """Whoever tells Optuna an end of a trial in training keeps it; the search goes on later."""
    search = study.prepare(study.config(trials=3))
    ended: list[int] = []

    def exchange(reports: Any, n_free: int) -> Any:
        if isinstance(reports[0], EpochReport) and not ended:
            search.driver.settle()
            ended.append(others(study).tell(2, state=optuna.trial.TrialState.FAIL).number)
        return search.driver.exchange(reports, n_free)

    with pytest.raises(StoreError, match="trial 2 was finished by another program while the sear"):
        train(search, exchange)
    search.ledger.close()
    study.run(trials=4)
    assert [t.state.name for t in others(study).trials] == [
        "COMPLETE", "COMPLETE", "FAIL", "COMPLETE",
    ]  # fmt: skip


@pytest.mark.parametrize("when", ["before a trial is handed out", "before it is recorded"])
def test_a_trial_queued_during_a_search_is_trained(study: ScriptedStudy, when: str) -> None:
    """`enqueue_trial` while a search runs: its configuration is trained once, as a trial of the
    study. If its number was just handed out, it moves behind that trial."""
    search = study.prepare(study.config(trials=5))
    asked: list[None] = []

    def ask() -> None:
        if not asked:
            asked.append(others(study).enqueue_trial(FITS))

    if when == "before a trial is handed out":
        others(study).enqueue_trial(FITS)
    else:
        search.ledger.confirm = ask
    train(search, search.driver.exchange)
    search.ledger.close()
    trials = others(study).trials
    assert [t.state.name for t in trials] == ["COMPLETE"] * 5
    assert [t.number for t in trials if t.params == FITS] == [2 if not asked else 3]
    assert [bool(t.system_attrs.get("fixed_params")) for t in trials].count(True) == 1 + len(asked)
    assert said(search.listener) == []


def test_a_running_trial_added_during_a_search_is_told_once(study: ScriptedStudy) -> None:
    """Another program's trial is left alone; the search trains its own behind it."""
    search = study.prepare(study.config(trials=4))
    others(study).ask()
    train(search, search.driver.exchange)
    search.ledger.close()
    states = [t.state.name for t in others(study).trials]
    assert states == ["COMPLETE", "COMPLETE", "RUNNING", "COMPLETE", "COMPLETE"]
    assert said(search.listener) == ["trial 2 is left alone: it is RUNNING, and another program's"]


def test_a_parameter_of_another_kind_is_one_line(study: ScriptedStudy) -> None:
    """Optuna keeps this space's `lr` out of a study that has it as a choice."""
    other = optuna.create_study(
        study_name="other", storage=f"sqlite:///{study.folder}/optuna.db", direction="maximize"
    )
    other.add_trial(
        optuna.trial.create_trial(
            value=1.0, params={"lr": "high"},
            distributions={"lr": optuna.distributions.CategoricalDistribution(["high", "low"])},
        )
    )  # fmt: skip
    with pytest.raises(StoreError, match="trial 0 is another program's and has lr as another kin"):
        Driver.plan(study.prepare(study.config()).driver, _trials(study, "other"), [])


def _trials(study: ScriptedStudy, name: str) -> Any:
    ledger = open_study(f"sqlite:///{study.folder}/optuna.db", name)
    trials = ledger.trials()
    ledger.close()
    return trials


# Studies of other programs


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/optuna.db"


def test_another_programs_study_of_the_same_name_is_refused(url: str) -> None:
    """One with trials, one in the other direction, and one of two objectives, each in one line."""
    optuna.create_study(study_name="trials", storage=url, direction="maximize").ask()
    optuna.create_study(study_name="down", storage=url, direction="minimize")
    optuna.create_study(study_name="two", storage=url, directions=["maximize", "minimize"])
    with pytest.raises(ConfigError, match="none of its 1 trials is sweep's: name another"):
        create_study(url, "trials", "maximize")
    with pytest.raises(ConfigError, match="it is to minimize, but this search is to maximize"):
        create_study(url, "down", "maximize")
    with pytest.raises(NotFoundError, match="it has 2 objectives, but a sweep has one"):
        create_study(url, "two", "maximize")
    assert [study.name for study in list_studies(url)] == ["down", "trials"]


def test_an_empty_study_with_a_queue_is_taken(url: str) -> None:
    """A study that another program made for a search to come, with what it is to try first."""
    optuna.create_study(study_name="mine", storage=url, direction="maximize").enqueue_trial(FITS)
    ledger, is_new = create_study(url, "mine", "maximize")
    assert (is_new, [t.queued for t in ledger.trials()]) == (False, [FITS])
    ledger.close()


def test_a_changed_attribute_is_one_line(six: Path, call: Call) -> None:
    """A study whose configuration a dashboard overwrote names the attribute."""
    storage = Path("mlruns/optuna.db")
    update = "UPDATE study_user_attributes SET value_json = '\"{\"' WHERE key = 'sweep:config'"
    query(storage, update)
    with pytest.raises(StoreError, match="its attribute sweep:config was changed by another pr"):
        sweep.run(study="six", trials=7, **INLINE)
    assert call("doctor", "six")[0] == 4


def test_a_trial_whose_attributes_were_changed_can_be_read(six: Path, call: Call) -> None:
    """Texts in place of its hyperparameters and its result: it has its parameters still."""
    query(
        Path("mlruns/optuna.db"),
        "UPDATE trial_user_attributes SET value_json = '\"x\"' WHERE trial_id = 1",
    )
    code, _, errors = call("trials", "six")
    assert (code, errors) == (0, [])
    assert len(_six()) == 6


def _six() -> Any:
    ledger = open_study("sqlite:///mlruns/optuna.db", "six")
    trials = ledger.trials()
    ledger.close()
    assert trials[0].hyperparameters == trials[0].params
    return trials
