"""Whole runs in MLflow's tables: row for row what MLflow's client writes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, Metric
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from postgres import Postgres
from sqlalchemy.exc import InterfaceError

from sweep.tracking import store as stores
from sweep.tracking.blank import latest_revision
from sweep.tracking.run import dataset_inputs
from sweep.tracking.run_rows import Ending, NewModel, NewRun, OneByOne, Output, RunRows
from sweep.tracking.uri import quiet
from sweep.trial import DatasetInfo

with quiet():
    from sweep.tracking.at_once import KNOWN_REVISION, AtOnce, rows_of

TABLES = (
    "runs", "tags", "params", "metrics", "latest_metrics", "datasets", "inputs", "input_tags",
    "logged_models", "logged_model_params", "logged_model_tags", "logged_model_metrics",
)  # fmt: skip
CLOCK = ("creation_timestamp_ms", "last_updated_timestamp_ms")
DATA = DatasetInfo("digits", "bundled", "0123abcd", (64,), 10, 1000, 200)
BEGAN, ENDED = 1_790_000_000_000, 1_790_000_060_000


class Place:
    """A new store with one experiment, whose parent run reads the data already."""

    def __init__(self, uri: str) -> None:
        with quiet():
            self.store = stores.connect(uri)
        self.client = self.store.client
        self.experiment_id = self.client.create_experiment("mine")
        OneByOne(self.client).make_run(self.new("parent"))

    def new(self, name: str, /, **params: str) -> NewRun:
        tags = {"mlflow.user": "me", "sweep.trial": "7", "note": "é" * 300}
        inputs = dataset_inputs(DATA)
        return NewRun(self.experiment_id, name, BEGAN, tags, params, inputs)

    def at_once(self) -> AtOnce:
        """By tables alone: what it leaves to the client ends in an error."""
        nobody = MlflowClient("http://127.0.0.1:9")
        return AtOnce(nobody, self.client._tracking_client.store)

    def tables(self) -> dict[str, list[str]]:
        """All rows; ids are replaced by names that both stores have, times of the clock left."""
        names: dict[str, str] = {}
        found: dict[str, list[dict[str, Any]]] = {}
        engine = sqlalchemy.create_engine(self.store.uri)
        with engine.connect() as connection:
            for table in TABLES:
                query = sqlalchemy.text(f"SELECT * FROM {table}")
                found[table] = [dict(row) for row in connection.execute(query).mappings()]
        engine.dispose()
        for run in found["runs"]:
            names[run["run_uuid"]] = f"<{run['name']}>"
        for model in found["logged_models"]:
            names[model["model_id"]] = f"<{model['name']}>"
        for data in found["datasets"]:
            names[data["dataset_uuid"]] = f"<{data['name']}>"
        for edge in found["inputs"]:
            ends = (names[edge["source_id"]], names[edge["destination_id"]])
            names[edge["input_uuid"]] = "->".join(ends)
        return {t: sorted(_shown(row, names) for row in rows) for t, rows in found.items()}


def _shown(row: dict[str, Any], names: dict[str, str]) -> str:
    shown = {}
    for key, value in sorted(row.items()):
        if key in CLOCK:
            value = value is not None
        for own, name in names.items():
            value = value.replace(own, name) if isinstance(value, str) else value
        # The folder of each store is its own.
        shown[key] = value.split("/mlruns/")[-1] if "artifact" in key else value
    return repr(shown)


def write_all(rows: RunRows, place: Place) -> list[str]:
    """Runs of every kind and end; returns their ids."""
    plain = rows.make_run(place.new("plain", lr="0.1", hidden="8-4", empty=""))
    run_id = plain.info.run_id
    assert (plain.data.params, plain.info.status) == (
        {"lr": "0.1", "hidden": "8-4", "empty": ""}, "RUNNING"
    )  # fmt: skip
    assert plain.data.tags["mlflow.runName"] == "plain"
    rows.log(run_id, points("loss", 1, 4), {}, {"note": "short", "new": "1"})
    rows.log(run_id, [], {}, {})
    odd = [Metric("odd", v, BEGAN + k, k) for k, v in enumerate((math.nan, math.inf, -math.inf))]
    rows.finish(
        run_id, [*points("loss", 4, 9), *odd, Metric("late", 1.0, BEGAN, 5),
                 Metric("late", 2.0, BEGAN, 3)],
        {"sweep.n_epochs": "8"}, Ending("KILLED", ENDED),
    )  # fmt: skip
    full = rows.make_run(place.new("full", lr="0.2"))
    new = NewModel(
        place.experiment_id, full.info.run_id, "t007", {"sweep.trial": "7"}, {"lr": "0.2"}
    )
    model = rows.make_model(new)
    assert (model.name, model.source_run_id, str(model.status)) == (
        "t007", full.info.run_id, "PENDING"
    )  # fmt: skip
    link = {
        "model_id": model.model_id, "run_id": full.info.run_id, "dataset_name": "digits-val",
        "dataset_digest": DATA.digest,
    }  # fmt: skip
    best = [Metric("best_loss", 0.5, ENDED, 2, **link), Metric("best_odd", math.nan, 1, 2, **link)]
    end = Ending("FINISHED", ENDED, Output(model.model_id, 2))
    rows.finish(full.info.run_id, [*points("loss", 1, 3), *best], {"best_epoch": "2"}, end)
    bare = rows.make_run(NewRun(place.experiment_id, "bare", BEGAN, {}, {}, []))
    rows.finish(bare.info.run_id, [], {}, Ending("FAILED", ENDED))
    return [run_id, full.info.run_id, bare.info.run_id]


def points(key: str, first: int, last: int) -> list[Metric]:
    return [Metric(key, 1.0 / step, BEGAN + step, step) for step in range(first, last)]


@pytest.fixture(params=["sqlite", "postgresql"])
def new_uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """The address of a place for a store."""
    if request.param == "sqlite":
        yield lambda name: f"sqlite:///{tmp_path}/{name}/mlflow.db"
        return
    server: Postgres = request.getfixturevalue("postgres")
    yield lambda name: server.new_database().replace("postgresql:", "postgresql+psycopg:")


def test_rows_are_those_of_the_client(
    new_uri: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every table, after every kind of run; what MLflow reads of them is the same, too."""
    places = []
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)  # where PostgreSQL's files go
        places.append(Place(new_uri(name)))
    ours, theirs = places
    ids = write_all(ours.at_once(), ours), write_all(OneByOne(theirs.client), theirs)
    found, right = ours.tables(), theirs.tables()
    for table in TABLES:
        assert found[table] == right[table], table
    assert len(found["metrics"]) == 8 + 3 + 2 + 2 + 2
    assert len(found["inputs"]) == 3 * 2 + 1
    for one, other in zip(*ids, strict=True):
        a, b = ours.client.get_run(one), theirs.client.get_run(other)
        assert (a.data.params, a.data.tags) == (b.data.params, b.data.tags)
        assert {k: repr(v) for k, v in a.data.metrics.items()} == {
            k: repr(v) for k, v in b.data.metrics.items()
        }
        assert len(a.inputs.dataset_inputs) == len(b.inputs.dataset_inputs)
    (model,) = ours.client.search_logged_models([ours.experiment_id])
    assert str(model.status) == "READY"
    best = {(m.key, m.dataset_name) for m in model.metrics or ()}
    assert best == {("best_loss", "digits-val"), ("best_odd", "digits-val")}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A new store."""
    return Place(f"sqlite:///{tmp_path}/mlflow.db")


@pytest.fixture(params=[AtOnce, OneByOne])
def rows(request: pytest.FixtureRequest, place: Place) -> RunRows:
    """Both ways, the first with the second behind it."""
    return place.store.rows if request.param is AtOnce else OneByOne(place.client)


@pytest.fixture(params=[AtOnce, OneByOne])
def either(request: pytest.FixtureRequest, place: Place) -> RunRows:
    """Both ways, the first alone."""
    return place.at_once() if request.param is AtOnce else OneByOne(place.client)


def test_a_database_that_is_known_is_written_at_once(place: Place) -> None:
    """Where MLflow changes its tables, this test says so; a server has none to write to."""
    assert latest_revision() == KNOWN_REVISION
    assert isinstance(place.store.rows, AtOnce)
    assert isinstance(rows_of(MlflowClient("http://127.0.0.1:9")), OneByOne)


def test_what_is_written_twice_is_there_once(rows: RunRows, place: Place) -> None:
    """The same points, tags and end again, alone or among new ones."""
    run_id = rows.make_run(place.new("twice")).info.run_id
    end = Ending("FINISHED", ENDED)
    rows.finish(run_id, points("loss", 1, 4), {"best_epoch": "3"}, end)
    before = place.tables()
    rows.finish(run_id, points("loss", 1, 4), {"best_epoch": "3"}, end)
    assert place.tables() == before
    rows.log(run_id, points("loss", 1, 6), {}, {})
    history = place.client.get_metric_history(run_id, "loss")
    assert [p.step for p in history] == [1, 2, 3, 4, 5]
    assert place.client.get_run(run_id).info.status == "FINISHED"


def test_an_older_point_is_not_the_last(either: RunRows, place: Place) -> None:
    """A run shows the point of the last step, and of one step the later."""
    rows = either
    run_id = rows.make_run(place.new("order")).info.run_id
    rows.log(run_id, [Metric("loss", 0.5, BEGAN, 5)], {}, {})
    rows.log(run_id, [Metric("loss", 0.1, ENDED, 2), Metric("acc", 0.9, BEGAN, 1)], {}, {})
    assert place.client.get_run(run_id).data.metrics == {"loss": 0.5, "acc": 0.9}
    rows.log(run_id, [Metric("loss", 0.4, ENDED, 5)], {}, {})
    assert place.client.get_run(run_id).data.metrics == {"loss": 0.4, "acc": 0.9}


def test_a_deleted_run_takes_nothing(rows: RunRows, place: Place) -> None:
    """MLflow says why, and no row is changed."""
    run_id = rows.make_run(place.new("gone")).info.run_id
    place.client.delete_run(run_id)
    before = place.tables()
    for write in (
        lambda: rows.log(run_id, points("loss", 1, 2), {}, {"a": "b"}),
        lambda: rows.finish(run_id, [], {}, Ending("FINISHED", ENDED)),
    ):
        with pytest.raises(MlflowException, match="must be in the 'active' state"):
            write()
    assert place.tables() == before
    with pytest.raises(MlflowException, match="not found"):
        rows.log("0" * 32, points("loss", 1, 2), {}, {})


def test_a_deleted_experiment_takes_no_run(rows: RunRows, place: Place) -> None:
    """MLflow says why."""
    run_id = rows.make_run(place.new("last")).info.run_id
    place.client.delete_experiment(place.experiment_id)
    before = place.tables()
    with pytest.raises(MlflowException, match="must be in the 'active' state"):
        rows.make_run(place.new("late"))
    with pytest.raises(MlflowException, match="must be in the 'active' state"):
        rows.make_model(NewModel(place.experiment_id, run_id, "m", {}, {}))
    assert place.tables() == before


def test_what_mlflow_does_not_take_is_refused(rows: RunRows, place: Place) -> None:
    """A key that it forbids, a value that is too long: its own words, and the code for them."""
    run_id = rows.make_run(place.new("odd")).info.run_id
    long = {"note": "x" * 10_000}
    for write in (
        lambda: rows.log(run_id, [Metric("a?b", 1.0, 1, 1)], {}, {}),
        lambda: rows.log(run_id, [], {}, {"a?b": "1"}),
        lambda: rows.make_run(place.new("params", **{"a?b": "1"})),
    ):
        with pytest.raises(MlflowException) as caught:
            write()
        assert caught.value.error_code == "INVALID_PARAMETER_VALUE"
        assert stores.is_wrong(caught.value)
    rows.log(run_id, [], {}, long)
    assert len(place.client.get_run(run_id).data.tags["note"]) == 8000


def test_a_name_among_the_tags_renames_the_run(rows: RunRows, place: Place) -> None:
    """As MLflow's page does it; two names at once are refused."""
    run_id = rows.make_run(place.new("old")).info.run_id
    rows.log(run_id, [], {}, {"mlflow.runName": "new"})
    assert place.client.get_run(run_id).info.run_name == "new"
    new = NewRun(place.experiment_id, "a", BEGAN, {"mlflow.runName": "b"}, {}, [])
    with pytest.raises(MlflowException, match="different values"):
        rows.make_run(new)


