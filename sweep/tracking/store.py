"""The connection to one MLflow store: made, checked, silenced, its errors in one line.

Imports mlflow: only the driver may load this module, within `uri.quiet()`.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import getpass
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import mlflow
import requests
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from mlflow import MlflowClient
from mlflow.entities import Experiment, LifecycleStage, Run, ViewType
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import OperationalError

from sweep.databases import postgres, sqlite
from sweep.errors import DiskError, StoreError, SweepError
from sweep.redact import redacted
from sweep.tracking.addresses import check_home, home_tags, mark_home, new_location
from sweep.tracking.uri import one_line, resolve, without_credentials

_LOGGERS = (
    "mlflow", "alembic", "sweep.tracking", "urllib3.connectionpool", "sqlalchemy", "psycopg",
)  # fmt: skip

_HTTP_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"

_LASTING = frozenset(
    {
        "BAD_REQUEST",
        "INVALID_PARAMETER_VALUE",
        "INVALID_STATE",
        "PERMISSION_DENIED",
        "RESOURCE_ALREADY_EXISTS",
        "RESOURCE_DOES_NOT_EXIST",
        "UNAUTHENTICATED",
    }
)
"""MLflow's error codes that asking again does not cure."""


@dataclass(frozen=True, slots=True)
class Store:
    """An open MLflow store."""

    uri: str
    client: MlflowClient

    @property
    def shown(self) -> str:
        """The address as it may be printed."""
        return redacted(self.uri)


def is_there(uri: str) -> bool:
    """Whether there is a store to read; only an SQLite file can be known not to be there."""
    path = sqlite.path_of(resolve(uri))
    return path is None or path.exists()


def connect(uri: str) -> Store:
    """Open the store of `uri`; a missing SQLite file is made, complete or not at all.

    Raises:
        StoreError: It cannot be reached, is no MLflow store, or cannot be written.
        DiskError: Its folder cannot be made or written.
    """
    uri = resolve(uri)
    with in_one_line(f"MLflow at {redacted(uri)}"):
        sqlite.check(uri)
        if sqlite.has_tables(uri, "experiments", "an MLflow store"):
            _refuse_other_version(uri)
        sqlite.listen(uri)
        _make_sqlite_store(uri)
        # It also finds out at once whether PostgreSQL answers: MLflow tries for 100 s.
        with postgres.making_tables(uri, "mlflow"):
            client = MlflowClient(tracking_uri=uri)
            client.search_experiments(max_results=1, view_type=ViewType.ALL)
    return Store(uri, client)


def _make_sqlite_store(uri: str) -> None:
    """Make a missing SQLite store aside, with all its tables, then link it into place.

    MLflow fills a new file by some fifty migrations (0.7 s and more). A driver that is killed
    meanwhile, or a second one that starts in the same second, would leave a file that never opens
    again. Stores of other kinds, and those that are there, are left alone.
    """
    path = sqlite.path_of(uri)
    if path is None or path.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with sqlite.made_aside(path) as aside:
        aside_uri = sqlite.url_of(aside)
        sqlite.listen(aside_uri)
        aside_store = SqlAlchemyStore(aside_uri, "./mlruns")  # type: ignore[no-untyped-call]
        aside_store.engine.dispose()


@contextlib.contextmanager
def in_one_line(what: str) -> Iterator[None]:
    """Turn what MLflow, SQLAlchemy and the disk raise into a StoreError of one line."""
    try:
        yield
    except SweepError:
        raise
    except ImportError as error:
        raise StoreError(f"{what}: {one_line(error)}. pip install 'sweep[postgres]'") from error
    except OSError as error:
        without_credentials(error)
        if sqlite.disk_fault(error):
            raise DiskError(f"{what}: {one_line(error)}. {sqlite.MAKE_ROOM}") from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise DiskError(f"{what}: {one_line(error)}") from error
        raise StoreError(f"{what}: {one_line(error)}") from error
    except Exception as error:
        without_credentials(error)
        if reason := sqlite.disk_fault(error):
            raise DiskError(f"{what} cannot be written: {reason}. {sqlite.MAKE_ROOM}") from error
        if "Max retries exceeded" in str(error) or "Connection refused" in str(error):
            raise StoreError(
                f"{what} cannot be reached: start that server, or name another with --tracking-uri"
            ) from error
        raise StoreError(f"{what}: {one_line(error)}") from error


def is_lasting(error: Exception) -> bool:
    """Whether asking the store again cannot help."""
    if isinstance(error, MlflowException):
        return error.error_code in _LASTING and "database is locked" not in str(error)
    if isinstance(error, OperationalError):
        return False
    if isinstance(error, requests.HTTPError) and error.response is not None:
        status = error.response.status_code
        return 400 <= status < 500 and status not in (408, 425, 429)
    return isinstance(error, FileNotFoundError) or not isinstance(error, OSError)


