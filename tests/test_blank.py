"""New SQLite stores for MLflow: the same from a copy as from MLflow's migrations."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

import pytest

from sweep.cache import default_cache_dir, keep, kept
from sweep.tracking import uri

with uri.quiet():
    from mlflow import MlflowClient

    from sweep.tracking.blank import make_sqlite_store

OF_WHO_MADE_IT = {"creation_time", "last_update_time", "artifact_location"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of blank stores in an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-home"))
    return default_cache_dir() / "stores"


def made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store made in `folder`."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    with uri.quiet():
        make_sqlite_store("sqlite:///mlflow.db")
    return folder / "mlflow.db"


def content(path: Path) -> tuple[list[str], dict[str, list[dict[str, object]]]]:
    """Every statement of the schema, and every row."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        schema = connection.execute("SELECT name, type, sql FROM sqlite_master ORDER BY 1, 2")
        parts = [tuple(row) for row in schema]
        rows = {
            name: [
                {k: row[k] for k in row.keys() if k not in OF_WHO_MADE_IT}  # noqa: SIM118 - a Row
                for row in connection.execute(f"SELECT * FROM {name}")
            ]
            for name, kind, _ in parts
            if kind == "table"
        }
    # MLflow's migrations give constraints in an order of their own each time.
    lines = [sorted(line.strip(" \t,") for line in str(sql).splitlines()) for *_, sql in parts]
    return [
        f"{name} {kind} {sql}" for (name, kind, _), sql in zip(parts, lines, strict=True)
    ], rows


def test_a_copy_is_what_mlflow_makes(tmp_path, cache, monkeypatch):
    """Schema and rows are the same; the first experiment is of the folder that it is made in."""
    first = made(tmp_path / "first", monkeypatch)
    (blank,) = cache.iterdir()
    written_ns = blank.stat().st_mtime_ns
    second = made(tmp_path / "second", monkeypatch)
    assert content(first) == content(second)
    assert len(content(first)[1]) > 20
    assert [file.stat().st_mtime_ns for file in cache.iterdir()] == [written_ns]
    with uri.quiet():
        experiment = MlflowClient(f"sqlite:///{second}").get_experiment("0")
    assert experiment.artifact_location == str(tmp_path / "second" / "mlruns" / "0")
    assert not [file for file in second.parent.iterdir() if file.name.startswith(".")]


def test_a_blank_names_nobody_and_wants_no_log(tmp_path, cache, monkeypatch):
    """It has no experiment, and no write-ahead log: a network disk has none."""
    made(tmp_path / "first", monkeypatch)
    (blank,) = cache.iterdir()
    assert blank.stat().st_mode & 0o077 == 0
    database = tmp_path / "blank.db"
    database.write_bytes(blank.read_bytes()[16:])  # after the checksum
    assert str(tmp_path).encode() not in database.read_bytes()
    with contextlib.closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT count(*) FROM experiments").fetchone() == (0,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)


@pytest.mark.parametrize("damage", ["torn", "other bytes", "a folder in its place"])
def test_a_damaged_blank_is_made_anew(tmp_path, cache, monkeypatch, damage):
    """A store is never made from half a copy."""
    first = made(tmp_path / "first", monkeypatch)
    (blank,) = cache.iterdir()
    whole = blank.read_bytes()
    assert kept(blank) == whole[16:]
    if damage == "torn":
        blank.write_bytes(whole[: len(whole) // 2])
    elif damage == "other bytes":
        blank.write_bytes(whole[:5000] + bytes([whole[5000] ^ 0xFF]) + whole[5001:])
    else:
        blank.unlink()
        blank.mkdir()
    assert kept(blank) is None
    assert content(made(tmp_path / "second", monkeypatch)) == content(first)
    if damage != "a folder in its place":
        assert kept(blank)
        assert content(made(tmp_path / "third", monkeypatch)) == content(first)


@pytest.mark.parametrize("umask", [0, 0o002, 0o077])
def test_a_copy_has_the_rights_that_sqlite_gives(tmp_path, cache, monkeypatch, umask):
    """Whoever may not write the first store may not write a later one."""
    before = os.umask(umask)
    try:
        first, second = (made(tmp_path / name, monkeypatch) for name in ("first", "second"))
    finally:
        os.umask(before)
    assert first.stat().st_mode == second.stat().st_mode
    assert second.stat().st_mode & 0o777 == 0o644 & ~umask


@pytest.mark.parametrize("what", ["a link", "a pipe"])
def test_only_a_file_in_its_place_is_read(tmp_path, cache, monkeypatch, what):
    """Another file that a name leads to is not the user's word for what is in it."""
    made(tmp_path / "first", monkeypatch)
    (blank,) = cache.iterdir()
    moved = blank.rename(tmp_path / "moved")
    if what == "a link":
        blank.symlink_to(moved)
    else:
        os.mkfifo(blank)
    assert kept(moved)
    assert kept(blank) is None
    assert made(tmp_path / "second", monkeypatch).is_file()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's link")
def test_the_cache_is_not_written_through_a_link_of_another_user(tmp_path):
    """A folder that is the user's own link is written to, one that is somebody else's is not."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    file = tmp_path / "link" / "kernels" / "digest"
    keep(file, b"mine")
    assert kept(file) == b"mine"
    file.unlink()
    os.lchown(tmp_path / "link", 12345, 12345)
    keep(file, b"mine")
    assert not file.exists()


def test_without_a_home_a_store_is_made_all_the_same(tmp_path, monkeypatch):
    """As in a container that runs as a user whom nobody knows."""
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)
    with pytest.raises(RuntimeError):
        default_cache_dir()
    assert content(made(tmp_path / "first", monkeypatch))[1]["alembic_version"]
