"""The connection to the Optuna storage: opened, checked, its errors in one line."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import optuna
import sqlalchemy
from alembic.util import CommandError
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from sweep.databases import postgres, sqlite
from sweep.databases.engines import engine_options
from sweep.databases.rights import lacks_database
from sweep.errors import DiskError, NotFoundError, StoreError
from sweep.redact import redacted

_NOWHERE = logging.NullHandler()
_OPENING = (SQLAlchemyError, StorageInternalError, ValueError, LookupError)
"""Errors of a wrong address."""
_OTHER_TABLES = re.compile(r"no such (column|table)|^(column|relation) .* does not exist")
"""Messages of SQLite and PostgreSQL for a missing column or table."""

TABLES = frozenset(
    {
        "studies", "study_directions", "study_system_attributes", "study_user_attributes",
        "trial_heartbeats", "trial_intermediate_values", "trial_params",
        "trial_system_attributes", "trial_user_attributes", "trial_values", "trials",
        "version_info",
    }
)  # fmt: skip
"""Optuna's tables, except that of its migrations, which it creates anew if missing."""


def open_storage(url: str, *, create: bool = False) -> BaseStorage:
    """The Optuna storage at `url`; later errors in its methods are StoreErrors, too.

    `create` opens it to write and creates a missing one. Without it a full disk or a read-only
    folder does not matter. Raises StoreError if the storage cannot be reached, NotFoundError if
    it has no tables and `create` is false: reading must not leave an empty store behind.
    """
    optuna.logging.disable_default_handler()
    optuna.logging.set_verbosity(logging.WARNING)
    for name in ("optuna", "sqlalchemy", "psycopg"):
        # Else Python prints their warnings, tracebacks and all, on standard error.
        logging.getLogger(name).addHandler(_NOWHERE)
    path, address, is_complete = sqlite.path_of(url), url, not create
    if path is not None:
        address, is_complete = _to_write(path, url) if create else (_to_read(path, url), True)
        sqlite.listen(address)
    with in_one_line(url, "opened", "Check --storage", _OPENING):
        options = {} if path is not None else engine_options(url)
        if path is None and not create:
            _see_that_tables_are_there(url, options)
        with postgres.making_tables(url, "optuna") if create else contextlib.nullcontext():
            try:
                # A table that is missing is a loss to be told, not to be covered by an empty one.
                storage = RDBStorage(
                    address, engine_kwargs=options, skip_table_creation=is_complete
                )
            except (RuntimeError, CommandError) as error:
                # Optuna compares schema revisions itself, alembic refuses a torn table of them.
                raise _other_version(url, _first_line(error)) from error
    return cast(BaseStorage, _Guarded(storage, url))


def _to_write(path: Path, url: str) -> tuple[str, bool]:
    """The address of an SQLite file to write, and whether it has all tables.

    A missing file is completed before it gets its name: Optuna commits its tables one by one.
    """
    sqlite.check(url)
    if not path.exists():
        with (
            in_one_line(url, "made", "Check --storage", _OPENING),
            sqlite.made_aside(path) as aside,
        ):
            aside_url = _without_braces(sqlite.url_of(aside))
            sqlite.listen(aside_url)
            RDBStorage(aside_url).engine.dispose()
    return _without_braces(url), _is_complete(path, url)


def _to_read(path: Path, url: str) -> str:
    """The address of an SQLite file to read. Raises NotFoundError if it has no tables yet."""
    nothing = "no studies here yet ({}): try `sweep run`"
    if not path.exists():
        raise NotFoundError(nothing.format(f"{path} does not exist"))
    address = sqlite.to_read(url)
    if address == url and not _is_complete(path, url):
        raise NotFoundError(nothing.format(f"{path} has no tables"))
    return _without_braces(address)


def _is_complete(path: Path, url: str) -> bool:
    """Whether an SQLite file has all of Optuna's tables, or a study and thus needs all.

    A full disk or a kill may leave a file with a few tables: without a study nothing is lost, and
    Optuna adds the others.
    """
    sqlite.has_tables(url, "studies", "an Optuna storage", TABLES)
    return sqlite.tables_of(path) >= TABLES or sqlite.n_rows(path, "studies") > 0


def _without_braces(url: str) -> str:
    """The address with escaped braces, which Optuna would read as a template."""
    return url.replace("{", "%7B").replace("}", "%7D")


@contextlib.contextmanager
def in_one_line(
    url: str,
    what: str = "used",
    hint: str = "Run the same command again once it answers",
    kinds: tuple[type[Exception], ...] = (SQLAlchemyError, StorageInternalError),
) -> Iterator[None]:
    """Turn errors of SQLAlchemy, Optuna and database drivers into StoreErrors of one line."""
    try:
        yield
    except ImportError as error:
        then = "pip install 'sweep[postgres]'" if postgres.is_postgres(url) else "Check --storage"
        raise StoreError(redacted(f"the Optuna storage {url}: {error}. {then}")) from error
    except kinds as error:
        reason = _first_line(error)
        if sqlite.disk_fault(error) or "No space left" in reason:
            full = f"the Optuna storage {url} cannot be written: {reason}. {sqlite.MAKE_ROOM}"
            raise DiskError(redacted(full)) from error
        if (other := _OTHER_TABLES.search(reason)) and "column" in other.group():
            raise _other_version(url, reason) from error
        if other:
            hint = "A table was lost: keep a copy of it, then put a backup in its place"
        text = f"the Optuna storage {url} cannot be {what}: {reason.rstrip('.')}. {hint}"
        raise StoreError(redacted(text)) from error


class _Guarded:
    """A storage whose methods raise StoreErrors."""

    def __init__(self, storage: Any, url: str) -> None:
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
    """Close the connections; `settle`: move an SQLite file's log into the file."""
    if isinstance(storage, _Guarded):
        storage.engine.dispose()
        if settle:
            sqlite.settle(str(storage.url))


def _see_that_tables_are_there(url: str, options: dict[str, Any]) -> None:
    engine = sqlalchemy.create_engine(url, **options)
    try:
        _see_that_it_is_there(engine, url)
        if not {"studies", "version_info"} <= {*sqlalchemy.inspect(engine).get_table_names()}:
            where = redacted(url)
            raise NotFoundError(f"no studies here yet ({where} has no tables): try `sweep run`")
    finally:
        engine.dispose()


def _see_that_it_is_there(engine: sqlalchemy.Engine, url: str) -> None:
    """Raises NotFoundError if the server has no such database, and what `connect` raises."""
    try:
        engine.connect().close()
    except OperationalError as error:
        if not (postgres.is_postgres(url) and lacks_database(url)):
            raise
        nothing = "no studies here yet ({} does not exist): try `sweep run`"
        raise NotFoundError(nothing.format(redacted(url))) from error


def _other_version(url: str, why: str) -> StoreError:
    """Another version of Optuna wrote the tables, or a migration broke off half-way."""
    reason, _, advice = why.partition("Please ")
    cure = f"run `optuna storage upgrade --storage {url}`"
    if "pip install" in advice:
        cure = "install the Optuna that wrote it"
    return StoreError(
        redacted(
            f"the Optuna storage {url} has the tables of another Optuna ({reason.strip(' .')}): "
            f"keep a copy of it, then {cure}; nothing was changed"
        )
    )


def _first_line(error: BaseException) -> str:
    """The first line of the database's message, without Optuna's and SQLAlchemy's."""
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    lines = str(getattr(error, "orig", None) or error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
