"""Who may import what, read from the source: the walls between the rooms."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sweep"
MODULES = sorted(PACKAGE.rglob("*.py"))

MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "click": ("sweep.cli",),
    "optuna": (
        "sweep.space",
        "sweep.proposals",
        "sweep.ledger",
        "sweep.replacing",
        "sweep.storage",
        "sweep.tpe",
        "sweep.known_trials",
        "sweep.trial_rows",
        "sweep.warmstart",
    ),
    "torch": ("sweep.training", "sweep.reuse", "sweep.tracking.model"),
    "torchmetrics": ("sweep.training",),
    "lightning": ("sweep.training", "sweep.reuse"),
    "mlflow": ("sweep.tracking",),
    "rich": ("sweep.reporting",),
    "sklearn": ("sweep.datasets",),
    "pooch": ("sweep.datasets", "sweep.download"),
    "sqlalchemy": (
        "sweep.sqlite",
        "sweep.postgres",
        "sweep.storage",
        "sweep.table_rows",
        "sweep.trial_rows",
        "sweep.tracking.at_once",
        "sweep.tracking.store",
    ),
    "psycopg": (),
    "ray": ("sweep.executors.ray",),
    "pytest": (),
    "hypothesis": (),
}
"""Library -> rooms that may import it, at the top or inside a function."""
LEVELS: tuple[tuple[str, ...], ...] = (
    ("sweep.__main__",),
    ("sweep.cli",),
    ("sweep.api", "sweep.doctor", "sweep.reuse"),
    ("sweep.study",),
    (
        "sweep.driver",
        "sweep.recovery",
        "sweep.recollection",
        "sweep.retention",
        "sweep.warmstart",
        "sweep.housekeeping",
        "sweep.tracking",
        "sweep.reporting",
    ),
    ("sweep.executors", "sweep.proposals", "sweep.ledger"),
    ("sweep.storage", "sweep.replacing", "sweep.trial_rows", "sweep.tpe", "sweep.known_trials"),
    ("sweep.training", "sweep.space"),
    ("sweep.config", "sweep.parsers"),
    (
        "sweep.datasets",
        "sweep.imports",
        "sweep.sqlite",
        "sweep.postgres",
        "sweep.redact",
        "sweep.provenance",
        "sweep.table_rows",
    ),
    (
        "sweep.trial",
        "sweep.objective",
        "sweep.agenda",
        "sweep.recorder",
        "sweep.trial_files",
        "sweep.endings",
        "sweep.options",
        "sweep.errors",
        "sweep.document",
        "sweep.idx",
        "sweep.download",
        "sweep.cache",
        "sweep.signals",
        "sweep.surroundings",
    ),
)
"""Arrows point down or stay on a level."""


@dataclass(frozen=True)
class Import:
    """One import of a module."""

    by: str
    what: str
    is_at_top: bool

    def __str__(self) -> str:
        return f"{self.by} imports {self.what}"


def name_of(path: Path) -> str:
    """sweep/space/naming.py -> sweep.space.naming; a package's __init__ has its name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_typing_only(node: ast.AST) -> bool:
    """Whether this is `if TYPE_CHECKING:`."""
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports_below(node: ast.AST, by: str, is_at_top: bool) -> Iterator[Import]:
    """Every import that runs, with functions' own."""
    for child in ast.iter_child_nodes(node):
        if is_typing_only(child):
            continue
        if isinstance(child, ast.Import):
            yield from (Import(by, alias.name, is_at_top) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{by}: imports are absolute"
            if child.module == "sweep":
                yield from (Import(by, f"sweep.{a.name}", is_at_top) for a in child.names)
            else:
                yield Import(by, child.module or "", is_at_top)
        is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from imports_below(child, by, is_at_top and not is_function)


def tree_of(path: Path) -> ast.Module:
    """The module's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"))


IMPORTS = [i for path in MODULES for i in imports_below(tree_of(path), name_of(path), True)]


def is_within(name: str, room: str) -> bool:
    """Whether a module belongs to a room."""
    return name == room or name.startswith(f"{room}.")


def level_of(name: str) -> int | None:
    """Which level a module of ours is on, from the top; None: on none (`sweep` itself)."""
    for level, rooms in enumerate(LEVELS):
        if any(is_within(name, room) for room in rooms):
            return level
    return None


@pytest.mark.parametrize("library", MAY_IMPORT)
def test_libraries_stay_in_their_rooms(library: str) -> None:
    """Each heavy library is imported only where it belongs."""
    strays = [
        str(i)
        for i in IMPORTS
        if is_within(i.what, library)
        and not any(is_within(i.by, room) for room in MAY_IMPORT[library])
    ]
    assert strays == []


def test_arrows_point_one_way() -> None:
    """No room imports one above it."""
    upward = []
    for i in IMPORTS:
        above, below = level_of(i.by), level_of(i.what)
        if above is not None and below is not None and below < above:
            upward.append(str(i))
    assert upward == []


def test_every_room_is_on_a_level() -> None:
    """A new room is placed on purpose."""
    rooms = {".".join(name_of(path).split(".")[:2]) for path in MODULES}
    placed = {room for level in LEVELS for room in level}
    assert rooms - placed == {"sweep", "sweep.testing"}


def test_nobody_imports_the_command_line() -> None:
    """The library does not know that there is one."""
    assert [
        str(i)
        for i in IMPORTS
        if is_within(i.what, "sweep.cli")
        and not is_within(i.by, "sweep.cli")
        and i.by != "sweep.__main__"
    ] == []


def test_nobody_imports_the_test_helpers() -> None:
    """They are for tests, ours and others'."""
    assert [str(i) for i in IMPORTS if i.what == "sweep.testing"] == []


def test_only_the_command_line_prints_or_exits() -> None:
    """The core returns values and raises."""
    strays = []
    for path in MODULES:
        name = name_of(path)
        if is_within(name, "sweep.cli") or name == "sweep.executors.worker":
            continue  # a worker is a process of its own: it leaves when its driver is gone
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "print", "exit", "quit", "sys.exit", "os._exit",
            ):  # fmt: skip
                strays.append(f"{name}:{node.lineno}")
    assert strays == []


@pytest.mark.parametrize(
    "module",
    [
        "sweep", "sweep.trial", "sweep.errors", "sweep.options", "sweep.config", "sweep.testing",
        "sweep.training", "sweep.executors", "sweep.executors.worker", "sweep.cli", "sweep.space",
    ],
)  # fmt: skip
def test_light_modules_load_nothing_heavy(module: str) -> None:
    """What driver, workers and the command line share costs next to nothing to import."""
    heavy = ("torch", "lightning", "mlflow", "optuna", "numpy", "sklearn", "rich")
    program = f"import sys, {module}; print([m for m in {heavy!r} if m in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_say_what_they_are(path: Path) -> None:
    """A docstring at the top, and at most 500 lines."""
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) <= 500
