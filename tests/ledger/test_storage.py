"""Stores that other versions wrote, that broke off half-way, or that are something else."""

from __future__ import annotations

import errno
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from searches import INLINE, Call, query

import sweep
from sweep.databases.sqlite import disk_fault, is_disk_full
from sweep.errors import StoreError
from sweep.ledger.storage import open_storage
from sweep.ledger.study import create_study, list_studies, open_study
from sweep.tracking.store import connect

OPTUNA, MLFLOW = Path("mlruns/optuna.db"), Path("mlflow.db")


def an_older_optuna() -> None:
    """As it was before Optuna 3.2: its last migration adds this index."""
    query(OPTUNA, "DROP INDEX IF EXISTS ix_trials_study_id")
    query(OPTUNA, "UPDATE alembic_version SET version_num = 'v3.0.0.d'")


def an_older_mlflow() -> None:
    """A store as MLflow's own migrations make it, but for the last five of them."""
    import sqlalchemy
    from mlflow.store.db.utils import InitialBase, _get_alembic_config

    MLFLOW.unlink()
    config = _get_alembic_config(f"sqlite:///{MLFLOW}")
    older = [r.revision for r in ScriptDirectory.from_config(config).walk_revisions()][5]
    engine = sqlalchemy.create_engine(f"sqlite:///{MLFLOW}")
    InitialBase.metadata.create_all(engine)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, older)
    engine.dispose()


def sql(database: Path, statement: str) -> Callable[[], None]:
    def damage() -> None:
        query(database, statement)

    return damage


