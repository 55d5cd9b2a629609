"""PostgreSQL under Optuna and MLflow: a real server that stops, real drivers that are killed."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import optuna
import pytest
from postgres import PASSWORD, Postgres
from searches import (
    Call,
    children_of,
    environment,
    in_this_process,
    start_sweep,
    sweep,
    wait_for_line,
)
from waiting import PATIENCE_S

import sweep as library
from sweep.databases.postgres import StudyClaim
from sweep.errors import StoreError, StudyLockedError
from sweep.ledger.study import create_study, list_studies

COMMAND = ("run", "--study", "shared", "--trials", "4", "--epochs", "20", "--population", "1")
Done = subprocess.CompletedProcess[str]


@dataclass
class Story:
    """A search from two folders on one database: refused, killed, cut off, finished."""

    here: Path
    env: dict[str, str]
    url: str
    refused: Done | None = None
    pid: int = 0
    cut_off: tuple[int, str, str] = (0, "", "")
    done: Done | None = None


@pytest.fixture(scope="module")
def story(
    postgres: Postgres, tmp_path_factory: pytest.TempPathFactory, empty_store: Path
) -> Iterator[Story]:
    """Everything that happens, once; the tests below look at it."""
    here, there = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("there")
    shutil.copyfile(empty_store, here / "mlflow.db")
    url = postgres.new_database()
    story = Story(here, {"SWEEP_STORAGE": url}, url)
    with ExitStack() as stack:
        first = stack.enter_context(start_sweep(here, *COMMAND, env=story.env))
        stack.callback(first.kill)
        wait_for_line(first, "trial=0 ")
        processes = (*children_of(first.pid), first.pid)
        for pid in processes:  # it keeps its lock, and does not end before it is killed
            os.kill(pid, signal.SIGSTOP)
        story.refused = in_this_process(there, story.env, *COMMAND)
        story.pid = first.pid
        for pid in processes:
            os.kill(pid, signal.SIGKILL)
        first.wait()
        second = stack.enter_context(start_sweep(here, *COMMAND, env=story.env))
        stack.callback(second.kill)
        wait_for_line(second, "trial=")
        postgres.stop()
        try:
            out, err = second.communicate(timeout=PATIENCE_S)
        finally:
            postgres.start()
        story.cut_off = second.returncode, out, err
        story.done = in_this_process(here, story.env | {"SWEEP_EXECUTOR": "inline"}, *COMMAND)
        yield story


def test_a_driver_in_another_folder_is_refused(story: Story) -> None:
    """The database has a lock of its own: exit code 5, and the owner is named."""
    assert story.refused is not None
    assert story.refused.returncode == 5, story.refused
    (line,) = story.refused.stderr.splitlines()
    assert f"'shared' is being run by process {story.pid} on " in line


@pytest.mark.parametrize("command", ["doctor", "gc"])
def test_what_repairs_and_removes_is_refused_too(story: Story, call: Call, command: str) -> None:
    """While a driver lives anywhere, its study is left alone."""
    claim = StudyClaim(story.url, "shared")
    code, _, (line,) = call(command, "shared", "--storage", story.url)
    claim.release()
    assert code == 5
    assert f"'shared' is being run by process {os.getpid()} on " in line


def test_a_server_that_stops_is_one_line(story: Story) -> None:
    """Exit code 4 and one line without a traceback, which says what to do."""
    code, out, err = story.cut_off
    assert code == 4
    (line,) = err.splitlines()
    assert line.startswith("sweep: the Optuna storage postgresql://***@127.0.0.1:")
    assert line.endswith("Run the same command again once it answers")
    assert "Traceback" not in out


def test_the_same_command_finishes_the_exact_total(story: Story) -> None:
    """After SIGKILL of driver and worker and a stopped server: four trials, none twice."""
    assert story.done is not None
    assert (story.done.returncode, story.done.stderr) == (0, "")
    storage = optuna.storages.RDBStorage(story.url)
    trials = optuna.load_study(study_name="shared", storage=storage).trials
    storage.engine.dispose()
    assert Counter(t.state.name for t in trials) == {"COMPLETE": 4}
    assert len({str(t.user_attrs["sweep:hyperparameters"]) for t in trials}) == 4
    for trial in trials:
        assert sorted(trial.intermediate_values) == list(range(1, 21))


def test_commands_read_it(story: Story, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """list, trials, show, best and doctor agree with the search."""
    monkeypatch.chdir(story.here)
    monkeypatch.setenv("SWEEP_STORAGE", story.url)
    (row,) = json.loads(call("list", "--format", "json")[1])
    assert (row["study"], row["complete"], row["of"]) == ("shared", 4, 4)
    assert len(json.loads(call("trials", "--format", "json")[1])) == 4
    shown = json.loads(call("show", "shared", "--format", "json")[1])
    assert shown["best_trial"]["number"] == row["best_trial"]
    assert f"trial: {row['best_trial']}\n" in call("best", "shared")[1]
    assert call("doctor")[1].strip() == "shared: 0 disagreements, 0 left"


def test_mlflow_may_keep_its_runs_there(postgres: Postgres, tmp_path: Path, call: Call) -> None:
    """A search writes to MLflow's tables. Its password is not kept with the study, so commands
    that need MLflow ask for it; a database that Optuna has is refused."""
    url = postgres.new_database()
    command = ("run", "--study", "kept", "--trials", "1", "--epochs", "2", "--executor", "inline")
    assert call(*command, "--tracking-uri", url)[0] == 0
    statuses = postgres.query(url.rpartition("/")[2], "SELECT status FROM runs")
    assert statuses == [("FINISHED",), ("FINISHED",)]
    code, _, (line,) = call("doctor", "kept")
    assert code == 2
    assert "user and password are not kept with a study" in line
    assert not (tmp_path / "mlflow.db").exists()
    code, _, (line,) = call(*command, "--tracking-uri", url, "--storage", url)
    assert code == 2
    assert "name one database" in line


def test_several_drivers_may_meet_a_fresh_database(postgres: Postgres, tmp_path: Path) -> None:
    """Three processes that make the tables at once all get a study."""
    url = postgres.new_database()
    code = (
        "import sys; from sweep.ledger.study import create_study\n"
        "create_study(sys.argv[1], sys.argv[2], 'maximize')[0].close()\n"
    )
    makers = [
        subprocess.Popen([sys.executable, "-c", code, url, f"s{n}"], env=environment())
        for n in range(3)
    ]
    assert [maker.wait(60) for maker in makers] == [0] * 3
    assert [s.name for s in list_studies(url)] == ["s0", "s1", "s2"]


def test_reading_makes_no_tables(postgres: Postgres) -> None:
    """A database without studies stays as it is."""
    url = postgres.new_database()
    assert list_studies(url) == []
    tables = "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'"
    assert postgres.query(url.rpartition("/")[2], tables) == [(0,)]


def test_tables_of_another_version_are_left_alone(postgres: Postgres, tmp_path: Path) -> None:
    """Another Optuna's revision, or a missing table, is one line that says what to run."""
    url = postgres.new_database()
    name = url.rpartition("/")[2]
    create_study(url, "mine", "maximize")[0].close()
    ((mine,),) = postgres.query(name, "SELECT version_num FROM alembic_version")
    postgres.query(name, "UPDATE alembic_version SET version_num = 'v9.0.0.a'")
    newer = sweep(tmp_path, "list", env={"SWEEP_STORAGE": url})
    assert newer.returncode == 4
    (line,) = newer.stderr.splitlines()
    assert line.endswith("then install the Optuna that wrote it; nothing was changed")
    postgres.query(name, f"UPDATE alembic_version SET version_num = '{mine}'")
    postgres.query(name, "ALTER TABLE trials RENAME TO trails")
    with pytest.raises(StoreError, match="A table was lost: keep a copy of it, then") as caught:
        list_studies(url)
    assert PASSWORD not in str(caught.value)
    tables = "SELECT 1 FROM information_schema.tables WHERE table_name = 'trials'"
    assert postgres.query(name, tables) == []


