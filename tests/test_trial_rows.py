"""Whole trials in Optuna's tables: row for row what Optuna's own methods write."""

from __future__ import annotations

import contextlib
import math
import sqlite3
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState
from postgres import Postgres

from sweep.trial_rows import KNOWN_SCHEMA, AtOnce, OneByOne, TrialRows, models, rows_of

DISTRIBUTIONS: dict[str, Any] = {
    "optimizer": CategoricalDistribution(["SGD", "Adam", None, 3]),
    "lr": FloatDistribution(1e-5, 1.0, log=True),
    "n_layers": IntDistribution(1, 3),
}
TABLES = (
    "studies", "trials", "trial_params", "trial_values", "trial_intermediate_values",
    "trial_user_attributes", "trial_system_attributes",
)  # fmt: skip
STUDY = 1


@contextlib.contextmanager
def storage_at(url: str) -> Iterator[RDBStorage]:
    """A storage with one study."""
    storage = RDBStorage(url)
    storage.create_new_study([StudyDirection.MAXIMIZE], "mine")
    yield storage
    storage.remove_session()
    storage.engine.dispose()


def trial(lr: float = 0.1, optimizer: Any = "Adam", **attrs: Any) -> optuna.trial.FrozenTrial:
    """One that begins; its start is given so that two storages can be compared."""
    made = optuna.trial.create_trial(
        state=TrialState.RUNNING,
        params={"optimizer": optimizer, "lr": lr, "n_layers": 2},
        distributions=DISTRIBUTIONS,
        user_attrs={"note": {"hidden": [8, 4]}} | attrs,
        system_attrs={"fixed": [1, None]},
    )
    made.datetime_start = datetime(2026, 11, 23, 22, 0, 0, 250_000)
    return made


def tables(storage: RDBStorage) -> dict[str, list[dict[str, Any]]]:
    """All rows but for their own ids and the time at which trials ended."""
    found = {}
    with storage.engine.connect() as connection:
        for name in TABLES:
            rows = [
                {k: v for k, v in row.items() if not is_own(name, k)}
                for row in connection.execute(sqlalchemy.text(f"SELECT * FROM {name}")).mappings()
            ]
            for row in rows:
                if "datetime_complete" in row:
                    row["datetime_complete"] = row["datetime_complete"] is not None
            found[name] = sorted(rows, key=repr)
    return found


def is_own(table: str, column: str) -> bool:
    """Whether it is a row's own id, which nothing refers to."""
    return column.endswith("_id") and table.startswith("trial_") and column != "trial_id"


def write_all(rows: TrialRows) -> list[tuple[int, int]]:
    """Trials of every kind and end."""
    numbers = [rows.open(STUDY, trial(0.1 * k, o)) for k, o in enumerate(("SGD", None, 3), 1)]
    numbers += [rows.open(STUDY, trial(extra="é", more=[1.5])) for _ in range(4)]
    ids = [trial_id for trial_id, _ in numbers]
    curve = {1: 0.1, 2: math.nan, 3: math.inf, 4: -math.inf, 5: 0.25}
    result = {"result": {"n_epochs": 5, "loss": None}}
    rows.close(ids[0], TrialState.COMPLETE, 0.25, curve, result, {"nsga2:rank": 1})
    rows.close(ids[1], TrialState.PRUNED, 0.1, {1: 0.1}, result, {})
    rows.close(ids[2], TrialState.FAIL, None, {}, result, {})
    rows.close(ids[3], TrialState.COMPLETE, math.inf, {10: 1.0}, {"note": "again"}, {"fixed": 2})
    # Interrupted, then to its end.
    rows.close(ids[4], TrialState.WAITING, None, {1: 0.1, 2: 0.2}, result, {"a": 1})
    rows.close(ids[4], TrialState.COMPLETE, 0.3, {1: 0.1, 2: 0.2, 3: 0.3}, {"result": 7}, {"a": 2})
    return numbers


@pytest.fixture(params=["sqlite", "postgresql"])
def urls(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[str]]:
    """Two places for a storage."""
    if request.param == "sqlite":
        yield [f"sqlite:///{tmp_path}/{name}.db" for name in ("a", "b")]
        return
    server: Postgres = request.getfixturevalue("postgres")
    yield [server.new_database().replace("postgresql:", "postgresql+psycopg:") for _ in range(2)]


def test_rows_are_those_of_optuna(urls: list[str]) -> None:
    """Every table, after every kind of trial."""
    with storage_at(urls[0]) as ours, storage_at(urls[1]) as theirs:
        assert write_all(AtOnce(ours, ours.engine)) == write_all(OneByOne(theirs))
        found, right = tables(ours), tables(theirs)
        for name in TABLES:
            assert found[name] == right[name], name
        trials = ours.get_all_trials(STUDY)
        assert [t.number for t in trials] == list(range(7))
        for a, b in zip(trials, theirs.get_all_trials(STUDY), strict=True):
            assert (a.params, a.user_attrs, a.state) == (b.params, b.user_attrs, b.state)


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[RDBStorage]:
    """A new one."""
    with storage_at(f"sqlite:///{tmp_path}/optuna.db") as storage:
        yield storage


