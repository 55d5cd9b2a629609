"""The Optuna storage as sweep keeps it, read back by sweep and by plain Optuna."""

from __future__ import annotations

import json
import math
from pathlib import Path

import optuna
import pytest
from searches import Call, ScriptedStudy

from sweep.errors import NotFoundError, StoreError
from sweep.ledger.study import Ledger, create_study, list_studies, open_study
from sweep.ledger.trials import HYPERPARAMETERS, best_trial, tuples
from sweep.trial import EpochReport, Failure, TrialFinished, TrialState

REPORTS = [
    EpochReport(0, epoch, {"val_acc": 0.1 * epoch, "val_loss": loss}, 1000 + epoch)
    for epoch, loss in ((1, math.inf), (2, math.nan))
]
DISTRIBUTIONS = {"lr": optuna.distributions.FloatDistribution(1e-4, 1.0, log=True)}


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A storage in a folder that does not exist yet."""
    return f"sqlite:///{tmp_path}/deeper/optuna.db"


@pytest.fixture
def ledger(url: str) -> Ledger:
    """A new study that maximizes."""
    return create_study(url, "mine", "maximize")[0]


def running(lr: float = 0.1) -> optuna.trial.FrozenTrial:
    """A trial that begins."""
    return optuna.trial.create_trial(
        state=optuna.trial.TrialState.RUNNING,
        params={"lr": lr},
        distributions=DISTRIBUTIONS,
        user_attrs={HYPERPARAMETERS: {"lr": lr, "hidden": (8, 4)}},
    )


def close(ledger: Ledger, number: int, state: TrialState, value: float | None) -> None:
    """End a trial."""
    record = TrialFinished(number, state, 5, value, 2, {}, 2)
    ledger.close_trial(record, REPORTS, "val_acc", "t0", {"a:b": 1})


def test_a_study_is_made_once(url: str, ledger: Ledger) -> None:
    """Making it again opens it."""
    again, is_new = create_study(url, "mine", "maximize")
    assert (is_new, again.name, again.direction) == (False, "mine", "maximize")


def test_a_trial_goes_through_its_states(url: str, ledger: Ledger) -> None:
    """RUNNING when it is handed out, final when it is closed; values survive a reopening."""
    ledger.open_trial(0, running())
    assert [t.state for t in open_study(url, "mine").trials()] == [TrialState.RUNNING]
    close(ledger, 0, TrialState.COMPLETE, 0.2)
    (trial,) = open_study(url, "mine").trials()
    assert (trial.state, trial.value, trial.params) == (TrialState.COMPLETE, 0.2, {"lr": 0.1})
    assert trial.hyperparameters == {"lr": 0.1, "hidden": (8, 4)}
    assert trial.curve == {1: 0.1, 2: 0.2}
    assert {trial.result[name] for name in ("n_epochs", "best_epoch")} == {2}
    assert (trial.result["name"], trial.result["time_ms"]) == ("t0", 5)
    assert trial.frozen.system_attrs == {"a:b": 1}, "samplers copy what is there"


def test_all_curves_come_back(url: str, ledger: Ledger) -> None:
    """Every metric of every epoch, NaN and infinity too, with its time, however many there are."""
    for number in range(2):
        ledger.open_trial(number, running())
    close(ledger, 0, TrialState.COMPLETE, 0.2)
    many = [
        EpochReport(1, epoch, {f"metric {n}": epoch / 7 for n in range(30)}, epoch)
        for epoch in range(1, 201)
    ]
    ledger.close_trial(TrialFinished(1, TrialState.PRUNED, 0, 0.2, 1, {}, 200), many, "metric 3")
    few, found = (trial.reports for trial in open_study(url, "mine").trials())
    assert found == many
    assert [(r.epoch, r.time_ms, r.metrics["val_acc"]) for r in few] == [
        (1, 1001, 0.1),
        (2, 1002, 0.2),
    ]
    assert few[0].metrics["val_loss"] == math.inf
    assert math.isnan(few[1].metrics["val_loss"])
    frozen = optuna.load_study(study_name="mine", storage=url).trials[1]
    assert max(len(json.dumps(attr)) for attr in frozen.system_attrs.values()) < 65_000


def test_optuna_knows_the_objectives_name(url: str, ledger: Ledger) -> None:
    """Dashboards and plots say val_loss instead of "Objective 0"."""
    ledger.describe({"metric": "val_loss"}, "")
    assert optuna.load_study(study_name="mine", storage=url).metric_names == ["val_loss"]


def test_an_interrupted_trial_is_waiting_until_it_goes_on(url: str, ledger: Ledger) -> None:
    """WAITING can be reopened and then completed, by another process."""
    ledger.open_trial(0, running())
    close(ledger, 0, TrialState.WAITING, None)
    later = open_study(url, "mine")
    assert [t.state for t in later.trials()] == [TrialState.WAITING]
    later.set_state(0, TrialState.RUNNING)
    assert [t.state for t in later.trials()] == [TrialState.RUNNING]
    close(later, 0, TrialState.COMPLETE, 0.3)
    assert [t.value for t in ledger.trials()] == [0.3]


def test_another_writer_is_noticed(url: str, ledger: Ledger) -> None:
    """A number that is taken by someone else is a StoreError that says so."""
    create_study(url, "mine", "maximize")[0].open_trial(0, running())
    with pytest.raises(StoreError, match="another writer"):
        ledger.open_trial(0, running())


def test_a_finished_trial_stays_as_it_is(url: str, ledger: Ledger) -> None:
    """Whoever ends it again is refused and changes nothing: another program may have ended it."""
    ledger.open_trial(0, running())
    close(ledger, 0, TrialState.COMPLETE, 0.2)
    with pytest.raises(StoreError, match="trial 0 was finished by another program"):
        close(ledger, 0, TrialState.FAIL, None)
    (trial,) = open_study(url, "mine").trials()
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.2)


def test_a_parameter_of_another_kind_is_refused(ledger: Ledger) -> None:
    """Optuna keeps one kind of distribution a parameter; a refused trial leaves nothing behind."""
    ledger.open_trial(0, running())
    other = running()
    other.distributions["lr"], other.params["lr"] = optuna.distributions.IntDistribution(0, 3), 1
    with pytest.raises(StoreError, match="trial 1 was changed by another program"):
        ledger.open_trial(1, other)
    ledger.open_trial(1, running())
    assert [t.number for t in ledger.trials()] == [0, 1]


def test_epochs_that_are_not_told_again_stay(url: str, ledger: Ledger) -> None:
    """A trial that ends before its worker told its old curve keeps that curve."""
    ledger.open_trial(0, running())
    close(ledger, 0, TrialState.WAITING, None)
    ledger.set_state(0, TrialState.RUNNING)
    failure = Failure("exception", "error")
    record = TrialFinished(0, TrialState.FAIL, 0, None, None, {}, 0, failure=failure)
    ledger.close_trial(record, [], "val_acc")
    (trial,) = open_study(url, "mine").trials()
    assert trial.curve == {1: 0.1, 2: 0.2}
    assert [report.epoch for report in trial.reports] == [1, 2]
    assert trial.result["failure"]["message"] == "error"


def test_a_storage_in_memory_will_do() -> None:
    """Any storage of Optuna's, not only one that was opened here."""
    storage = optuna.storages.InMemoryStorage()
    storage.create_new_study([optuna.study.StudyDirection.MAXIMIZE], "mine")
    ledger = Ledger(storage, "mine")
    ledger.open_trial(0, running())
    close(ledger, 0, TrialState.COMPLETE, 0.2)
    assert [(t.state, t.value) for t in ledger.trials()] == [(TrialState.COMPLETE, 0.2)]


