"""PostgreSQL as a store: how to connect, who owns a study, who makes the tables.

A study in a database may be run from any folder and any host, where no lock of files sees the
other. So its driver holds an advisory lock of the database beside the lock of its work folder
(https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS), in a connection
that does nothing else. The server lets go when that connection ends, however the driver died;
where the driver's host is gone without a word, after about a minute.

A connection pooler in transaction mode lends that connection to others: behind one, only the
lock of the work folder counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sweep.databases.engines import make_engine
from sweep.databases.rights import check_rights, lacks_database, make_database
from sweep.errors import StudyLockedError

if TYPE_CHECKING:
    from sqlalchemy import Connection

TABLE_OF = {"optuna": "studies", "mlflow": "experiments"}
"""A table by which a program's tables are known."""
KEEPALIVE = {"tcp_keepalives_idle": 30, "tcp_keepalives_interval": 10, "tcp_keepalives_count": 3}
"""The server's keepalive settings for a connection that holds a lock."""

_SET = "SELECT set_config(:name, :value, false)"
_OWNER = """
    SELECT application_name, backend_start FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND granted AND objsubid = 1
    AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND classid::bigint = :high AND objid::bigint = :low
"""


def is_postgres(url: str) -> bool:
    """Whether a store's address is of PostgreSQL, with any driver.

    >>> is_postgres("postgresql+psycopg2://db/optuna"), is_postgres("sqlite:///optuna.db")
    (True, False)
    """
    return url.partition(":")[0].partition("+")[0] == "postgresql"


class StudyClaim:
    """A study's lock in its PostgreSQL database, held until `release`. A missing one is made.

    Raises StudyLockedError with another driver's name, StoreError for a missing right, ImportError
    without a driver for PostgreSQL, SQLAlchemyError if the database does not answer.
    """

    def __init__(self, url: str, study: str) -> None:
        see_that_it_exists(url)
        self._study, self._engine = study, make_engine(url)
        self._connection = self._take()

    def renew(self) -> None:
        """Check the connection; take the lock again if it was lost. Raises as the constructor."""
        from sqlalchemy.exc import DBAPIError

        try:
            self._connection.exec_driver_sql("SELECT 1")
        except DBAPIError:
            self._connection.close()
            self._connection = self._take()

    def release(self) -> None:
        """Release the lock. Does nothing if the connection is lost."""
        from sqlalchemy.exc import SQLAlchemyError

        with contextlib.suppress(SQLAlchemyError):
            self._connection.close()
        self._engine.dispose()

    def _take(self) -> Connection:
        from sqlalchemy import text

        connection = self._engine.connect()
        try:
            who = f"sweep: process {os.getpid()} on {socket.gethostname()}"
            for name, value in {"application_name": who, **KEEPALIVE}.items():
                connection.execute(text(_SET), {"name": name, "value": str(value)})
            key = _key(connection, f"study {self._study}")
            got = connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": key})
            if not got.scalar():
                raise StudyLockedError.by(self._study, *(_owner(connection, key) or ()))
        except BaseException:
            connection.close()
            raise
        return connection


def owner_of(url: str, study: str) -> tuple[str, float | None] | None:
    """Name and start (Unix time in seconds) of the driver with a study's lock; None: nobody.

    Raises as StudyClaim.
    """
    engine = make_engine(url)
    try:
        with engine.connect() as connection:
            return _owner(connection, _key(connection, f"study {study}"))
    finally:
        engine.dispose()


def see_that_it_exists(url: str) -> None:
    """Make the database of `url` if its server has none of that name.

    Raises StoreError for a missing right, SQLAlchemyError if the server does not answer.
    """
    from sqlalchemy.exc import OperationalError

    engine = make_engine(url)
    try:
        engine.connect().close()
    except OperationalError:
        if not lacks_database(url):
            raise
        make_database(url)
    finally:
        engine.dispose()


def has_tables(url: str, what: str) -> bool:
    """Whether the database is there, with tables of `what`. Raises as StudyClaim."""
    from sqlalchemy import text
    from sqlalchemy.exc import OperationalError

    engine = make_engine(url)
    found = text("SELECT to_regclass(:table) IS NOT NULL")
    try:
        with engine.connect() as connection:
            return bool(connection.execute(found, {"table": TABLE_OF[what]}).scalar())
    except OperationalError:
        if not lacks_database(url):
            raise
        return False
    finally:
        engine.dispose()


@contextlib.contextmanager
def making_tables(url: str, what: str, *, create: bool = True) -> Iterator[None]:
    """Wait for the lock of the tables of `what` in the database and hold it within the block.

    Two processes that create or migrate tables of Optuna or MLflow at once fail. With `create` a
    missing database is made before that, and rights are checked. Does nothing for other stores.
    Raises as StudyClaim.
    """
    if not is_postgres(url):
        yield
        return
    from sqlalchemy import text

    if create:
        see_that_it_exists(url)
    engine = make_engine(url)
    try:
        with engine.connect() as connection:
            if create:
                check_rights(connection, url, TABLE_OF[what])
            key = _key(connection, f"tables of {what}")
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": key})
            yield
    finally:
        engine.dispose()


def _key(connection: Connection, what: str) -> int:
    """A lock's number: a 64-bit hash of the schema and of `what`."""
    schema = connection.exec_driver_sql("SELECT current_schema()").scalar()
    digest = hashlib.blake2b(f"sweep/{schema}/{what}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def _owner(connection: Connection, key: int) -> tuple[str, float | None] | None:
    """The owner of a lock and its start (Unix time in seconds), if the server tells; None: it is
    free."""
    from sqlalchemy import text

    halves = {"high": (key >> 32) & 0xFFFFFFFF, "low": key & 0xFFFFFFFF}
    found = connection.execute(text(_OWNER), halves).first()
    if found is None:
        return None
    name = str(found[0])
    if found[1] is None or not name.startswith("sweep: "):
        return "", None
    return name.removeprefix("sweep: "), found[1].timestamp()
