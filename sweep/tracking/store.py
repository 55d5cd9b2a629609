"""The connection to one MLflow store: made, checked, silenced, its errors in one line.

Loads mlflow, as it is imported.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import getpass
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar

import mlflow
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from mlflow import MlflowClient
from mlflow.entities import Experiment, LifecycleStage, Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.entities import PagedList
from sqlalchemy.exc import OperationalError

from sweep.databases import postgres, sqlite
from sweep.errors import DiskError, NotFoundError, StoreError, SweepError
from sweep.redact import redacted
from sweep.tracking.moved_folders import HOME_TAG, check_home, home_of, new_location
from sweep.tracking.uri import one_line, quiet, resolve, without_credentials

_LOGGERS = (
    "mlflow", "alembic", "sweep.tracking", "urllib3.connectionpool", "sqlalchemy", "psycopg",
)  # fmt: skip

_HTTP_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"

_LOGIN, _TOKEN = (
    ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"), "MLFLOW_TRACKING_TOKEN"
)  # fmt: skip
"""Variables by which MLflow's client says who it is."""

T = TypeVar("T")


def is_there(uri: str) -> bool:
    """Whether there is a store to read: an SQLite file, a database with MLflow's tables.

    Of a server nothing is asked. Raises StoreError if the database does not answer.
    """
    uri = resolve(uri)
    path = sqlite.path_of(uri)
    if path is not None:
        return path.exists()
    with in_one_line(f"MLflow at {redacted(uri)}"):
        return not postgres.is_postgres(uri) or postgres.has_tables(uri, "mlflow")


def connect(uri: str, *, create: bool = False) -> MlflowClient:
    """Open the store of `uri`.

    `create` opens it to write and makes what is missing, an SQLite file complete or not at all.
    Without it a PostgreSQL role needs no right to write.

    Raises:
        NotFoundError: It is not there, and `create` is false.
        StoreError: It cannot be reached, is no MLflow client, or cannot be written.
        DiskError: Its folder cannot be made or written.
    """
    uri = resolve(uri)
    if not create and not is_there(uri):
        raise NotFoundError(f"there is no MLflow store at {redacted(uri)}: check --tracking-uri")
    with quiet(), in_one_line(f"MLflow at {redacted(uri)}"):
        sqlite.check(uri)
        if sqlite.has_tables(uri, "experiments", "an MLflow store"):
            _refuse_other_version(uri)
        sqlite.listen(uri)
        if create:
            _make_sqlite_store(uri)
        # It also finds out at once whether PostgreSQL answers: MLflow tries for 100 s.
        with postgres.making_tables(uri, "mlflow", create=create):
            client = MlflowClient(tracking_uri=uri)
            client.search_experiments(max_results=1, view_type=ViewType.ALL)
    return client


