"""A YAML file as nodes that remember their lines, and the faults found in it.

PyYAML follows YAML 1.1, where `1e-3` is text and `no` is false. Here scalars are resolved by
YAML 1.2's core schema (https://yaml.org/spec/1.2.2/#1032-tag-resolution). Nothing but plain
values is ever built: no tags, no anchors, so that no file can run code or grow without bound.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Final

import yaml

from sweep.errors import SpaceError

BROKEN: Final = object()
"""Value of a node whose fault is already reported: later checks pass over it in silence."""

_TAG = "tag:yaml.org,2002:"
_MAX_DEPTH = 20
_SCALARS: tuple[tuple[str, str, str], ...] = (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
)


@dataclass(frozen=True, slots=True)
class Node:
    """One value of the file."""

    line: int
    """Line of the value, from 1; inside a mapping the line of its key."""
    value: Any
    """str, int, float, bool, None, list[Node], dict[str, Node] or BROKEN."""


class Faults:
    """Collects faults, so that a bad file is told all of them at once."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._found: list[tuple[int, str]] = []

    def __len__(self) -> int:
        return len(self._found)

    def add(self, line: int, sentence: str) -> None:
        """Note one fault at `line` (from 1)."""
        self._found.append((line, sentence))

    def raise_if_any(self) -> None:
        """Raises SpaceError with every fault, in the order of the lines."""
        if self._found:
            ordered = sorted(self._found, key=lambda fault: fault[0])
            raise SpaceError(f"{self.source}:{line}: {text}" for line, text in ordered)


class _Loader(yaml.SafeLoader):
    """Composes nodes under YAML 1.2's core schema; refuses aliases."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Aliases are refused: they are how ten lines of YAML become a billion values."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(
                problem="an alias (*name) is not supported here: write the value out",
                problem_mark=event.start_mark,
            )
        return super().compose_node(parent, index)


for _name, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(
        _TAG + _name, re.compile(f"^(?:{_pattern})$"), [c if c != "\0" else "" for c in _first]
    )


def read_document(text: str, faults: Faults) -> Node:
    """The root of the one YAML document in `text`.

    Duplicate keys, tags and numbers that are not finite go to `faults`. Raises SpaceError at
    once where the text is not YAML at all, or empty.
    """
    try:
        root = _compose(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        faults.add(line, f"must be text, but got the character {error.character!r}")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(part for part in (error.context, error.problem) if part)
        faults.add(mark.line + 1 if mark else 1, f"must be valid YAML, but: {problem}")
    except RecursionError:
        faults.add(1, f"must be nested at most {_MAX_DEPTH} deep")
    else:
        if root is not None:
            return _node(root, faults, root.start_mark.line + 1, 0)
        faults.add(1, "must have a section 'parameters', but the file is empty")
    faults.raise_if_any()
    raise AssertionError("unreachable")


def _compose(text: str) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


def _node(node: yaml.Node, faults: Faults, line: int, depth: int) -> Node:
    if depth > _MAX_DEPTH:
        faults.add(line, f"must be nested at most {_MAX_DEPTH} deep")
        return Node(line, BROKEN)
    if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
        return Node(line, _mapping(node, faults, depth))
    if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
        items = [_node(n, faults, n.start_mark.line + 1, depth + 1) for n in node.value]
        return Node(line, items)
    return Node(line, _scalar(node, faults))


def _mapping(node: yaml.MappingNode, faults: Faults, depth: int) -> dict[str, Node]:
    found: dict[str, Node] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = _scalar(key_node, faults)
        if key is BROKEN:
            continue
        if not isinstance(key, str):
            faults.add(line, f"a name must be text, but got {show(key)}")
        elif key in found:
            faults.add(line, f"{key!r} is given twice, first in line {found[key].line}")
        else:
            found[key] = _node(value_node, faults, line, depth + 1)
    return found


def _scalar(node: yaml.Node, faults: Faults) -> Any:
    """The plain value of a scalar node, or BROKEN."""
    line, kind = node.start_mark.line + 1, node.tag.removeprefix(_TAG)
    if not isinstance(node, yaml.ScalarNode) or kind not in (
        "str",
        "null",
        "bool",
        "int",
        "float",
    ):
        if node.tag.startswith(_TAG) and kind in ("map", "seq"):
            faults.add(line, "a name must be text, but got a list or a mapping")
        else:
            faults.add(
                line, f"must be a plain value, but got the tag {node.tag.replace(_TAG, '!!')}"
            )
        return BROKEN
    try:
        value = resolve_scalar(kind, node.value)
    except ValueError:
        faults.add(line, f"must be a number that can be read, but got {show(node.value)}")
        return BROKEN
    if isinstance(value, float) and not math.isfinite(value):
        faults.add(line, f"must be a finite number, but got {node.value}")
        return BROKEN
    return value


def resolve_scalar(kind: str, text: str) -> Any:
    """The value of `text` as YAML 1.2's `kind` (str, null, bool, int, float).

    Raises ValueError where text is not of that kind.
    """
    if kind == "str":
        return text
    if kind == "null":
        return None
    if kind == "bool":
        return {"true": True, "false": False}[text.lower()] if text else False
    if kind == "int":
        bases = {"0o": 8, "0x": 16}
        return int(text, bases.get(text[:2], 10))
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def plain(node: Node) -> Any:
    """The node's value without lines: lists become tuples; BROKEN where any part is."""
    if isinstance(node.value, list):
        parts = [plain(item) for item in node.value]
        return BROKEN if any(part is BROKEN for part in parts) else tuple(parts)
    if isinstance(node.value, dict):
        values = {key: plain(item) for key, item in node.value.items()}
        return BROKEN if any(value is BROKEN for value in values.values()) else values
    return node.value


def show(value: Any) -> str:
    """A value as the user wrote it in YAML, cut to 60 characters, for messages."""
    if isinstance(value, Node):
        value = plain(value)
    text = _show(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _show(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(_show(item) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_show(item)}" for key, item in value.items()) + "}"
    return repr(value)
