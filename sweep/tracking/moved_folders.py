"""Artifact addresses of an SQLite store whose folder was moved or copied.

MLflow keeps an absolute address with each experiment, run and model. In a copy of the folder they
still name the original's files, in a moved folder they name an empty place. sweep
writes and deletes nothing there: `check_home` refuses, and `sweep doctor STUDY --fix` calls
`rewrite`. No public method of MLflow changes an address, so `rewrite` updates its tables.

Loads mlflow, as it is imported.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from mlflow.entities import Experiment
from mlflow.utils.file_utils import local_file_uri_to_path

from sweep.databases import sqlite
from sweep.errors import DiskError, NotFoundError, StoreError

HOME_TAG = "sweep.home"
"""On an experiment: the SQLite file that its addresses were made for."""

ARTIFACT_ROOT = "mlruns"
"""MLflow's default, below the folder that a store was opened from."""

_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("trace_tags", "value"),
    ("experiment_tags", "value"),
)
"""Where MLflow keeps addresses; traces keep theirs in a tag."""


@dataclass(frozen=True, slots=True)
class Move:
    """A moved or copied folder: every path below `old` is now below `new`."""

    old: Path
    new: Path

    def sentence(self, study: str) -> str:
        """The fault and its remedy."""
        return (
            f"this folder was moved or copied: MLflow's artifact addresses of {study!r} lie in "
            f"{self.old}, not in {self.new}. `sweep doctor {study} --fix` makes them right; "
            "nothing is written or deleted there"
        )


def home_of(uri: str) -> str:
    """The path of a store's SQLite file; empty for stores of other kinds."""
    path = sqlite.path_of(uri)
    return "" if path is None else os.path.realpath(path)


def new_location(uri: str, name: str) -> str | None:
    """The artifact address of a new experiment; None if MLflow's own default is right.

    MLflow takes the folder's name as it is for an address, and reads `%20` in it as a blank.
    """
    here = str(Path.cwd())
    if sqlite.path_of(uri) is None or "%" not in here:
        return None
    return f"{quote(here)}/{ARTIFACT_ROOT}/experiment-{name}"


def check_home(uri: str, experiment: Experiment) -> None:
    """Check the addresses of the experiment's artifacts.

    Raises StoreError for a moved or copied folder.
    """
    move = move_of(uri, experiment)
    if move is not None:
        raise StoreError(move.sentence(experiment.name))


def move_of(uri: str, experiment: Experiment) -> Move | None:
    """How the SQLite file's folder was moved since the experiment's addresses were made."""
    now, location = home_of(uri), _local(experiment.artifact_location)
    home, here = Path(experiment.tags.get(HOME_TAG, now)), Path(now)
    if not now or location is None or home == here or home.name != here.name:
        return None
    with contextlib.suppress(OSError):
        if home.samefile(here):  # e.g. through a link or another mount
            return None
    old, new = home, here  # less the end that they share
    while old.name == new.name and old != old.parent and new != new.parent:
        old, new = old.parent, new.parent
    return Move(old, new) if location.is_relative_to(old) else None


def rewrite(uri: str, experiment: Experiment, move: Move) -> None:
    """Make every address below `move.old` one below `move.new`, in one transaction.

    An explicit UPDATE of MLflow's tables: for lack of a public method. All experiments of the
    file are covered, as the file moved with all of them. Raises StoreError, and NotFoundError
    if the artifacts of `experiment` did not come along.
    """
    _see_that_files_came_along(experiment, move)
    path = Path(home_of(uri))
    old, new = (quote(str(folder)) for folder in (move.old, move.new))
    pairs = {
        old: new,
        move.old.as_uri(): move.new.as_uri(),
        str(move.old): new if "%" in str(move.new) else str(move.new),
    }
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=sqlite.BUSY_TIMEOUT_S)) as file:
            file.isolation_level = None
            file.execute("BEGIN IMMEDIATE")
            for table, column in _COLUMNS:
                columns = {row[1] for row in file.execute(f"PRAGMA table_info({table})")}
                for before, after in pairs.items() if column in columns else ():
                    file.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                        f"WHERE substr({column}, 1, ?) = ?",
                        (f"{after}/", len(before) + 2, len(before) + 1, f"{before}/"),
                    )
            home = "UPDATE experiment_tags SET value = ? WHERE key = ? AND value LIKE ?"
            file.execute(home, (str(path), HOME_TAG, f"%{path.name}"))
            file.execute("COMMIT")
    except sqlite3.Error as error:
        kind = DiskError if "disk" in str(error) else StoreError
        raise kind(f"{path}: its artifact addresses cannot be changed: {error}") from error


def _see_that_files_came_along(experiment: Experiment, move: Move) -> None:
    """Refuse a store copied without its artifacts."""
    location = _local(experiment.artifact_location)
    if location is None or not location.is_dir():
        return
    there = move.new / location.relative_to(move.old)
    if not there.is_dir():
        raise NotFoundError(
            f"{location} did not come along with the database: copy it to {there}, then run the "
            "same command again"
        )


def _local(address: str) -> Path | None:
    """The folder of an artifact address; None for one on a server or in an object store."""
    if not address.startswith(("/", "file:")):
        return None
    return Path(local_file_uri_to_path(address))  # type: ignore[no-untyped-call]