def test_data_that_no_run_reads_yet(rows: RunRows, place: Place) -> None:
    """The first run that names a data set brings it along; later ones share it."""
    other = DatasetInfo("other", "bundled", "4567cdef", (64,), 10, 1000, 200)
    inputs = dataset_inputs(other)
    for name in ("first", "second"):
        run = rows.make_run(NewRun(place.experiment_id, name, BEGAN, {}, {"lr": "1"}, inputs))
        run = place.client.get_run(run.info.run_id)
        assert [i.dataset.name for i in run.inputs.dataset_inputs] == ["other-train", "other-val"]
        assert run.data.params == {"lr": "1"}
    assert len(place.tables()["datasets"]) == 4


def test_all_of_it_or_nothing(place: Place) -> None:
    """A model that is not there: neither points nor tags nor the end are written."""
    run_id = place.store.rows.make_run(place.new("whole")).info.run_id
    before = place.tables()
    link = {"model_id": "m-" + "0" * 32, "run_id": run_id}
    best = [*points("loss", 1, 3), Metric("best_loss", 0.5, ENDED, 2, **link)]
    with pytest.raises(MlflowException, match="Max retries"):
        place.at_once().finish(run_id, best, {"a": "b"}, Ending("FINISHED", ENDED))
    assert place.tables() == before


