"""What a user's source looks at: is a parameter read at all?"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

from sweep.loading import is_users_file
from sweep.trial import Task


def sources(made_by: Any) -> Iterator[str]:
    """Source text of a class with its bases, or of a function; only the user's own."""
    for one in made_by.__mro__ if inspect.isclass(made_by) else (made_by,):
        try:
            file = inspect.getsourcefile(one)
            if file is not None and is_users_file(file):
                yield textwrap.dedent(inspect.getsource(one))
        except (OSError, TypeError):
            continue


def is_read(made_by: Any, name: str) -> bool:
    """Whether the user's code may look at an argument of that name; True if nobody can say."""
    found = [*sources(made_by)]
    try:
        inspect.getsource(made_by)
    except (OSError, TypeError):  # such as a class of a notebook's cell
        return True
    return not found or any(_reads(ast.parse(source), name) for source in found)


def _reads(tree: ast.AST, name: str) -> bool:
    kept = {
        id(node.value)
        for node in ast.walk(tree)  # `self.name = name` keeps the value, and reads nothing
        if isinstance(node, ast.Assign) and all(isinstance(t, ast.Attribute) for t in node.targets)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            values = [*node.args, *(keyword.value for keyword in node.keywords)]
            if any(isinstance(v, ast.Attribute) and v.attr == "hparams" for v in values):
                return True
        is_load = isinstance(getattr(node, "ctx", None), ast.Load) and id(node) not in kept
        if is_load and name in (getattr(node, "id", None), getattr(node, "attr", None)):
            return True
        if isinstance(node, ast.Constant) and node.value == name:
            return True
    return False


def ignored_names(function: Any, task: Task) -> list[str]:
    """One sentence for each parameter that a function of parameters never looks at."""
    return [
        f"{task.module} ignores {name}: nothing in it reads {name!r}"
        for name in task.names or ()
        if not is_used(function, name)
    ]


def is_used(function: Any, name: str) -> bool:
    """Whether a function names a parameter, or hands all of them on; True if nobody can say."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        taken = next(iter(inspect.signature(function).parameters))
    except (OSError, TypeError, ValueError, SyntaxError, StopIteration):
        return True
    if _reads(tree, name):
        return True
    of_one = {id(taker) for node in ast.walk(tree) if (taker := _asked_by_name(node))}
    return any(
        isinstance(node, ast.Name) and node.id == taken and id(node) not in of_one
        for node in ast.walk(tree)
    )


def _asked_by_name(node: ast.AST) -> ast.expr | None:
    """`params` in `params["lr"]` and `params.get("lr")`, where the name stands there."""
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        return node.value
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        is_get = node.func.attr in ("get", "pop") and node.args
        if is_get and isinstance(node.args[0], ast.Constant):
            return node.func.value
    return None
