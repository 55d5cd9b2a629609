"""The arguments of a user's class or function, checked and built as LightningCLI does.

jsonargparse, LightningCLI's parser, checks types and makes nested objects (`net=`, callables such
as `optimizer=`, dataclasses) anew for each call. Only arguments that were given are passed: all
others keep the constructor's own defaults.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import inspect
import os
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from jsonargparse import ArgumentError
from lightning.pytorch.cli import LightningArgumentParser

from sweep.errors import ConfigError, must_be_one_of
from sweep.loading import import_object
from sweep.training.checkpoints import is_plain

Tree = dict[str, Any]
"""Arguments by name; a nested object is {"class_path": ..., "init_args": {...}}."""
_COLLECTING = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")
_TYPE_FAULT = re.compile(r"Expected a <class '([\w.]+)'>\. Got value: (.*)", re.DOTALL)


class Arguments:
    """What a class or a function takes, and its calls.

    Args:
        section: First part of its dotted names, e.g. "model" for `model.lr`.
        name: Its name for messages, e.g. "net:Net".
        made_by: The class or function; an instance takes no arguments and is copied.
        skip: Arguments set by sweep itself.
    """

    def __init__(self, section: str, name: str, made_by: Any, skip: Collection[str] = ()) -> None:
        self.section, self.name, self.made_by = section, name, made_by
        is_partial = isinstance(made_by, functools.partial)
        is_made = inspect.isclass(made_by) or inspect.isroutine(made_by) or is_partial
        self.is_instance = not is_made
        self._signature = _signature(made_by) if not self.is_instance else {}
        self._factories = {n for n, p in self._signature.items() if _is_factory(p.annotation)}
        """Arguments for an optimizer's or a schedule's class: it is made once the weights are."""
        self._has_any = any(p.kind is p.VAR_KEYWORD for p in self._signature.values())
        self._parser = LightningArgumentParser(exit_on_error=False)
        known: Iterable[str] = ()
        how: dict[str, Any] = {"fail_untyped": False, "skip": {*skip, *self._factories}}
        with _only_libraries():
            if inspect.isclass(made_by):
                add = functools.partial(self._parser.add_class_arguments, instantiate=False)
                known = add(made_by, section, **how)
            elif inspect.isroutine(made_by):
                known = self._parser.add_function_arguments(made_by, section, **how)
        self._checked = {name.split(".")[1] for name in known}
        """Arguments whose types jsonargparse found; others are passed as they are."""
        named = [p.name for p in self._signature.values() if p.kind not in _COLLECTING]
        found = [name for name in self._checked if name not in named]  # from a base's constructor
        self.names = tuple(n for n in (*named, *sorted(found)) if n not in skip)
        """Arguments with a name."""

    def takes(self, path: str) -> bool:
        """Whether `path` (a dotted name without the section) names an argument or a part of one.

        Arguments collected by `**kwargs` count if nothing tells their names.
        """
        first = path.partition(".")[0]
        return first in self.names or (self._has_any and "." not in path)

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Plain default values (numbers, words, lists of them) by argument."""
        return {
            name: p.default
            for name, p in self._signature.items()
            if name in self.names and p.default is not None and is_plain(p.default)
        }

    @property
    def required(self) -> list[str]:
        """Arguments without a default."""
        return [p.name for p in self._signature.values() if self._is_missing(p, ())]

    def name_faults(self, names: Collection[str]) -> list[str]:
        """One sentence for each unknown or missing argument; `names` are the given ones."""
        unknown = [self._unknown(name) for name in sorted(names) if not self.takes(name)]
        parameters = self._signature.values()
        return unknown + [self._missing(p) for p in parameters if self._is_missing(p, names)]

    def type_faults(self, tree: Tree) -> list[str]:
        """One sentence for each argument of another type than its annotation's."""
        found = [
            f"{self.section}.{name}: {fault}"
            for name in tree.keys() & self._factories
            if (fault := _factory(tree[name])[1])
        ]
        left = {name: value for name, value in tree.items() if name in self._checked}
        while left:
            try:
                self._parse(left)
            except ArgumentError as error:
                text = str(error)
                guilty = next((n for n in left if f'"{self.section}.{n}' in text), None)
                if guilty is None:
                    found += [] if "required" in text else [f"{self.name}: {_one_line(text)}"]
                    break
                found.append(self._ill_typed(guilty, left.pop(guilty), text))
            else:
                break
        return found

    def call(self, tree: Tree) -> Any:
        """The object, made with the arguments in `tree`. Raises any error of the user's code."""
        if self.is_instance:
            return copy.deepcopy(self.made_by)
        return self.made_by(**self.values(tree))

    def values(self, tree: Tree) -> dict[str, Any]:
        """The arguments of `tree`, nested objects made. Raises any error of the user's code."""
        checked = {name: value for name, value in tree.items() if name in self._checked}
        extra = {
            name: _factory(value)[0] if name in self._factories else value
            for name, value in tree.items()
            if name not in self._checked
        }
        if not checked:
            return extra
        made = self._parser.instantiate(self._parse(checked))[self.section]
        return {name: made[name] for name in checked} | extra

    def completed(self, tree: Tree) -> Tree:
        """`tree` with the class path of each nested object that lacks one.

        It is the class of the argument's default or annotation: `optimizer.lr` of an
        argument `optimizer=torch.optim.Adam` needs no more.
        """
        return {name: self._completed(name, value) for name, value in tree.items()}

    def _completed(self, name: str, value: Any) -> Any:
        if not isinstance(value, Mapping) or "class_path" in value:
            return value
        found = _class_of(self._signature[name]) if name in self._signature else None
        if found is None or (name in self._factories and _needs_another(found)):
            return value
        inner = {k: v for k, v in value.items() if k not in _CLASS_KEYS}
        path = f"{found.__module__}.{found.__qualname__}"
        return {"class_path": path, "init_args": {**value.get("init_args", {}), **inner}}

    def _parse(self, tree: Tree) -> Any:
        with _only_libraries():
            return self._parser.parse_object({self.section: tree}, defaults=False)

    def _is_missing(self, p: inspect.Parameter, names: Collection[str]) -> bool:
        return p.kind not in _COLLECTING and p.default is p.empty and p.name not in names

    def _missing(self, p: inspect.Parameter) -> str:
        if p.kind is p.POSITIONAL_ONLY:
            return f"{self.name} takes {p.name!r} by position only, but gets keywords"
        return (
            f"{self.name} needs {p.name!r}, which nothing gives: say --set "
            f"{self.section}.{p.name}=..., or put it under parameters or fixed in the search space"
        )

    def _unknown(self, name: str) -> str:
        if not self.names:
            return f"{self.name} takes no {name!r}, nor any other"
        return must_be_one_of(f"an argument of {self.name}", name, self.names)

    def _ill_typed(self, name: str, value: Any, text: str) -> str:
        match = _TYPE_FAULT.search(text)
        if match and "\n" not in match[2].strip():
            kind = match[1].rpartition(".")[2]
            what = {"int": "a whole number", "float": "a number", "str": "text"}.get(kind, kind)
            return f"{self.section}.{name} must be {what}, but got {value!r}"
        said = _one_line(text.partition("\n")[2] or text)
        return f"{self.section}.{name}: {said}"


