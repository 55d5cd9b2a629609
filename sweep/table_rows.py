"""Rows of one owner (a trial, a run) in a table, many at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Table, bindparam, delete, insert, select
from sqlalchemy.orm import Session


def insert_rows(session: Session, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert `rows`, which may be none; each has the same columns."""
    if rows:
        session.execute(insert(table), rows)


def replace_rows(
    session: Session, table: Table, owner: str, key: str, rows: Sequence[dict[str, Any]]
) -> None:
    """Insert `rows` in the place of those of the same `owner` that have the same `key`.

    Only rows that are there are deleted: MySQL locks the gap where one is not, and two writers
    would wait for each other.

    Args:
        session: Within a transaction.
        table: Where.
        owner: The column that says whose rows they are; all of `rows` have the same value.
        key: The column that tells the owner's rows apart.
        rows: May be none.
    """
    if not rows:
        return
    column, is_own = table.c[key], table.c[owner] == rows[0][owner]
    wanted = {row[key] for row in rows}
    there = set(session.execute(select(column).where(is_own)).scalars()) & wanted
    if there:
        which = delete(table).where(is_own, column == bindparam("which"))
        session.execute(which, [{"which": value} for value in sorted(there)])
    insert_rows(session, table, rows)