@contextlib.contextmanager
def asked_once() -> Iterator[None]:
    """Within, MLflow's HTTP client does not repeat a request by itself.

    It would also repeat one whose answer was lost, and make a second run. Who asks again within
    has to look first what is there.
    """
    before = os.environ.get(_HTTP_RETRIES)
    os.environ[_HTTP_RETRIES] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_HTTP_RETRIES]
        else:
            os.environ[_HTTP_RETRIES] = before


def find_or_make_experiment(store: Store, name: str) -> tuple[Experiment, bool]:
    """The experiment `name`, and whether it is new. A deleted one is brought back.

    Raises StoreError where the store's folder was moved or copied (see `addresses`).
    """
    found = store.client.get_experiment_by_name(name)
    if found is not None:
        check_home(store, found)
        mark_home(store, found)
        if found.lifecycle_stage == LifecycleStage.DELETED:
            store.client.restore_experiment(found.experiment_id)
        return found, False
    # The tag keeps MLflow's page from asking what kind of experiment this is.
    tags = {"mlflow.experimentKind": "custom_model_development", **home_tags(store.uri)}
    made = store.client.create_experiment(name, new_location(store.uri, name), tags)
    return store.client.get_experiment(made), True


def search_runs(
    store: Store,
    experiment_id: str,
    tags: Mapping[str, str],
    view: int = ViewType.ACTIVE_ONLY,
) -> Iterator[Run]:
    """All undeleted runs of an experiment that carry `tags`, in pages of 1000."""
    wanted = " and ".join(f"tags.`{key}` = {_quoted(value)}" for key, value in tags.items())
    token = None
    while True:
        page = store.client.search_runs(
            [experiment_id], wanted, view, max_results=1000, page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def _quoted(text: str) -> str:
    return f'"{text}"' if "'" in text else f"'{text}'"


def source_tags() -> dict[str, str]:
    """The tags that MLflow's page shows as "Created by" and "Source"."""
    tags = {"mlflow.source.name": "sweep", "mlflow.source.type": "LOCAL"}
    with contextlib.suppress(OSError, KeyError):  # no such user, e.g. in a container
        tags["mlflow.user"] = getpass.getuser()
    return tags


class _Redacting(logging.Formatter):
    """MLflow's messages and tracebacks name addresses, passwords and all."""

    def format(self, record: logging.LogRecord) -> str:
        """The message, without credentials."""
        return redacted(super().format(record))


class _LogFile(logging.FileHandler):
    """A log is no reason to stop, or to fill a terminal, where its disk is full."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message. The file is opened here, where logging catches no error."""
        with contextlib.suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Nothing: the message is lost."""

    def close(self) -> None:
        """Close the file, whatever its last lines come to."""
        with contextlib.suppress(OSError):
            super().close()


def route_logs(log_file: Path | None) -> None:
    """Send what MLflow and alembic log to `log_file` (None: nowhere), not to the terminal."""
    handler: logging.Handler = logging.NullHandler()
    if log_file is not None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        handler = _LogFile(log_file, encoding="utf-8", delay=True)
        handler.setFormatter(_Redacting("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        for old in logger.handlers[:]:
            logger.removeHandler(old)
            if isinstance(old, logging.FileHandler):
                old.close()
        logger.addHandler(handler)
        logger.propagate = False


def silence() -> None:
    """Keep MLflow's log messages off the terminal, unless they have a place already."""
    handlers = logging.getLogger("mlflow").handlers
    if not any(isinstance(h, logging.FileHandler | logging.NullHandler) for h in handlers):
        route_logs(None)


def _refuse_other_version(uri: str) -> None:
    """Leave an SQLite store alone that another version of MLflow made, or half-migrated.

    MLflow would migrate it as it opens it, step by step: a kill in between leaves a file that
    neither version opens.
    """
    found, wanted = sqlite.revisions(uri), _latest_revision()
    if wanted is not None and found != [wanted]:
        shown = " and ".join(found) or "none"
        raise StoreError(
            f"{sqlite.path_of(uri)} has the tables of another MLflow (revision {shown}, but this "
            f"one has {wanted}): keep a copy of it, then run `mlflow db upgrade {redacted(uri)}`; "
            "where that fails, move it away, and `sweep doctor STUDY --fix` makes its runs again"
        )


@functools.cache
def _latest_revision() -> str | None:
    """The revision of the tables that the installed MLflow makes, read from its migrations.

    Takes 13 ms. None if a version of MLflow has them elsewhere: it then checks a store itself.
    """
    try:
        return ScriptDirectory(f"{mlflow.__path__[0]}/store/db_migrations").get_current_head()
    except (CommandError, OSError):
        return None
