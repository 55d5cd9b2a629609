"""Folders with odd names, and folders that were moved or copied: files stay where they belong."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from searches import INLINE, Call, Finished, mlflow_client, query

import sweep
from sweep.databases import sqlite
from sweep.errors import ConfigError, StoreError
from sweep.ledger.study import open_study
from sweep.tracking.artifacts import artifact_of, run_id_of

ODD = "run%20a 50%? {x} #'ü"
TRACKING = "sqlite:///mlflow.db"


def files(folder: Path) -> set[str]:
    """All files of a folder but logs and locks, relative to it."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in (".log", ".lock") and path.name != "lock"
    }


# Names


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search of three trials in a folder whose name needs every kind of quoting."""
    folder = tmp_path_factory.mktemp("above") / ODD
    folder.mkdir()
    before = Path.cwd()
    os.chdir(folder)
    try:
        sweep.run(study="odd", trials=3, epochs=1, space="mlp_small", **INLINE)
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def in_odd(odd: Path, call: Call) -> Path:
    """The same as the current folder."""
    os.chdir(odd)
    return odd


def test_everything_lies_in_the_folder_whatever_its_name(odd: Path) -> None:
    """Both stores and the artifacts; nothing is made beside the folder."""
    assert [path.name for path in odd.parent.iterdir()] == [ODD]
    assert {"mlflow.db", "mlruns/optuna.db"} <= files(odd)
    n_checkpoints = sum("artifacts/checkpoint/best.ckpt" in name for name in files(odd))
    assert n_checkpoints == 3


def test_commands_find_what_lies_in_an_odd_folder(in_odd: Path, call: Call) -> None:
    """doctor, best and MLflow's copy of a checkpoint; gc deletes what it says and no more."""
    assert call("doctor", "odd")[:2] == (0, "odd: 0 disagreements, 0 left\n")
    best = sweep.best("odd")
    run_id = run_id_of(TRACKING, "odd", best.trial)
    assert run_id is not None
    kept = artifact_of(TRACKING, run_id, "checkpoint/best.ckpt", in_odd / "copy")
    assert kept.read_bytes() == best.checkpoint.read_bytes()
    assert call("gc", "odd", "--keep", "1")[0] == 0
    assert sum("artifacts/checkpoint/best.ckpt" in name for name in files(in_odd)) == 1
    assert [path.name for path in in_odd.parent.iterdir()] == [ODD]


def test_an_absolute_address_of_an_odd_folder_is_quoted(in_odd: Path, call: Call) -> None:
    """Quoted, `--storage` and `--tracking-uri` reach the same files as without them; unquoted
    ones are refused with exit code 2 and make nothing."""
    storage = sqlite.url_of(in_odd / "mlruns" / "optuna.db")
    tracking = sqlite.url_of(in_odd / "mlflow.db")
    named = ("--storage", storage, "--tracking-uri", tracking)
    assert call("doctor", "odd", *named)[0] == 0
    code, _, errors = call("doctor", "odd", "--storage", f"sqlite:///{in_odd}/mlruns/optuna.db")
    assert (code, len(errors)) == (2, 1)
    assert "write %3F for a question mark in the path" in errors[0]
    assert [path.name for path in in_odd.parent.iterdir()] == [ODD]


def test_a_percent_sign_that_is_not_quoted_is_refused(tmp_path: Path) -> None:
    """`%20` in the name of a folder that is there is no blank."""
    (tmp_path / "run%20a").mkdir()
    with pytest.raises(ConfigError, match="write %25 for % in the path"):
        sweep.run(storage=f"sqlite:///{tmp_path}/run%20a/optuna.db")
    assert [path.name for path in tmp_path.iterdir()] == ["run%20a"]


@pytest.mark.parametrize("name", ["plain", ODD, "a%b", "50%25", "what?x=1", "a:b;c", "{0}"])
def test_a_path_survives_its_url(tmp_path: Path, name: str) -> None:
    """`path_of`, SQLAlchemy and Optuna take the same file from what `url_of` makes."""
    from sqlalchemy.engine import make_url

    from sweep.ledger.storage import close_storage, open_storage

    path = tmp_path / name / "optuna.db"
    url = sqlite.url_of(path)
    assert sqlite.path_of(url) == path
    assert make_url(url).database == str(path)
    close_storage(open_storage(url, create=True))
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert {p.name for p in path.parent.iterdir()} >= {"optuna.db"}


# Moves


