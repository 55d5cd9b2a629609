"""PostgreSQL databases and rights: what is missing is made, a right that lacks is named.

Each error has the statement that an administrator would run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sweep.databases.engines import database_of, make_engine
from sweep.errors import StoreError
from sweep.redact import redacted

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

MAINTENANCE = ("postgres", "template1")
"""Databases that every server has, to ask for others and to make them."""
_NOT_ALLOWED, _THERE_ALREADY = ("42501",), ("42P04", "23505")
"""PostgreSQL's codes: insufficient privilege; made by another process meanwhile."""
_SCHEMA = """
    SELECT current_user, current_database(), current_schema(),
    coalesce(has_schema_privilege(current_schema(), 'CREATE'), false),
    (SELECT nspname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE pg_class.oid = to_regclass(:table))
"""
_TABLE = """
    SELECT has_table_privilege(:table, 'SELECT') AND has_table_privilege(:table, 'INSERT')
    AND has_table_privilege(:table, 'UPDATE') AND has_table_privilege(:table, 'DELETE')
"""


def lacks_database(url: str) -> bool:
    """Whether the server of `url` answers, and has no database of that name."""
    from sqlalchemy import text
    from sqlalchemy.exc import DBAPIError

    name = database_of(url)
    if name is None:
        return False
    found = text("SELECT count(*) FROM pg_database WHERE datname = :name")
    for engine in _beside(url):
        try:
            with engine.connect() as connection:
                return not connection.execute(found, {"name": name}).scalar()
        except DBAPIError:
            continue  # this role may not connect there, or no server answers
        finally:
            engine.dispose()
    return False


def make_database(url: str) -> None:
    """Make the missing database of `url`. Raises StoreError if its role may not."""
    from sqlalchemy.exc import DBAPIError

    statement, role = f"CREATE DATABASE {_quoted(database_of(url) or '')}", ""
    for engine in _beside(url):
        try:
            with engine.connect() as connection:
                role = connection.exec_driver_sql("SELECT current_user").scalar_one()
                # Without parameters drivers leave a "%" in the name as it is.
                connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
            return
        except DBAPIError as error:
            if _code(error) in _THERE_ALREADY:
                return
            if _code(error) in _NOT_ALLOWED and role:
                raise StoreError(
                    f"{redacted(url)}: there is no such database, and its user lacks the right "
                    "CREATEDB to make it. An administrator runs: "
                    f"{statement} OWNER {_quoted(role)};"
                ) from error
        finally:
            engine.dispose()


def check_rights(connection: Connection, url: str, table: str) -> None:
    """Check that the role may make tables if `table` is missing, else that it may write it.

    Raises StoreError with the right that lacks.
    """
    from sqlalchemy import text

    user, database, schema, may_create, home = connection.execute(
        text(_SCHEMA), {"table": table}
    ).one()
    who, role = f"the user of {redacted(url)}", _quoted(user)
    if home is None and not may_create:
        granted, where = "CREATE" if schema else "USAGE, CREATE", schema or "public"
        raise StoreError(
            f"{who} lacks the right {granted} in schema {where}. An administrator runs, in "
            f"database {database}: GRANT {granted} ON SCHEMA {_quoted(where)} TO {role};"
        )
    if home is not None and not connection.execute(text(_TABLE), {"table": table}).scalar():
        all_of = f"IN SCHEMA {_quoted(home)} TO {role}"
        raise StoreError(
            f"{who} lacks a right on table {table} in schema {home}. An administrator runs, in "
            f"database {database}: GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES {all_of}; "
            f"GRANT USAGE ON ALL SEQUENCES {all_of};"
        )


def _beside(url: str) -> list[Engine]:
    """Engines of the same server's databases MAINTENANCE."""
    return [make_engine(url, name) for name in MAINTENANCE]


def _quoted(name: str) -> str:
    """The name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def _code(error: Exception) -> str:
    """PostgreSQL's code of an error; "" if its driver tells none."""
    origin = getattr(error, "orig", None)
    return str(getattr(origin, "sqlstate", None) or getattr(origin, "pgcode", None) or "")