@pytest.fixture(params=[AtOnce, OneByOne])
def rows(request: pytest.FixtureRequest, storage: RDBStorage) -> TrialRows:
    """Both ways."""
    return OneByOne(storage) if request.param is OneByOne else AtOnce(storage, storage.engine)


def test_a_finished_trial_stays_as_it_is(rows: TrialRows, storage: RDBStorage) -> None:
    """Whoever ends it again is refused, and changes nothing."""
    trial_id, _ = rows.open(STUDY, trial())
    rows.close(trial_id, TrialState.COMPLETE, 0.5, {1: 0.5}, {}, {})
    before = tables(storage)
    with pytest.raises(UpdateFinishedTrialError):
        rows.close(trial_id, TrialState.FAIL, None, {1: 0.7}, {"a": 1}, {})
    assert tables(storage) == before


def test_a_distribution_of_another_kind_is_refused(rows: TrialRows, storage: RDBStorage) -> None:
    """As it was before, and when somebody else wrote the trials before; nothing is written."""
    storage.create_new_trial(STUDY, template_trial=trial())
    other = trial()
    other.distributions["lr"] = IntDistribution(0, 3)
    other.params["lr"] = 1
    before = tables(storage)
    for _ in range(2):
        with pytest.raises(ValueError, match="distribution"):
            rows.open(STUDY, other)
    assert tables(storage) == before
    wider = trial()
    wider.distributions["lr"] = FloatDistribution(1e-6, 2.0, log=True)  # a range may change
    assert rows.open(STUDY, wider)[1] == 1


def test_what_is_begun_elsewhere_counts(rows: TrialRows, storage: RDBStorage) -> None:
    """A number is that of all trials of the study, and of no other study."""
    other = storage.create_new_study([StudyDirection.MINIMIZE], "other")
    storage.create_new_trial(other)
    storage.create_new_trial(STUDY)
    assert rows.open(STUDY, trial())[1] == 1
    assert rows.open(other, trial())[1] == 1


def test_no_such_study(rows: TrialRows) -> None:
    """Nothing is recorded for it."""
    with pytest.raises(KeyError):
        rows.open(99, trial())


def test_what_is_not_said_again_stays(rows: TrialRows, storage: RDBStorage) -> None:
    """A trial that ends before its worker told its old curve keeps it."""
    trial_id, _ = rows.open(STUDY, trial())
    rows.close(trial_id, TrialState.WAITING, None, {1: 0.1, 2: 0.2, 3: 0.3}, {"a": 1, "b": 2}, {})
    rows.close(trial_id, TrialState.FAIL, None, {2: 0.25}, {"b": 3}, {})
    kept = storage.get_trial(trial_id)
    assert kept.intermediate_values == {1: 0.1, 2: 0.25, 3: 0.3}
    assert kept.user_attrs == {"note": {"hidden": [8, 4]}, "a": 1, "b": 3}


def test_a_trial_that_was_not_opened_leaves_nothing(storage: RDBStorage) -> None:
    """Neither rows nor a distribution that later ones would have to be like."""
    rows, before = AtOnce(storage, storage.engine), tables(storage)
    with pytest.raises(TypeError):
        rows.open(STUDY, trial(what=object()))
    assert tables(storage) == before
    other = trial()
    other.distributions["lr"], other.params["lr"] = IntDistribution(0, 3), 1
    assert rows.open(STUDY, other)[1] == 0


def test_a_locked_file_is_tried_again(tmp_path: Path) -> None:
    """Somebody holds the file for a moment: the trial is opened once it is let go."""
    file = tmp_path / "optuna.db"
    with storage_at(f"sqlite:///{file}") as made:
        engine = sqlalchemy.create_engine(f"sqlite:///{file}", connect_args={"timeout": 0.05})
        holder = sqlite3.connect(file, check_same_thread=False)
        holder.execute("BEGIN IMMEDIATE")
        letting_go = threading.Timer(0.5, holder.rollback)
        letting_go.start()
        assert AtOnce(made, engine).open(STUDY, trial())[1] == 0
        letting_go.join()
        holder.close()
        engine.dispose()


def test_the_tables_of_this_optuna_are_known(storage: RDBStorage) -> None:
    """Otherwise every trial takes the long way: time to look at what has changed."""
    assert models.SCHEMA_VERSION == KNOWN_SCHEMA
    assert isinstance(rows_of(storage, storage.engine), AtOnce)
