"""A new SQLite store for MLflow: complete or not there at all, and soon.

MLflow fills a new file by some fifty migrations, 0.7 s and more. What they leave behind is the
same for everybody, so it is kept in the user's cache and copied next time (25 ms, MLflow's own
check of it and its first rows included).

Imports mlflow: only the driver may load this module, within `uri.quiet()`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sqlite3 as _sqlite
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

    file = cache.cache_file(
        "stores", mlflow.__version__, latest_revision(), _sqlite.sqlite_version
    )
    blank, made = cache.kept(file), None
    with sqlite.made_aside(path) as aside:
        aside_uri = sqlite.url_of(aside)
        sqlite.listen(aside_uri)
        if blank is None:
            made = _migrated(aside, aside_uri)
        else:
            _copy(blank, aside)
        aside_store = SqlAlchemyStore(aside_uri, "./mlruns")  # type: ignore[no-untyped-call]
        aside_store.engine.dispose()
    if made is not None:
        cache.keep(file, made)


@functools.cache
def latest_revision() -> str:
    """Of the tables that the installed MLflow makes. It reads all of its migrations: 13 ms."""
    from mlflow.store.db.utils import _get_latest_schema_revision

    return str(_get_latest_schema_revision())  # type: ignore[no-untyped-call]


def _copy(blank: bytes, path: Path) -> None:
    """Write a new file, with the rights that SQLite would give it."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o644), "wb") as file:
        file.write(blank)


def _migrated(path: Path, uri: str) -> bytes | None:
    """Make tables, and what migrations put into them: what may be kept, for nothing of a folder or
    a user is there yet. None where this MLflow does it otherwise, as it opens the file."""
    try:
        from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine_with_retry
    except ImportError:
        return None
    engine = create_sqlalchemy_engine_with_retry(uri)  # type: ignore[no-untyped-call]
    try:
        _initialize_tables(engine)  # type: ignore[no-untyped-call]
    finally:
        engine.dispose()
    # A write-ahead log is for a disk to allow, so the copy does without until it is opened there.
    with (
        contextlib.suppress(_sqlite.Error),
        contextlib.closing(_sqlite.connect(path)) as connection,
    ):
        if connection.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",):
            return path.read_bytes()
    return None
