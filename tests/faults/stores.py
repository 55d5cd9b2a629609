"""Both stores and all files of a project as facts, by which two projects can be compared."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sqlite3
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

VARIES = object()
"""The value of a fact that no two searches share: a time, an id."""


THERE = "WHERE lifecycle_stage = 'active'"
"""Models of trials that `--keep` drops may have been logged before; MLflow keeps their rows."""


def facts(project: Path) -> dict[str, Any]:
    """Everything that the stores and folders of `project` say of its study `s`."""
    names = _names(project / "mlflow.db")
    return {
        key: value
        for part in (_optuna(project), _mlflow(project, names), _files(project, names))
        for key, value in part
    }


def stable(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The facts that two undisturbed searches share; of the others, that they are there."""
    if one.keys() != other.keys():
        raise AssertionError(f"two searches leave different facts: {one.keys() ^ other.keys()}")
    return {key: _shared(value, other[key]) for key, value in one.items()}


def _shared(one: Any, other: Any) -> Any:
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [_shared(*pair) for pair in zip(one, other, strict=True)]
    return one if one == other else VARIES


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Sentences on what is missing, what is too much, and what is different."""
    lines = [f"missing: {key}" for key in expected.keys() - found.keys()]
    lines += [f"too much: {key} = {found[key]!r}" for key in found.keys() - expected.keys()]
    for key in expected.keys() & found.keys():
        if not _equal(found[key], expected[key]):
            lines.append(f"{key}: {found[key]!r} instead of {expected[key]!r}")
    return sorted(lines)


def _equal(one: Any, other: Any) -> bool:
    if other is VARIES:
        return True
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-5) or (math.isnan(one) and math.isnan(other))
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


@contextlib.contextmanager
def _reading(database: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        if connection.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
            raise AssertionError(f"{database.name} is damaged")
        yield connection


def _optuna(project: Path) -> Iterable[tuple[str, Any]]:
    with _reading(project / "mlruns" / "optuna.db") as db:
        for (name,) in db.execute("SELECT study_name FROM studies"):
            yield f"optuna: study {name}", 1
        for key, value in db.execute("SELECT key, value_json FROM study_user_attributes"):
            yield f"optuna: study attribute {key}", value
        trials = db.execute("SELECT trial_id, number, state FROM trials").fetchall()
        for number, n in Counter(number for _, number, _ in trials).items():
            yield f"optuna: trial {number} rows", n
        for trial, number, state in trials:
            who = f"optuna: trial {number}"
            yield f"{who} state", state
            for name, value in _rows(db, "trial_params", "param_name, param_value", trial):
                yield f"{who} param {name}", value
            for objective, value in _rows(db, "trial_values", "objective, value", trial):
                yield f"{who} value {objective}", value
            columns = "step, intermediate_value"
            for step, value in _rows(db, "trial_intermediate_values", columns, trial):
                yield f"{who} step {step}", value
            for name, value in _rows(db, "trial_user_attributes", "key, value_json", trial):
                yield from _attribute(f"{who} attribute {name}", json.loads(value))


def _attribute(key: str, value: Any) -> Iterable[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield key, value
        return
    for name, inner in value.items():
        yield f"{key}.{name}", inner


def _rows(db: sqlite3.Connection, table: str, columns: str, trial: int) -> list[Any]:
    return db.execute(f"SELECT {columns} FROM {table} WHERE trial_id = ?", (trial,)).fetchall()


def _names(database: Path) -> dict[str, str]:
    """Run or model id -> a name that is the same in two searches."""
    names: dict[str, str] = {}
    with _reading(database) as db:
        rows = db.execute("SELECT run_uuid, name FROM runs ORDER BY start_time, run_uuid")
        for run, name in rows.fetchall():
            names[run] = _unused(f"run {name}", names)
        rows = db.execute("SELECT model_id, source_run_id FROM logged_models ORDER BY model_id")
        for model, run in rows.fetchall():
            names[model] = _unused(f"model of {names.get(run, run)}", names)
    return names


def _unused(name: str, names: dict[str, str]) -> str:
    taken, n = set(names.values()), 1
    while (unused := name if n == 1 else f"{name} #{n}") in taken:
        n += 1
    return unused


def _mlflow(project: Path, names: dict[str, str]) -> Iterable[tuple[str, Any]]:
    def plain(value: Any) -> Any:
        text = value.replace(str(project), "PROJECT") if isinstance(value, str) else value
        for key, name in names.items():
            text = text.replace(key, name) if isinstance(text, str) else text
        return text

    with _reading(project / "mlflow.db") as db:
        for name, stage in db.execute("SELECT name, lifecycle_stage FROM experiments"):
            yield f"mlflow: experiment {name}", stage
        for key, value in db.execute("SELECT key, value FROM experiment_tags"):
            yield f"mlflow: experiment tag {key}", plain(value)
        for run, status, stage in db.execute("SELECT run_uuid, status, lifecycle_stage FROM runs"):
            yield f"mlflow: {names[run]} status", (status, stage)
        for table, what in (("params", "param"), ("tags", "tag")):
            for run, key, value in db.execute(f"SELECT run_uuid, key, value FROM {table}"):
                # A trial that was the best for a while says so where MLflow saw it.
                if (key, value) != ("sweep.best", "false"):
                    yield f"mlflow: {names[run]} {what} {key}", plain(value)
        points: dict[str, list[float]] = {}
        for run, key, step, value in db.execute("SELECT run_uuid, key, step, value FROM metrics"):
            points.setdefault(f"mlflow: {names[run]} metric {key} step {step}", []).append(value)
        for key, values in points.items():
            yield key, sorted(values)
        for run, key, value in db.execute("SELECT run_uuid, key, value FROM latest_metrics"):
            yield f"mlflow: {names[run]} latest {key}", value
        models = dict(db.execute(f"SELECT model_id, status FROM logged_models {THERE}"))
        for model, status in models.items():
            yield f"mlflow: {names[model]} status", status
        pairs = Counter(
            (plain(source), plain(destination), kind)
            for source, destination, kind in db.execute(
                "SELECT source_id, destination_id, destination_type FROM inputs"
            )
            if kind != "MODEL_OUTPUT" or destination in models
        )
        kinds = Counter((d if "run" in str(d) else "", k) for _, d, k in pairs.elements())
        for (to, kind), n in kinds.items():
            yield f"mlflow: {kind} {to}: inputs", n


def _files(project: Path, names: dict[str, str]) -> Iterable[tuple[str, Any]]:
    for folder, _, files in os.walk(project):
        for name in files:
            path = str(Path(folder, name).relative_to(project))
            for key, known in names.items():
                path = path.replace(key, f"<{known}>")
            if not path.endswith(("-shm", "-wal", "sweep.log")):
                yield f"file: {path}", _content(Path(folder, name))


def _content(file: Path) -> Any:
    """What is compared of a file: a checkpoint's weights, whether an archive is whole."""
    if file.suffix == ".ckpt":
        weights = torch.load(file, weights_only=True)["state_dict"]
        return [[name, *map(float, _sizes(w.double()))] for name, w in sorted(weights.items())]
    if file.suffix == ".pt2":
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() or [part.filename for part in archive.infolist()]
    return 1


def _sizes(weight: Any) -> tuple[Any, Any]:
    """Two numbers that change with a weight, and little with its last digits."""
    order = torch.arange(1, weight.numel() + 1, dtype=weight.dtype)
    return weight.norm(), (weight.flatten().abs() * order).sum()