@contextlib.contextmanager
def _only_libraries() -> Iterator[None]:
    """Within, Python processes do not import from the current folder.

    For types of libraries jsonargparse asks a new one for its path, which imports `json`.
    """
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        del os.environ["PYTHONSAFEPATH"]
        if before is not None:
            os.environ["PYTHONSAFEPATH"] = before


def put(tree: Tree, path: str, value: Any) -> None:
    """Set `value` at a dotted `path`, within `init_args` where a class is named.

    >>> tree = {"net": {"class_path": "nets.Deep", "init_args": {"depth": 3}}}
    >>> put(tree, "net.width", 8)
    >>> tree["net"]["init_args"]
    {'depth': 3, 'width': 8}
    """
    first, _, rest = path.partition(".")
    if first not in _CLASS_KEYS and "class_path" in tree:
        tree = tree.setdefault("init_args", {})
    if not rest:
        tree[first] = list(value) if isinstance(value, tuple) else value
        return
    inner = tree.get(first)
    if isinstance(inner, str):  # the name of a class, as LightningCLI allows
        inner = {"class_path": inner}
    tree[first] = dict(inner) if isinstance(inner, Mapping) else {}
    if isinstance(tree[first].get("init_args"), Mapping):
        tree[first]["init_args"] = dict(tree[first]["init_args"])
    put(tree[first], rest, value)


def _is_factory(annotation: Any) -> bool:
    """Whether an annotation names optimizers or schedules, which need the module's weights first.

    Projects write `optimizer: torch.optim.Optimizer` for a `functools.partial` of one, and
    `scheduler: torch.optim.lr_scheduler` for that of a schedule.
    """
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    kinds = typing.get_args(annotation) if is_union else (annotation,)
    bases = (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler)
    return any(
        kind is torch.optim.lr_scheduler
        or (typing.get_origin(kind) is None and inspect.isclass(kind) and issubclass(kind, bases))
        for kind in kinds
    )


def _needs_another(found: type) -> bool:
    """Whether a class is but the base of optimizers or schedules."""
    return found in (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler)


def _factory(value: Any) -> tuple[Any, str]:
    """The class in {"class_path": ..., "init_args": ...} with its arguments; or a fault."""
    given: Any = {"class_path": value} if isinstance(value, str) else value
    if not isinstance(given, Mapping) or "class_path" not in given:
        is_lacking = isinstance(given, Mapping)
        return value, "it needs its class_path, such as torch.optim.Adam" if is_lacking else ""
    package, _, name = str(given["class_path"]).rpartition(".")
    if not package:  # a name alone, as LightningCLI allows
        package = "torch.optim" if hasattr(torch.optim, name) else "torch.optim.lr_scheduler"
    try:
        made_by = import_object(f"{package}:{name}", "class_path")
    except ConfigError as error:
        return value, str(error)
    arguments = {**given.get("init_args", {}), **given.get("dict_kwargs", {})}
    return functools.partial(made_by, **arguments), ""


def _class_of(parameter: inspect.Parameter) -> type | None:
    """The class that a nested object has unless another is named."""
    default = parameter.default
    if isinstance(default, functools.partial):
        default = default.func
    if inspect.isclass(default) and default is not parameter.empty:
        return default
    annotation = parameter.annotation
    if not inspect.isclass(annotation) or annotation.__module__ == "builtins":
        return None
    is_other = dataclasses.is_dataclass(annotation) or inspect.isabstract(annotation)
    return None if is_other or annotation is parameter.empty else annotation


def _signature(made_by: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(made_by, eval_str=True).parameters
    except NameError:  # a name that only type checkers import
        return inspect.signature(made_by).parameters
    except (TypeError, ValueError):  # written in C
        return {}


def _one_line(text: str) -> str:
    return " ".join(text.split())
