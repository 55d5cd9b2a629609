"""Artifact addresses of an SQLite store whose folder was moved or copied.

MLflow keeps an absolute address with each experiment, run and model. In a copy of the folder they
still name the original's files, in a moved folder they name a place where nothing is. sweep
writes and deletes nothing there: `check_home` refuses, and `sweep doctor STUDY --fix` calls
`rewrite`. No public method of MLflow changes an address, so `rewrite` updates its tables.

Imports mlflow: only the driver may load this module, within `uri.quiet()`.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from mlflow.entities import Experiment
from mlflow.utils.file_utils import local_file_uri_to_path

from sweep.databases import sqlite
from sweep.errors import DiskError, NotFoundError, StoreError
from sweep.tracking.uri import quiet

if TYPE_CHECKING:
    from sweep.tracking.store import Store

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
    """A folder that was moved or copied: every path below `old` is now below `new`."""

    old: Path
    new: Path

    def sentence(self, study: str) -> str:
        """What is wrong, and what to do."""
        return (
            f"this folder was moved or copied: MLflow's artifact addresses of {study!r} lie in "
            f"{self.old}, not in {self.new}. `sweep doctor {study} --fix` makes them right; "
            "nothing is written or deleted there"
        )


def home_tags(uri: str) -> dict[str, str]:
    """Tags of a new experiment: where its SQLite file is; none for stores of other kinds."""
    path = sqlite.path_of(uri)
    return {} if path is None else {HOME_TAG: os.path.realpath(path)}


def new_location(uri: str, name: str) -> str | None:
    """The artifact address of a new experiment; None where MLflow's own default is right.

    MLflow takes the folder's name as it is for an address, and reads `%20` in it as a blank.
    """
    here = str(Path.cwd())
    if sqlite.path_of(uri) is None or "%" not in here:
        return None
    return f"{quote(here)}/{ARTIFACT_ROOT}/experiment-{name}"


def check_home(store: Store, experiment: Experiment) -> None:
    """See that the experiment's artifacts lie where they were made for.

    Raises StoreError for a folder that was moved or copied since.
    """
    move = _move_of(store.uri, experiment)
    if move is not None:
        raise StoreError(move.sentence(experiment.name))


def mark_home(store: Store, experiment: Experiment) -> None:
    """Note where the store is with an experiment of an older sweep, or of the user's."""
    if HOME_TAG not in experiment.tags:
        for key, value in home_tags(store.uri).items():
            store.client.set_experiment_tag(experiment.experiment_id, key, value)


def examine(tracking_uri: str, study: str, *, fix: bool) -> tuple[str, bool] | None:
    """The sentence about a folder that was moved or copied, and whether it is repaired now.

    None where addresses are right, or there is no such experiment. Raises StoreError.
    """
    with quiet():
        from sweep.tracking.store import connect, in_one_line, is_there, silence

        silence()
        if not is_there(tracking_uri):
            return None
        store = connect(tracking_uri)
    with in_one_line(f"MLflow at {store.shown}"):
        experiment = store.client.get_experiment_by_name(study)
        move = _move_of(store.uri, experiment) if experiment is not None else None
        if experiment is None or move is None:
            return None
        if fix:
            _see_that_files_came_along(experiment, move)
            rewrite(store.uri, move)
        return move.sentence(study), fix


def rewrite(uri: str, move: Move) -> None:
    """Make every address below `move.old` one below `move.new`, in one transaction.

    An explicit UPDATE of MLflow's tables: for lack of a public method. All experiments of the
    file are covered, as the file moved with all of them. Raises StoreError.
    """
    path = sqlite.path_of(uri)
    if path is None:
        return
    pairs = dict(zip(_forms(move.old), _forms(move.new), strict=True))
    pairs |= {str(move.old): quote(str(move.new)) if "%" in str(move.new) else str(move.new)}
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=sqlite.BUSY_TIMEOUT_S)) as file:
            file.isolation_level = None
            file.execute("BEGIN IMMEDIATE")
            known = _columns_of(file)
            for table, column in _COLUMNS:
                if (table, column) in known:
                    for old, new in pairs.items():
                        _replace_prefix(file, table, column, old, new)
            home = "UPDATE experiment_tags SET value = ? WHERE key = ? AND value LIKE ?"
            file.execute(home, (os.path.realpath(path), HOME_TAG, f"%{path.name}"))
            file.execute("COMMIT")
    except sqlite3.Error as error:
        kind = DiskError if "disk" in str(error) else StoreError
        raise kind(f"{path}: its artifact addresses cannot be changed: {error}") from error


def _columns_of(file: sqlite3.Connection) -> set[tuple[str, str]]:
    """(table, column) of all columns that this version of MLflow has."""
    tables = {table for table, _ in _COLUMNS}
    return {
        (table, row[1]) for table in tables for row in file.execute(f"PRAGMA table_info({table})")
    }


def _replace_prefix(file: sqlite3.Connection, table: str, column: str, old: str, new: str) -> None:
    is_below = f"substr({column}, 1, ?) = ?"
    file.execute(
        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {is_below}",
        (f"{new}/", len(old) + 2, len(old) + 1, f"{old}/"),
    )


def _forms(path: Path) -> tuple[str, str]:
    """A folder as MLflow's addresses may name it: quoted, alone or as a URL."""
    return quote(str(path)), path.as_uri()


def _see_that_files_came_along(experiment: Experiment, move: Move) -> None:
    """Refuse where the store was copied alone: its artifacts are where they were."""
    location = _local(experiment.artifact_location)
    if location is None or not location.is_dir():
        return
    there = move.new / location.relative_to(move.old)
    if not there.is_dir():
        raise NotFoundError(
            f"{location} did not come along with the database: copy it to {there}, then run the "
            "same command again"
        )


def _move_of(uri: str, experiment: Experiment) -> Move | None:
    """How the SQLite file's folder was moved since the experiment's addresses were made."""
    path, location = sqlite.path_of(uri), _local(experiment.artifact_location)
    if path is None or location is None:
        return None
    here = Path(os.path.realpath(path))
    home = experiment.tags.get(HOME_TAG)
    if home is None:
        return _guessed(here, location)
    move = _difference(Path(home), here)
    if move is None or not location.is_relative_to(move.old) or _is_one_file(Path(home), here):
        return None
    return move


def _guessed(here: Path, location: Path) -> Move | None:
    """The move of a store whose home nobody noted: an older sweep's.

    Only where the address is of the default layout, names a place outside of this folder, and
    this folder has that part of it, or that place is gone.
    """
    old, is_default = location.parent.parent, location.parent.name == ARTIFACT_ROOT
    folders = (here.parent, Path.cwd())
    if not is_default or any(location.is_relative_to(folder) for folder in folders):
        return None
    came_along = (here.parent / ARTIFACT_ROOT / location.name).is_dir()
    return Move(old, here.parent) if came_along or not location.is_dir() else None


def _difference(old: Path, new: Path) -> Move | None:
    """Two paths less the end that they share; None where the file itself has another name."""
    if old == new or old.name != new.name:
        return None
    while old.name == new.name and old != old.parent and new != new.parent:
        old, new = old.parent, new.parent
    return Move(old, new)


def _is_one_file(one: Path, other: Path) -> bool:
    """Whether both name one file, e.g. through a link or another mount."""
    with contextlib.suppress(OSError):
        return one.samefile(other)
    return False


def _local(address: str) -> Path | None:
    """The folder of an artifact address; None for one on a server or in an object store."""
    if not address.startswith(("/", "file:")):
        return None
    return Path(local_file_uri_to_path(address))  # type: ignore[no-untyped-call]