@pytest.fixture
def original(finished: Finished, tmp_path: Path, call: Call) -> Path:
    """A project's folder, whose stores were made where it is."""
    folder = tmp_path / "first"
    finished.copy(folder)
    home = "UPDATE experiment_tags SET value = ? WHERE key = 'sweep.home'"
    query(folder / "mlflow.db", home, str(folder / "mlflow.db"))
    return folder


def copied(original: Path) -> Path:
    """A copy as `cp -a` makes it, which is the current folder."""
    copy = original.with_name("copy")
    shutil.copytree(original, copy)
    os.chdir(copy)
    return copy


def test_a_copy_touches_nothing_of_the_original(original: Path, call: Call) -> None:
    """run, gc and doctor say in one line what happened, and change no file of either folder."""
    copy = copied(original)
    before = files(original), files(copy)
    said = f"MLflow's artifact addresses of 'six' lie in {original}, not in {copy}. `sweep doctor"
    code, _, errors = call("gc", "six", "--keep", "1")
    assert (code, len(errors)) == (4, 1)
    assert said in errors[0]
    with pytest.raises(StoreError, match="this folder was moved or copied"):
        sweep.run(study="six", trials=7, **INLINE)
    code, out, _ = call("doctor", "six")
    assert (code, len(out.splitlines())) == (1, 2)
    assert said in out
    assert files(original) == before[0]
    assert before[1] <= files(copy)
    tags = query(copy / "mlflow.db", "SELECT key FROM tags WHERE key = 'sweep.checkpoint_lost'")
    assert tags == []


def test_doctor_makes_the_addresses_of_a_copy_right(original: Path, call: Call) -> None:
    """After --fix the copy goes on by itself: its new files and what gc deletes are its own."""
    copy = copied(original)
    client = mlflow_client(copy)
    client.create_registered_model("prod")
    model = query(copy / "mlflow.db", "SELECT artifact_location FROM logged_models")[0][0]
    client.create_model_version("prod", model)
    before = files(original)
    assert call("doctor", "six", "--fix")[0] == 0
    assert call("doctor", "six")[:2] == (0, "six: 0 disagreements, 0 left\n")
    sweep.run(study="six", trials=7, **INLINE)
    assert call("gc", "six", "--keep", "1")[0] == 0
    assert files(original) == before
    dump = [row for table in ("runs", "logged_models", "experiments", "model_versions",
                              "experiment_tags")
            for row in query(copy / "mlflow.db", f"SELECT * FROM {table}")]  # fmt: skip
    assert str(original) not in str(dump)
    assert str(copy) in str(dump)


def test_a_moved_folder_is_not_made_again_where_it_was(original: Path, call: Call) -> None:
    """A run in the new place stops with one line; after --fix the best model is found there."""
    moved = original.with_name("moved 50%25")
    original.rename(moved)
    os.chdir(moved)
    with pytest.raises(StoreError, match="this folder was moved or copied"):
        sweep.run(study="six", trials=7, **INLINE)
    assert call("doctor", "six", "--fix")[0] == 0
    best = sweep.best("six")
    shutil.rmtree(moved / "mlruns" / ".sweep" / "six" / "trials")
    assert best.checkpoint.is_relative_to(moved)
    assert not original.exists()


def test_a_database_that_was_copied_alone_is_not_repaired(original: Path, call: Call) -> None:
    """Its artifacts lie where they were: --fix says what to copy, and changes nothing."""
    alone = original.with_name("alone")
    (alone / "mlruns").mkdir(parents=True)
    shutil.copy(original / "mlflow.db", alone)
    shutil.copy(original / "mlruns" / "optuna.db", alone / "mlruns")
    os.chdir(alone)
    code, _, errors = call("doctor", "six", "--fix")
    assert (code, len(errors)) == (2, 1)
    assert "did not come along with the database: copy it to" in errors[0]


def test_a_link_to_the_folder_is_no_move(original: Path, call: Call) -> None:
    """The same files by another name: nothing is said."""
    link = original.with_name("link")
    link.symlink_to(original)
    tracking, storage = f"sqlite:///{link}/mlflow.db", f"sqlite:///{link}/mlruns/optuna.db"
    os.chdir(link)
    named = ("--tracking-uri", tracking, "--storage", storage)
    assert call("doctor", "six", *named)[:2] == (0, "six: 0 disagreements, 0 left\n")


def test_the_checkpoint_of_a_copy_is_its_own(original: Path, call: Call) -> None:
    """The original's, whose path the ledger has, is not taken."""
    copy = copied(original)
    assert call("doctor", "six", "--fix")[0] == 0
    ledger = open_study("sqlite:///mlruns/optuna.db", "six")
    ledger.close()
    assert sweep.best("six").checkpoint.resolve().is_relative_to(copy)