def test_plain_optuna_reads_it(url: str, ledger: Ledger) -> None:
    """A study is an ordinary Optuna study: best trial, parameters, intermediate values."""
    for number, value in enumerate((0.2, 0.9)):
        ledger.open_trial(number, running(0.1 + number / 10))
        close(ledger, number, TrialState.COMPLETE, value)
    study = optuna.load_study(study_name="mine", storage=url)
    assert (study.best_trial.number, study.best_value, study.best_params) == (1, 0.9, {"lr": 0.2})
    assert study.best_trial.intermediate_values == {1: 0.1, 2: 0.2}


def test_a_foreign_optuna_study_can_be_read(url: str) -> None:
    """A study that plain Optuna made is listed and has trials."""
    ledger, _ = create_study(url, "other", "minimize")
    ledger.close()
    study = optuna.create_study(study_name="theirs", storage=url, direction="minimize")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    theirs = open_study(url, "theirs")
    assert [t.hyperparameters["x"] == t.value for t in theirs.trials()] == [True, True]
    assert [s.name for s in list_studies(url)] == ["other", "theirs"]
    assert theirs.config == {}


def test_an_attempt_that_came_to_nothing_is_no_study(url: str, call: Call) -> None:
    """Ours without a trial is not listed, asked for or suggested; one with carried trials is."""
    for name in ("attempt", "forked", "mine"):
        ledger, _ = create_study(url, name, "maximize")
        ledger.describe({"epochs": 3}, "")
        if name == "mine":
            ledger.open_trial(0, running())
        if name == "forked":
            ledger.carry([{"number": 0, "value": 0.5, "hyperparameters": {}}])
        ledger.close()
    assert [s.name for s in list_studies(url)] == ["forked", "mine"]
    with pytest.raises(NotFoundError, match="must be one of forked, mine, but"):
        open_study(url, "atempt")
    code, _, errors = call("trials", "--storage", url)
    assert (code, errors) == (0, []), "the only one that has begun"


