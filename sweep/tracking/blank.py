"""A new SQLite store for MLflow: complete or not there at all, and in no time but once a user.

MLflow fills a new file by some fifty migrations, 0.7 s and more. What they leave behind is the
same for everybody, so it is kept in the user's cache and copied (25 ms, MLflow's own check of it
and its first rows included).

Imports mlflow: only the driver may load this module, within `uri.quiet()`.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from pathlib import Path

import mlflow

from sweep import cache, sqlite


def make_sqlite_store(uri: str) -> None:
    """Make a missing SQLite store aside, with all its tables, then link it into place.

    A driver that is killed meanwhile, or a second one that starts in the same second, would leave
    a file that never opens again. Stores of other kinds, and those that are there, are left alone.
    """
    path = sqlite.path_of(uri)
    if path is None or path.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    aside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    aside_uri = f"sqlite:///{aside}"
    sqlite.listen(aside_uri)
    try:
        _make_tables(aside, aside_uri)
        aside_store = SqlAlchemyStore(aside_uri, "./mlruns")  # type: ignore[no-untyped-call]
        aside_store.engine.dispose()
        _put_in_place(aside, path)
    finally:
        for suffix in ("", "-wal", "-shm"):
            aside.with_name(aside.name + suffix).unlink(missing_ok=True)


def latest_revision() -> str:
    """Of the tables that the installed MLflow makes."""
    from mlflow.store.db.utils import _get_latest_schema_revision

    return str(_get_latest_schema_revision())  # type: ignore[no-untyped-call]


def _make_tables(path: Path, uri: str) -> None:
    """Tables and what migrations put into them, before anything of a folder or a user is there."""
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine_with_retry

    file = cache.cache_file("stores", mlflow.__version__, latest_revision())
    blank = cache.kept(file)
    if blank is not None:
        path.write_bytes(blank)
        return
    engine = create_sqlalchemy_engine_with_retry(uri)  # type: ignore[no-untyped-call]
    try:
        _initialize_tables(engine)  # type: ignore[no-untyped-call]
    finally:
        engine.dispose()
    # A write-ahead log is for a disk to allow, so the copy does without until it is opened there.
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    cache.keep(file, path.read_bytes())


def _put_in_place(aside: Path, path: Path) -> None:
    """Name the finished file `path`, unless another process made one first."""
    try:
        os.link(aside, path)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        if not path.exists():
            aside.rename(path)