def cut(postgres: Postgres, url: str) -> None:
    """End all connections to a database."""
    name = url.rpartition("/")[2]
    postgres.query(
        "postgres",
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'",
    )


def test_a_lost_claim_is_taken_again_or_given_up(postgres: Postgres) -> None:
    """Where the connection broke the claim is renewed, unless another driver was faster."""
    url = postgres.new_database()
    claim = StudyClaim(url, "mine")
    other = StudyClaim(url, "other")
    other.release()
    with pytest.raises(StudyLockedError, match=f"process {os.getpid()} on"):
        StudyClaim(url, "mine")
    cut(postgres, url)
    claim.renew()
    with pytest.raises(StudyLockedError):
        StudyClaim(url, "mine")
    cut(postgres, url)
    faster = StudyClaim(url, "mine")
    with pytest.raises(StudyLockedError):
        claim.renew()
    claim.release()
    faster.release()


def test_a_search_is_steered_from_a_machine_without_its_folder(
    postgres: Postgres, tmp_path: Path
) -> None:
    """Who runs it is known from the lock in the database, and that is where orders go."""
    url = postgres.new_database()
    ledger, _ = create_study(url, "mine", "maximize")
    ledger.describe({"trials": 5, "epochs": 2}, "")
    ledger.enqueue({"lr": 0.1})
    where = {"storage": url, "work_dir": str(tmp_path / "empty")}
    assert not library.stop("mine", **where).is_running
    claim = StudyClaim(url, "mine")
    answer = library.extend("mine", 7, **where)
    assert (answer.is_running, str(answer).split(" on ")[0]) == (
        True, f"asked process {os.getpid()}",
    )  # fmt: skip
    library.prune("mine", 0, **where)
    status = library.status("mine", **where)
    assert (str(status.owner).split(" on ")[0], status.n_queued) == (f"process {os.getpid()}", 1)
    claim.release()
    assert [(order.verb, order.number) for order in ledger.orders.kept()] == [
        ("extend", 7), ("prune", 0),
    ]  # fmt: skip
    assert not library.status("mine", **where).is_running
    ledger.close()


def test_the_ledger_outlives_a_cut_connection(postgres: Postgres) -> None:
    """Connections that broke between two visits are made anew; a server that is away is not."""
    url = postgres.new_database()
    ledger, _ = create_study(url, "mine", "maximize")
    cut(postgres, url)
    assert ledger.trials() == []
    postgres.stop()
    try:
        with pytest.raises(StoreError, match=r"127\.0\.0\.1") as caught:
            ledger.trials()
    finally:
        postgres.start()
    assert PASSWORD not in str(caught.value)
    assert ledger.trials() == []
    ledger.close()


@pytest.mark.skipif(importlib.util.find_spec("psycopg2") is not None, reason="psycopg2 is here")
def test_a_missing_driver_is_named() -> None:
    """The error says what to install."""
    with pytest.raises(StoreError, match=r"psycopg2.*pip install 'sweep\[postgres\]'"):
        create_study("postgresql+psycopg2://me:secret@localhost/optuna", "mine", "maximize")