def test_configuration_and_space_are_kept(url: str, ledger: Ledger) -> None:
    """What the study was made with comes back as it was."""
    ledger.describe({"epochs": 3, "baseline": False}, "parameters:\n  lr: 0.1\n")
    again = open_study(url, "mine")
    assert again.config == {"epochs": 3, "baseline": False}
    assert again.space_text == "parameters:\n  lr: 0.1\n"


def test_dashboards_are_told_what_the_study_is(url: str, ledger: Ledger) -> None:
    """A readable attribute names the command and MLflow's experiment, without credentials."""
    ledger.describe({"tracking_uri": "http://me:secret@host:5000"}, "")
    (about,) = [s.user_attrs["about"] for s in optuna.get_all_study_summaries(url)]
    assert about.startswith("made by sweep: `sweep show mine`; MLflow experiment mine at http://")
    assert "secret" not in about


def test_an_unknown_study_names_the_nearest(url: str, ledger: Ledger) -> None:
    """A misspelt name is answered with the studies there are."""
    with pytest.raises(NotFoundError, match="did you mean mine"):
        open_study(url, "mien")


def test_reading_leaves_no_empty_store_behind(tmp_path: Path) -> None:
    """A storage that does not exist is an error for one study, no studies for a list."""
    url = f"sqlite:///{tmp_path}/optuna.db"
    assert list_studies(url) == []
    with pytest.raises(NotFoundError, match="no studies here yet"):
        open_study(url, "mine")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url",
    [
        "nosuchdb://localhost/optuna",
        "not a url",
        "postgresql://me:secret@localhost:1/optuna",
        "mysql://me:secret@localhost:1/optuna",
    ],
)
def test_a_storage_that_cannot_be_opened_is_one_line(url: str) -> None:
    """The error names the storage without its password and says which flag to check."""
    with pytest.raises(StoreError) as caught:
        create_study(url, "mine", "maximize")
    message = str(caught.value)
    assert "--storage" in message
    assert "\n" not in message
    assert "secret" not in message


def test_a_file_that_is_no_database_is_a_store_error(tmp_path: Path) -> None:
    """A text file where the storage should be is refused, and left as it is."""
    path = tmp_path / "optuna.db"
    path.write_text("no database, but long enough to be mistaken for one\n" * 100)
    with pytest.raises(StoreError, match=r"optuna\.db"):
        create_study(f"sqlite:///{path}", "mine", "maximize")
    assert path.read_text().startswith("no database")


def test_a_file_in_place_of_a_folder_is_a_store_error(tmp_path: Path) -> None:
    """A folder that cannot be made is named."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot make the folder"):
        create_study(f"sqlite:///{tmp_path}/file/optuna.db", "mine", "maximize")


def test_the_best_trial_follows_the_direction(tmp_path: Path) -> None:
    """The earliest of equals wins; failed and pruned trials never do."""
    trials = ScriptedStudy(tmp_path).run(lambda spec: [{"val_acc": 0.5}], trials=3).trials
    best = best_trial(trials, "maximize")
    assert best is not None
    assert best.number == 0
    assert best_trial([], "maximize") is None


def test_the_summary_counts_states(url: str, ledger: Ledger) -> None:
    """Counts, best value and number, for `sweep list`."""
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    for number, state in enumerate(states):
        ledger.open_trial(number, running(0.1 + number / 10))
        close(ledger, number, state, None if state is TrialState.FAIL else 0.5)
    summary = ledger.summary()
    assert (summary.best_number, summary.best_value) == (0, 0.5)
    assert [summary.n_by_state[s] for s in states] == [1, 1, 1]


def test_lists_come_back_as_tuples() -> None:
    """JSON has no tuples; configurations do, at any depth."""
    assert tuples([1, [2, (3,)], "ab"]) == (1, (2, (3,)), "ab")
