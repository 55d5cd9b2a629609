"""Who may import what, read from the source: the walls between the rooms."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sweep"
MODULES = sorted(PACKAGE.rglob("*.py"))
TEST_MODULES = sorted((ROOT / "tests").rglob("*.py"))

MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "click": ("sweep.cli",),
    "optuna": (
        "sweep.space",
        "sweep.ledger",
        "sweep.search.proposals",
        "sweep.search.samplers",
        "sweep.search.pruners",
        "sweep.search.known_trials",
        "sweep.search.warmstart",
    ),
    "torch": (
        "sweep.training",
        "sweep.reuse",
        "sweep.tracking.model",
        "sweep.data.tensors",
        "sweep.data.rows",
    ),
    "torchmetrics": ("sweep.training",),
    "lightning": ("sweep.training", "sweep.reuse", "sweep.data.datamodule"),
    "mlflow": ("sweep.tracking",),
    "rich": ("sweep.reporting",),
    "sklearn": ("sweep.data.catalog",),
    "pooch": ("sweep.data.catalog", "sweep.data.download"),
    "sqlalchemy": ("sweep.databases", "sweep.ledger.storage", "sweep.tracking.store"),
    "psycopg": (),
    "ray": ("sweep.executors.ray", "sweep.executors.station"),
    "pytest": (),
    "hypothesis": (),
}
"""Library -> rooms that may import it, at the top or inside a function."""
TABLES = ("sweep.search.samplers", "sweep.search.pruners")
"""Records that every room may read: they count as rooms of their own, below `config`."""
PRIVATE: dict[str, tuple[str, str]] = {
    "torch._check": (
        "sweep.training.exports",
        "what torch.export's guide says for sizes that come from data; without it a model is "
        "exported for its own shape",
    ),
    "trainer.fit_loop._res": (  # _resuming_from_checkpoint, _restarting
        "sweep.training.plain.fit",
        "a resumed trial begins an epoch as any other: a DataLoader draws its order anew, and "
        "with max_steps the epoch is not taken for one that was broken off",
    ),
}
"""Private names of other libraries (their beginnings) -> the module that uses them, and why."""


PROCESSES = ("sweep.executors.worker", "sweep.environment.processes")


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


def imports_below(node: ast.AST, by: str, is_at_top: bool) -> Iterator[Import]:
    """Every import that runs, with functions' own."""
    for child in ast.iter_child_nodes(node):
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


def room_of(name: str) -> str:
    """sweep.space.naming -> sweep.space."""
    return name if name in TABLES else ".".join(name.split(".")[:2])


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


def test_no_two_rooms_import_each_other() -> None:
    """Nor by way of others: rooms can be put in an order, imports for types included."""
    modules = {name_of(path) for path in MODULES}
    below: dict[str, set[str]] = {room_of(name): set() for name in modules}
    for i in IMPORTS:
        what = i.what if i.what in modules else i.what.rpartition(".")[0]
        if what in modules and room_of(i.by) != room_of(what):
            below[room_of(i.by)].add(room_of(what))
    while free := [room for room in below if not below[room]]:
        below = {room: rest - {*free} for room, rest in below.items() if room not in free}
    assert below == {}


def private_names() -> Iterator[tuple[str, str]]:
    """(module, expression) of each private name that is not defined in this package."""
    nodes = [(name_of(path), node) for path in MODULES for node in ast.walk(tree_of(path))]
    own = {n.name for _, n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    own |= {n.id for _, n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    own |= {n.attr for _, n in nodes if isinstance(n, ast.Attribute) and is_own_attribute(n)}
    for module, node in nodes:
        if isinstance(node, ast.Attribute) and node.attr not in own:
            if is_private(node.attr) and ast.unparse(node) != "os._exit":
                yield module, ast.unparse(node)
        elif isinstance(node, ast.Import):
            yield from ((module, a.name) for a in node.names if is_private(a.name))
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("sweep"):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ((module, name) for name in names if is_private(name))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr"):
            name = node.args[1].value if isinstance(node.args[1], ast.Constant) else ""
            if is_private(str(name)):
                yield module, ast.unparse(node)


def is_own_attribute(node: ast.Attribute) -> bool:
    """Whether this sets an attribute of self or cls."""
    is_set = isinstance(node.ctx, ast.Store)
    return is_set and isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def is_private(dotted: str) -> bool:
    """Whether a part of the name begins with one underscore."""
    return any(p.startswith("_") and not p.startswith("__") for p in dotted.split("."))


def test_other_libraries_are_used_by_their_public_doors() -> None:
    """Their private names stay where they are listed, each with its reason."""
    used = {(module, name) for module, name in private_names()}
    known = {(module, begin) for begin, (module, _) in PRIVATE.items()}
    strays = [u for u in used if not any(u[0] == m and u[1].startswith(b) for m, b in known)]
    assert sorted(strays) == []
    assert all(any(u[0] == m and u[1].startswith(b) for u in used) for m, b in known)
    assert len(known) <= 3


def test_no_two_classes_share_a_name() -> None:
    """No two classes of the package share a name."""
    names = Counter(
        node.name
        for path in MODULES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, n in names.items() if n > 1] == []


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
        if is_within(name, "sweep.cli") or name in PROCESSES:
            continue  # processes of their own leave when their parent is gone
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "print", "exit", "quit", "sys.exit", "os._exit",
            ):  # fmt: skip
                strays.append(f"{name}:{node.lineno}")
    assert strays == []


@pytest.mark.parametrize(
    "module",
    [
        "sweep", "sweep.trial", "sweep.errors", "sweep.hyperparameters", "sweep.config.settings",
        "sweep.testing",
        "sweep.search.samplers", "sweep.search.pruners", "sweep.search.tasks",
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


@pytest.mark.parametrize("path", [*MODULES, *TEST_MODULES], ids=name_of)
def test_modules_say_what_they_are(path: Path) -> None:
    """A docstring at the top, and at most 500 lines."""
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) <= 500