def _make_sqlite_store(uri: str) -> None:
    """Make a missing SQLite store aside, with all its tables, then link it into place.

    MLflow fills a new file by some fifty migrations (0.7 s and more). A driver killed meanwhile,
    or a second one started in the same second, would leave a broken file. Existing stores, and
    stores of other kinds, are left alone.
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
    """Turn errors of MLflow, SQLAlchemy and the disk into a StoreError of one line."""
    try:
        yield
    except SweepError:
        raise
    except ImportError as error:
        raise StoreError(f"{what}: {one_line(error)}. pip install 'sweep[postgres]'") from error
    except OSError as error:
        without_credentials(error)
        hint = f". {sqlite.MAKE_ROOM}" if sqlite.disk_fault(error) else ""
        is_disk = hint or error.errno in (errno.EACCES, errno.EROFS, errno.EPERM)
        kind = DiskError if is_disk else StoreError
        raise kind(f"{what}: {one_line(error)}{hint}") from error
    except Exception as error:
        without_credentials(error)
        if reason := sqlite.disk_fault(error):
            raise DiskError(f"{what} cannot be written: {reason}. {sqlite.MAKE_ROOM}") from error
        if "Max retries exceeded" in str(error) or "Connection refused" in str(error):
            raise StoreError(
                f"{what} cannot be reached: start that server, or name another with --tracking-uri"
            ) from error
        if refusal := _refusal(error):
            raise StoreError(f"{what} {refusal}") from error
        raise StoreError(f"{what}: {one_line(error)}") from error


def _refusal(error: BaseException) -> str:
    """Why a server does not let this user in, and what to set; "" for any other error."""
    if not isinstance(error, MlflowException):
        return ""
    status = int(error.get_http_status_code())  # type: ignore[no-untyped-call]
    if status == HTTPStatus.FORBIDDEN:
        return f"does not let this user do that: ask for the permission ({one_line(error)})"
    if status != HTTPStatus.UNAUTHORIZED:
        return ""
    named = [name for name in (_TOKEN, *_LOGIN) if os.environ.get(name)]
    login = " and ".join(_LOGIN)
    if not named:
        return f"asks who you are: set {login}, or {_TOKEN}"
    if len(named) == 1 and named[0] in _LOGIN:
        return f"asks who you are, and only {named[0]} is set: set {login}"
    taken = login if set(_LOGIN) <= set(named) else _TOKEN  # as MLflow's client chooses
    return f"does not take what {taken} {'say' if taken == login else 'says'}: set the right ones"


def is_lasting(error: BaseException | None) -> bool:
    """Whether asking the store again cannot help."""
    if isinstance(error, MlflowException) and "database is locked" not in str(error):
        status = int(error.get_http_status_code())  # type: ignore[no-untyped-call]
        return 400 <= status < 500 and status not in (408, 425, 429)
    return not isinstance(error, MlflowException | OperationalError | OSError)


_routes: list[Path | None] = [None]
"""Log files of the blocks of `routed` that the process is in, the innermost last."""


@contextlib.contextmanager
def routed(log_file: Path | None) -> Iterator[None]:
    """Within, MLflow's messages go to `log_file`, and it repeats no request by itself.

    It would also repeat one whose answer was lost, and make a second run. The caller has to read
    the store's content before it asks again.
    """
    before = os.environ.get(_HTTP_RETRIES)
    os.environ[_HTTP_RETRIES] = "0"
    _routes.append(log_file)
    route_logs(log_file)
    try:
        yield
    finally:
        _routes.pop()
        route_logs(_routes[-1])
        del os.environ[_HTTP_RETRIES]
        if before is not None:
            os.environ[_HTTP_RETRIES] = before


@contextlib.contextmanager
def opened(uri: str, *, create: bool = False) -> Iterator[MlflowClient]:
    """The store of `uri`; within the block its errors are StoreErrors of one line.

    `create` and what it raises: see `connect`.
    """
    handlers = logging.getLogger("mlflow").handlers
    if not any(isinstance(h, logging.FileHandler | logging.NullHandler) for h in handlers):
        route_logs(None)
    client = connect(uri, create=create)
    with guarded(client):
        yield client


def guarded(client: MlflowClient) -> contextlib.AbstractContextManager[None]:
    """Within, errors of an open store are StoreErrors of one line."""
    return in_one_line(f"MLflow at {redacted(client.tracking_uri)}")


def find_or_make_experiment(
    client: MlflowClient, name: str, location: str | None = None
) -> Experiment:
    """The experiment `name`, made if there is none. A deleted one is brought back.

    `location` is the address of a new one's artifacts; None: where MLflow has them by default.
    Raises StoreError for a moved or copied folder (see `addresses`).
    """
    found = client.get_experiment_by_name(name)
    home = home_of(client.tracking_uri)
    if found is not None:
        check_home(client.tracking_uri, found)
        if home and HOME_TAG not in found.tags:  # an experiment of the user's
            client.set_experiment_tag(found.experiment_id, HOME_TAG, home)
        if found.lifecycle_stage == LifecycleStage.DELETED:
            client.restore_experiment(found.experiment_id)
        return client.get_experiment(found.experiment_id)
    # The first tag keeps MLflow's page from asking what kind of experiment this is.
    tags = {"mlflow.experimentKind": "custom_model_development"} | (
        {HOME_TAG: home} if home else {}
    )
    location = location or new_location(client.tracking_uri, name)
    made = client.create_experiment(name, location, tags)
    return client.get_experiment(made)


def every(page_of: Callable[[str | None], PagedList[T]]) -> Iterator[T]:
    """The items of all pages; `page_of` asks for the one of a token."""
    token: str | None = None
    while token != "":
        page = page_of(token)
        yield from page
        token = page.token or ""


def search_runs(
    client: MlflowClient, experiments: Sequence[str], wanted: Mapping[str, str] | str,
    view: int = ViewType.ACTIVE_ONLY,
) -> Iterator[Run]:  # fmt: skip
    """All undeleted runs of these experiments with the tags `wanted`, or a filter, by pages."""
    if not isinstance(wanted, str):
        wanted = " and ".join(f"tags.`{k}` = {_quoted(value)}" for k, value in wanted.items())
    return every(
        lambda token: client.search_runs(
            list(experiments), wanted, view, max_results=1000, page_token=token
        )
    )


def _quoted(text: str) -> str:
    return f'"{text}"' if "'" in text else f"'{text}'"


def source_tags() -> dict[str, str]:
    """The tags behind "Created by" and "Source" on MLflow's page."""
    tags = {"mlflow.source.name": "sweep", "mlflow.source.type": "LOCAL"}
    with contextlib.suppress(OSError, KeyError):  # no such user, e.g. in a container
        tags["mlflow.user"] = getpass.getuser()
    return tags


class _LogFile(logging.FileHandler):
    """A log file without credentials; a full disk stops nothing, and nothing is said.

    MLflow's messages and tracebacks name addresses, passwords and all.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The message, without credentials."""
        return redacted(super().format(record))

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message. The file is opened here; logging catches no error of that."""
        with contextlib.suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Nothing: the message is lost."""

    def close(self) -> None:
        """Close the file, whatever its last lines come to."""
        with contextlib.suppress(OSError):
            super().close()


def route_logs(log_file: Path | None) -> None:
    """Send the logs of MLflow and alembic to `log_file` (None: nowhere), not to the terminal."""
    handler: logging.Handler = logging.NullHandler()
    if log_file is not None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        handler = _LogFile(log_file, encoding="utf-8", delay=True)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        for old in logger.handlers[:]:
            logger.removeHandler(old)
            if isinstance(old, logging.FileHandler):
                old.close()
        logger.addHandler(handler)
        logger.propagate = False


def _refuse_other_version(uri: str) -> None:
    """Refuse an SQLite store of another MLflow version, or a half-migrated one.

    MLflow would migrate it as it opens it, step by step: after a kill in between neither version
    opens it.
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
    """The table revision of the installed MLflow, read from its migrations.

    Takes 13 ms. None if a version of MLflow has them elsewhere: it then checks a store itself.
    """
    try:
        return ScriptDirectory(f"{mlflow.__path__[0]}/store/db_migrations").get_current_head()
    except (CommandError, OSError):
        return None