def test_an_interrupted_run_goes_on_to_its_end(either: RunRows, place: Place) -> None:
    """SCHEDULED, RUNNING again, and ended with a model that is ready and linked already."""
    run_id = either.make_run(place.new("again", lr="1")).info.run_id
    either.log(run_id, points("loss", 1, 3), {}, {})
    place.client.update_run(run_id, status="SCHEDULED")
    place.client.update_run(run_id, status="RUNNING")
    new = NewModel(place.experiment_id, run_id, "t000", {}, {"lr": "1"})
    model_id = either.make_model(new).model_id
    place.client.finalize_logged_model(model_id, "READY")
    place.client.log_outputs(run_id, [LoggedModelOutput(model_id, 3)])
    known = Output(model_id, 3, is_ready=True, is_linked=True)
    either.finish(run_id, points("loss", 3, 5), {"a": "b"}, Ending("FINISHED", ENDED, known))
    run = place.client.get_run(run_id)
    assert (run.info.status, run.info.end_time) == ("FINISHED", ENDED)
    assert [p.step for p in place.client.get_metric_history(run_id, "loss")] == [1, 2, 3, 4]
    assert [(m.model_id, m.step) for m in run.outputs.model_outputs] == [(model_id, 3)]


class Broken:
    """What looks like a store, and raises."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    def ManagedSessionMaker(self, *, read_only: bool) -> NoReturn:  # noqa: N802 - MLflow's name
        raise self.errors.pop(0)


class Losing:
    """A store of MLflow's whose answers to a commit are lost."""

    def __init__(self, store: Any) -> None:
        self._store = store

    @contextlib.contextmanager
    def ManagedSessionMaker(self, *, read_only: bool) -> Iterator[Any]:  # noqa: N802 - as above
        with self._store.ManagedSessionMaker(read_only=read_only) as session:
            yield session
        lost = InterfaceError("COMMIT", {}, Exception("connection already closed"))
        raise MlflowException(str(lost)) from lost


