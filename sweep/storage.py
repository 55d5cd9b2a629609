"""The connection to the Optuna storage: opened, checked, its errors in one line."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator
from typing import Any, cast

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy.exc import SQLAlchemyError

from sweep import postgres, sqlite
from sweep.errors import DiskError, NotFoundError, StoreError
from sweep.redact import redacted

_NOWHERE = logging.NullHandler()
_OPENING = (SQLAlchemyError, StorageInternalError, ValueError, LookupError, RuntimeError)
"""What a wrong address or a database of another version raises."""


def open_storage(url: str, *, create: bool = False) -> BaseStorage:
    """The Optuna storage behind `url`; whatever fails in it later is a StoreError, too.

    Raises StoreError where it cannot be reached, and NotFoundError where it holds no tables and
    `create` is false: reading must not leave an empty store behind.
    """
    optuna.logging.disable_default_handler()
    optuna.logging.set_verbosity(logging.WARNING)
    for name in ("optuna", "sqlalchemy", "psycopg"):
        # Else Python prints their warnings, tracebacks and all, on standard error.
        logging.getLogger(name).addHandler(_NOWHERE)
    path = sqlite.path_of(url)
    if path is not None:
        if not create and not path.exists():
            raise NotFoundError(f"no studies here yet ({path} does not exist): try `sweep run`")
        sqlite.check(url)
        sqlite.listen(url)
    with in_one_line(url, "opened", "Check --storage", _OPENING):
        options = {} if path is not None else postgres.engine_options(url)
        if path is None and not create:
            _see_that_tables_are_there(url, options)
        with postgres.making_tables(url, "optuna") if create else contextlib.nullcontext():
            return cast(BaseStorage, _Guarded(RDBStorage(url, engine_kwargs=options), url))


@contextlib.contextmanager
def in_one_line(
    url: str,
    what: str = "used",
    hint: str = "Run the same command again once it answers",
    kinds: tuple[type[Exception], ...] = (SQLAlchemyError, StorageInternalError),
) -> Iterator[None]:
    """Turn what SQLAlchemy, Optuna and database drivers raise into a StoreError of one line."""
    try:
        yield
    except ImportError as error:
        then = "pip install 'sweep[postgres]'" if postgres.is_postgres(url) else "Check --storage"
        raise StoreError(redacted(f"the Optuna storage {url}: {error}. {then}")) from error
    except kinds as error:
        reason = _first_line(error)
        is_full = "disk is full" in reason or "No space left" in reason
        kind, then = (DiskError, "Free some space") if is_full else (StoreError, hint)
        text = f"the Optuna storage {url} cannot be {what}: {reason.rstrip('.')}. {then}"
        raise kind(redacted(text)) from error


class _Guarded:
    """A storage whose methods raise StoreErrors."""

    def __init__(self, storage: RDBStorage, url: str) -> None:
        self._storage, self._url = storage, url

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._storage, name)
        if not callable(found):
            return found

        @functools.wraps(found)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            with in_one_line(self._url):
                return found(*args, **kwargs)

        return guarded


def close_storage(storage: BaseStorage, *, settle: bool = False) -> None:
    """Let go of the connections; `settle`: an SQLite file is then complete by itself."""
    if isinstance(storage, _Guarded):
        storage.engine.dispose()
        if settle:
            sqlite.settle(str(storage.url))


def _see_that_tables_are_there(url: str, options: dict[str, Any]) -> None:
    engine = sqlalchemy.create_engine(url, **options)
    try:
        if not sqlalchemy.inspect(engine).has_table("studies"):
            where = redacted(url)
            raise NotFoundError(f"no studies here yet ({where} has no tables): try `sweep run`")
    finally:
        engine.dispose()


def _first_line(error: BaseException) -> str:
    """What the database itself said, without what Optuna and SQLAlchemy wrap around it."""
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    lines = str(getattr(error, "orig", None) or error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
