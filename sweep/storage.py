"""An Optuna storage: opened, and whatever goes wrong with it said in one line."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator
from typing import Any, cast

import optuna
from alembic.util import CommandError
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy.exc import SQLAlchemyError

from sweep import sqlite
from sweep.errors import DiskError, NotFoundError, StoreError
from sweep.redact import redacted


def open_storage(url: str, *, create: bool = False) -> BaseStorage:
    """The Optuna storage behind `url`. All that it raises later is a StoreError, too.

    With `create` it is to be written; otherwise a full disk or a read-only folder is no obstacle.
    Raises StoreError where it cannot be reached, and NotFoundError where a sqlite file does not
    exist and `create` is false: reading must not leave an empty store behind.
    """
    optuna.logging.disable_default_handler()
    optuna.logging.set_verbosity(logging.WARNING)
    if not logging.getLogger("optuna").hasHandlers():  # else its warnings go to the terminal
        logging.getLogger("optuna").addHandler(logging.NullHandler())
    path, address, has_tables = sqlite.path_of(url), url, False
    if path is not None:
        if not create and not path.exists():
            raise NotFoundError(f"no studies here yet ({path} does not exist): try `sweep run`")
        if create:
            sqlite.check(url)
        address = url if create else sqlite.to_read(url)
        has_tables = address != url or sqlite.has_tables(url, "studies", "an Optuna storage")
        sqlite.listen(address)
    with in_one_line(url):
        try:
            # A table that is missing is a loss to be told, not to be covered by an empty one.
            storage = RDBStorage(address, skip_table_creation=has_tables)
        except (ImportError, ValueError) as error:
            raise StoreError(
                redacted(f"the Optuna storage {url} cannot be opened: {_first(error)}")
                + ". Check --storage"
            ) from error
        except (RuntimeError, CommandError) as error:
            # Optuna compares schema revisions itself, alembic refuses a torn table of them.
            raise _other_version(url, _first(error)) from error
    return cast(BaseStorage, _Guarded(storage))


def let_go(storage: BaseStorage) -> None:
    """Close the connections of a storage that `open_storage` made."""
    if isinstance(storage, _Guarded):
        storage.let_go()


class _Guarded:
    """A storage whose every method raises StoreError where the database fails."""

    def __init__(self, storage: RDBStorage) -> None:
        self._storage = storage

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._storage, name)
        if not callable(found):
            return found

        @functools.wraps(found)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            with in_one_line(self._storage.url):
                return found(*args, **kwargs)

        return guarded

    def let_go(self) -> None:
        """Close its connections."""
        self._storage.engine.dispose()
        sqlite.settle(self._storage.url)


@contextlib.contextmanager
def in_one_line(url: str) -> Iterator[None]:
    """Turn what Optuna and SQLAlchemy raise where a database fails into a StoreError."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) else None
        reason = _first(cause or error)
        if sqlite.is_disk_full(error):
            raise DiskError(redacted(f"{url} cannot be written: the disk is full")) from error
        if "no such column" in reason or "no such table" in reason:
            raise _other_version(url, reason) from error
        raise StoreError(
            redacted(f"the Optuna storage {url} cannot be used: {reason}. Check --storage")
        ) from error


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


def _first(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else repr(error)