TORN: dict[str, tuple[Callable[[], None], tuple[str, ...]]] = {
    "optuna older": (an_older_optuna, ("optuna storage upgrade --storage sqlite:///mlruns",)),
    "optuna newer": (
        sql(OPTUNA, "UPDATE alembic_version SET version_num = 'v9.0.0.a'"),
        ("install the Optuna that wrote it",),
    ),
    "optuna twice": (
        sql(OPTUNA, "INSERT INTO alembic_version VALUES ('v3.0.0.d')"),
        ("more than one head", "optuna storage upgrade"),
    ),
    "optuna column": (
        sql(OPTUNA, "ALTER TABLE trial_values DROP COLUMN value_type"),
        ("no such column: trial_values.value_type", "optuna storage upgrade"),
    ),
    "optuna table": (
        sql(OPTUNA, "DROP TABLE trial_values"),
        ("no such table: trial_values", "keep a copy"),
    ),
    "mlflow newer": (
        sql(MLFLOW, "UPDATE alembic_version SET version_num = 'ffff'"),
        ("revision ffff, but this one has", "mlflow db upgrade"),
    ),
    "mlflow twice": (
        sql(MLFLOW, "INSERT INTO alembic_version VALUES ('bd07f7e963c5')"),
        ("and bd07f7e963c5, but", "sweep doctor STUDY --fix"),
    ),
    "mlflow nothing": (sql(MLFLOW, "DELETE FROM alembic_version"), ("revision none",)),
    "mlflow no note": (sql(MLFLOW, "DROP TABLE alembic_version"), ("revision none",)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
@pytest.mark.parametrize("damage", TORN)
def test_a_store_of_another_version_is_left_alone(six: Path, call: Call, damage: str) -> None:
    """run, doctor and --fix say in one line what to do, and change no byte of what is there."""
    do, parts = TORN[damage]
    do()
    before = dumps(six)
    more = ("--trials", "7", "--executor", "inline", "--population", "1")
    for arguments in (("run", "--study", "six", *more), ("doctor", "six"), ("doctor", "--fix")):
        code, out, errors = call(*arguments)
        assert (code, len(errors)) == (4, 1), (out, errors)
        for part in parts:
            assert part in errors[0]
        assert "bug in sweep" not in errors[0]
    assert before.items() <= dumps(six).items()


def dumps(here: Path) -> dict[str, list[str]]:
    """Everything in both stores but what the study notes of a run."""
    found = {}
    for name in ("mlruns/optuna.db", "mlflow.db"):
        connection = sqlite3.connect(here / name)
        found[name] = [
            line for line in connection.iterdump() if '"study_user_attributes"' not in line
        ]
        connection.close()
    return found


@pytest.mark.parametrize("store", ["optuna", "mlflow"])
def test_what_the_line_says_helps(six: Path, call: Call, store: str) -> None:
    """After the library's own upgrade the same command continues, with every old trial."""
    if store == "optuna":
        an_older_optuna()
        upgrade = ["optuna", "storage", "upgrade", "--storage", f"sqlite:///{OPTUNA}"]
    else:
        an_older_mlflow()
        with pytest.raises(StoreError, match="keep a copy of it, then run `mlflow db upgrade sql"):
            sweep.run(study="six", trials=7, **INLINE)
        upgrade = ["mlflow", "db", "upgrade", f"sqlite:///{MLFLOW}"]
    # Programs of their own: in this process they would leave handlers with the root logger.
    program = Path(sys.executable).with_name(upgrade[0])
    subprocess.run([program, *upgrade[1:]], check=True, capture_output=True)
    outcome = sweep.run(study="six", trials=7, **INLINE)
    assert (outcome.n_new, outcome.study.n_done) == (1, 6)
    assert call("doctor", "six")[0] == 0


def test_a_database_of_something_else_is_refused(six: Path) -> None:
    """Neither library adds its tables to the other's file, or to a third one's."""
    query(six / "notes.db", "CREATE TABLE notes (line TEXT)")
    for name in ("notes.db", "mlflow.db"):
        with pytest.raises(StoreError, match=f"{name} is a database of something else, not an Op"):
            open_storage(f"sqlite:///{six}/{name}", create=True)
    for name in ("notes.db", "mlruns/optuna.db"):
        with pytest.raises(StoreError, match=f"{name} is a database of something else, not an ML"):
            connect(f"sqlite:///{six}/{name}")
    assert query(six / "notes.db", "SELECT name FROM sqlite_master") == [("notes",)]


def test_a_storage_that_fails_later_is_one_line(six: Path) -> None:
    """Whatever method meets a damaged database: a StoreError that names the storage."""
    ledger = open_study(f"sqlite:///{OPTUNA}", "six")
    shutil.copyfile(OPTUNA, "copy.db")
    query(OPTUNA, "ALTER TABLE trials RENAME TO trails")
    with pytest.raises(
        StoreError, match=r"optuna\.db cannot be used: no such table: trials\. A table"
    ):
        ledger.trials()
    ledger.close()
    assert len(open_study("sqlite:///copy.db", "six").trials()) == 6


def test_what_a_full_disk_raises_is_known() -> None:
    """By number or by SQLite's words, also as the cause of something else."""
    full = OSError(errno.ENOSPC, "No space left on device")
    wrapped = RuntimeError("commit")
    wrapped.__cause__ = sqlite3.OperationalError("database or disk is full")
    assert is_disk_full(full)
    assert is_disk_full(wrapped)
    assert not is_disk_full(OSError(errno.EACCES, "Permission denied"))
    assert not is_disk_full(sqlite3.OperationalError("database is locked"))
    assert disk_fault(wrapped) == "database or disk is full"
    assert disk_fault(sqlite3.OperationalError("unable to open database file"))
    assert disk_fault(OSError(errno.EIO, "Input/output error")) == "Input/output error"
    assert not is_disk_full(OSError(errno.EIO, "Input/output error"))
    assert not disk_fault(sqlite3.OperationalError("database is locked"))


def test_an_older_file_without_a_note_of_its_version_is_opened(six: Path) -> None:
    """Optuna notes the version again by itself: nothing is lost."""
    query(OPTUNA, "DROP TABLE alembic_version")
    ledger, is_new = create_study(f"sqlite:///{OPTUNA}", "six", "maximize")
    assert not is_new
    assert len(ledger.trials()) == 6
    ledger.close()


# A store that was never made whole

NEW = """
import sys
from sweep.ledger.study import create_study
create_study("sqlite:///optuna.db", "mine", "maximize")[0].close()
"""


def some_tables(n: int) -> None:
    """An `optuna.db` with the first `n` of Optuna's tables, each of them as it makes them."""
    open_storage("sqlite:///whole.db", create=True)
    statements = "SELECT sql FROM sqlite_master WHERE type = 'table' AND sql IS NOT NULL"
    Path("optuna.db").unlink(missing_ok=True)
    Path("optuna.db").touch()
    for (statement,) in query(Path("whole.db"), statements)[:n]:
        query(Path("optuna.db"), statement)


@pytest.mark.parametrize("n", [0, 1, 2, 7, 12])
def test_a_storage_that_is_partly_made_is_completed(call: Call, n: int) -> None:
    """Reading finds no studies in it and says so; whoever writes adds what is missing."""
    some_tables(n)
    code, _, errors = call("trials", "mine", "--storage", "sqlite:///optuna.db")
    assert (code, len(errors)) == (2, 1)
    assert "no studies here yet" in errors[0] or "no study 'mine'" in errors[0]
    ledger, is_new = create_study("sqlite:///optuna.db", "mine", "maximize")
    assert (is_new, ledger.trials()) == (True, [])
    ledger.close()
    tables = "SELECT name FROM sqlite_master WHERE type = 'table'"
    assert sorted(query(Path("optuna.db"), tables)) == sorted(query(Path("whole.db"), tables))


def test_a_new_storage_is_whole_or_not_there(tmp_path: Path) -> None:
    """Processes that die as they make one leave no part of it, and no file in its place."""
    for delay_s in (0.0, 0.02, 0.05):
        process = subprocess.Popen([sys.executable, "-c", NEW], cwd=tmp_path)
        while process.poll() is None and not [*tmp_path.glob(".optuna.db.*")]:
            time.sleep(0.001)
        time.sleep(delay_s)
        process.kill()
        process.wait()
        file = tmp_path / "optuna.db"
        if file.exists():
            assert len(query(file, "SELECT name FROM sqlite_master WHERE type = 'table'")) >= 13
            file.unlink()
    subprocess.run([sys.executable, "-c", NEW], cwd=tmp_path, check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["optuna.db"]


def test_a_log_of_a_removed_storage_is_not_taken_for_the_new_ones(call: Call) -> None:
    """A write-ahead log that was left alone goes before a new file gets its name."""
    url = "sqlite:///optuna.db"
    ledger = create_study(url, "old", "maximize")[0]
    shutil.copy("optuna.db-wal", "kept-wal")
    ledger.close()
    Path("optuna.db").unlink()
    Path("kept-wal").rename("optuna.db-wal")
    create_study(url, "new", "maximize")[0].close()
    assert [study.name for study in list_studies(url)] == ["new"]
    assert query(Path("optuna.db"), "PRAGMA integrity_check") == [("ok",)]
