"""SQLAlchemy's engines for PostgreSQL: time limits, and connections that are not kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy import Engine

CONNECT_TIMEOUT_S = 10
UNANSWERED_MS = 60_000
"""A connection counts as lost if its packets are not acknowledged for so long."""


def engine_options(url: str) -> dict[str, Any]:
    """Options of SQLAlchemy's engine for `url`: time limits, and a check of pooled connections.

    Raises SQLAlchemy's ArgumentError for a malformed `url`.
    """
    from sqlalchemy.engine import make_url

    parsed = make_url(url)
    options: dict[str, Any] = {"pool_pre_ping": True}
    if parsed.drivername in ("postgresql", "postgresql+psycopg", "postgresql+psycopg2"):
        patience = {"connect_timeout": CONNECT_TIMEOUT_S, "tcp_user_timeout": UNANSWERED_MS}
        options["connect_args"] = {k: v for k, v in patience.items() if k not in parsed.query}
    return options


def make_engine(url: str, database: str | None = None) -> Engine:
    """An engine without a pool and without transactions.

    `database`: another one of the same server.
    """
    import sqlalchemy
    from sqlalchemy.engine import make_url

    address = make_url(url)
    if database is not None:
        address = address.set(database=database).difference_update_query(["dbname"])
    return sqlalchemy.create_engine(
        address, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool, **engine_options(url)
    )


def database_of(url: str) -> str | None:
    """The name of the database in `url`; None: it has none, and the driver chooses."""
    from sqlalchemy.engine import make_url

    parsed = make_url(url)
    named = parsed.query.get("dbname")
    if named is None:
        return parsed.database
    return named if isinstance(named, str) else named[-1]