def test_another_mlflow_is_left_to_its_client(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever its store has become: the client writes, and the log says so once."""
    rows = AtOnce(place.client, Broken(*(TypeError("read_only") for _ in range(4))))
    with caplog.at_level("WARNING"):
        run_id = rows.make_run(place.new("new")).info.run_id
        rows.log(run_id, points("loss", 1, 3), {}, {"a": "b"})
        rows.make_model(NewModel(place.experiment_id, run_id, "m", {}, {}))
        rows.finish(run_id, [], {}, Ending("FINISHED", ENDED))
    assert place.client.get_run(run_id).info.status == "FINISHED"
    assert [r.getMessage() for r in caplog.records if r.name == "sweep.tracking"] == [
        "written by MLflow's client, for TypeError: read_only"
    ]


def test_a_lost_answer_to_a_commit_makes_no_second_run(place: Place) -> None:
    """What the database may have taken is not written again before somebody looked."""
    rows = AtOnce(place.client, Losing(place.client._tracking_client.store))
    with pytest.raises(MlflowException, match="connection already closed"):
        rows.make_run(place.new("lost"))
    found = place.client.search_runs([place.experiment_id])
    assert sorted(run.info.run_name for run in found) == ["lost", "parent"]


def test_a_store_that_is_away_is_not_asked_again_by_the_client(place: Place) -> None:
    """Delivery waits for it; only where two transactions met, it is tried three times."""
    end = Ending("FINISHED", ENDED)
    for message, n_tries in (("disk I/O error", 1), ("deadlock detected", 3)):
        errors = [MlflowException(message, TEMPORARILY_UNAVAILABLE) for _ in range(5)]
        broken = Broken(*errors)
        with pytest.raises(MlflowException, match=message):
            AtOnce(place.client, broken).finish("0" * 32, [], {}, end)
        assert len(broken.errors) == 5 - n_tries
