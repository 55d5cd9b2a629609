"""Source files of the user's module and data, found and read without importing them."""

from __future__ import annotations

import contextlib
import hashlib
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.errors import did_you_mean

if TYPE_CHECKING:
    import ast


def source_of(path: str) -> Path | None:
    """The file of `package.module:name` or `file.py:name`; None if it is not found."""
    module, _, _ = path.rpartition(":")
    if module.endswith(".py"):
        return Path(module) if Path(module).is_file() else None
    parts = Path(*module.split("."))
    for folder in (".", *sys.path):
        for file in (Path(folder, f"{parts}.py"), Path(folder, parts, "__init__.py")):
            if file.is_file():
                return file
    return None


def unknown_name(path: str) -> str | None:
    """Why `package.module:name` cannot be found, as far as the source file alone can tell.

    A sentence's end, as `loading.import_object` would say it; None: it may be there.
    """
    module, _, name = path.rpartition(":")
    file = source_of(path)
    if file is None:
        return (
            f" cannot be imported: there is no file {module}" if module.endswith(".py") else None
        )
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    dynamic = r"import \*|__getattr__|globals\(\)|setattr"
    if re.search(rf"\b{re.escape(name)}\b|{dynamic}", text):
        return None
    names = re.findall(r"^(?:class|def)\s+(\w+)", text, re.MULTILINE)
    return f": module {module} has no {name!r}{did_you_mean(name, names)}"


def digest_of(path: str) -> str | None:
    """32 hex digits of the source file's content; None if it is not found."""
    file = source_of(path)
    if file is not None:
        with contextlib.suppress(OSError):
            return hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()
    return None


def source_tags(paths: Mapping[str, str]) -> dict[str, str]:
    """A tag for each role (module, data) whose source file is found: its digest."""
    found = {role: digest_of(path) for role, path in paths.items() if ":" in path}
    return {f"sweep.source.{role}": digest for role, digest in found.items() if digest}


def changes(paths: Mapping[str, str], before: Mapping[str, str]) -> list[str]:
    """One sentence for each source file that has changed since the tags `before`."""
    now = source_tags(paths)
    found = [
        f"{source_of(path)} has changed since the study's last search: its trials are of both"
        for role, path in paths.items()
        if (tag := f"sweep.source.{role}") in now and before.get(tag, now[tag]) != now[tag]
    ]
    return [*dict.fromkeys(found)]


def calls_mlflow(path: str) -> bool:
    """Whether the source file imports MLflow as it is imported."""
    file = source_of(path)
    if file is not None:
        with contextlib.suppress(OSError):
            return re.search(rb"^(import|from) mlflow\b", file.read_bytes(), re.M) is not None
    return False


def defines(path: str, method: str) -> bool:
    """Whether the class `path` names, or a base class in the same file, defines a method."""
    tree, name = _tree(path), path.rpartition(":")[2]
    return next(_methods(tree, name, method), None) is not None


def defaults_of(path: str) -> dict[str, Any]:
    """The plain default values in the signature of a class's constructor, or of a function.

    Those of base classes in the same file count for a class that has no constructor of its own.
    """
    import ast  # which `--help` does not need

    tree, name = _tree(path), path.rpartition(":")[2]
    functions = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name)
    function = next(functions, None) or next(_methods(tree, name, "__init__"), None)
    if function is None:
        return {}
    taken = function.args
    named = [*taken.posonlyargs, *taken.args]
    pairs = [*zip(named[len(named) - len(taken.defaults) :], taken.defaults, strict=True)]
    pairs += [(a, v) for a, v in zip(taken.kwonlyargs, taken.kw_defaults, strict=True) if v]
    found = {}
    for argument, value in pairs:
        with contextlib.suppress(ValueError):
            found[argument.arg] = ast.literal_eval(value)
    return found


def _tree(path: str) -> ast.Module:
    """The source file of `package.module:name`; an empty one if it cannot be read."""
    import ast

    file = source_of(path)
    try:
        return ast.parse(file.read_bytes() if file is not None else b"")
    except (OSError, SyntaxError, ValueError):
        return ast.parse("")


def _methods(tree: ast.Module, name: str, method: str) -> Iterator[ast.FunctionDef]:
    """A method of a class and of its bases in the same file, nearest first."""
    import ast

    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    names, seen = [name], set[str]()
    while names:
        node = classes.get(name := names.pop(0))
        if node is None or name in seen:
            continue
        seen.add(name)
        yield from (
            part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == method
        )
        names += [base.id for base in node.bases if isinstance(base, ast.Name)]
