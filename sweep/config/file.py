"""A YAML file (settings, search space, recipe) as nodes with lines, and the faults in it.

PyYAML follows YAML 1.1: `1e-3` is text and `no` is false. Here scalars are resolved by YAML 1.2's
core schema (https://yaml.org/spec/1.2.2/#1032-tag-resolution). Tags and aliases are refused: no
file can run code or grow without bound.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from sweep.errors import ConfigError, SpaceError

BROKEN: Final = object()
"""Value of a node whose fault is already reported: later checks pass over it in silence."""

_TAG = "tag:yaml.org,2002:"
_MAX_DEPTH = 20
_MAX_SENTENCE = 400
MAX_FILE_BYTES = 1_000_000
"""Reading YAML takes about 1 s per 100 kB; no file of settings or of a space is so large."""


@dataclass(frozen=True, slots=True)
class Node:
    """One value of the file."""

    line: int
    """Line of the value, from 1; inside a mapping the line of its key."""
    value: Any
    """str, int, float, bool, None, list[Node], dict[str, Node] or BROKEN."""
    text: str | None = None
    """A scalar as the file spells it, without quotes."""


class Faults:
    """Collects the faults of a file, to raise all of them at once."""

    def __init__(
        self, source: str, error: type[SpaceError] | type[ConfigError] = SpaceError
    ) -> None:
        self.source, self.error = source, error
        self._found: list[tuple[int, str]] = []

    def __len__(self) -> int:
        return len(self._found)

    def add(self, line: int, sentence: str) -> None:
        """Note one fault at `line` (from 1)."""
        is_long = len(sentence) > _MAX_SENTENCE
        short = f"{sentence[: _MAX_SENTENCE - 3]}..." if is_long else sentence
        self._found.append((line, short))

    def expect(self, node: Node, is_fine: bool, rule: str, got: object = None) -> bool:
        """Returns `is_fine`; if not, notes `rule, but got VALUE`, unless the node is BROKEN."""
        if not is_fine and plain(node) is not BROKEN:
            self.add(node.line, f"{rule}, but got {show(node if got is None else got)}")
        return is_fine

    def raise_if_any(self) -> None:
        """Raises `error` with every fault, in the order of the lines."""
        if self._found:
            ordered = sorted(self._found, key=lambda fault: fault[0])
            raise self.error(f"{self.source}:{line}: {text}" for line, text in ordered)


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


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would read as another type; no aliases."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: list(found) for first, found in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }

    def ignore_aliases(self, data: Any) -> bool:
        """A repeated value is written again."""
        return True


def _is_true(text: str) -> bool:
    return {"true": True, "false": False, "": False}[text.lower()]


def _int(text: str) -> int:
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


_SCALARS: Mapping[str, tuple[str, str, Callable[[str], Any]]] = {
    "null": (r"~|null|Null|NULL|", "~nN\0", lambda text: None),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF", _is_true),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789", _int),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
        _float,
    ),
}
"""Kind -> (its pattern, the letters it may begin with, its reader); all others are text."""

for _kind, (_pattern, _first, _) in _SCALARS.items():
    _letters = ["" if letter == "\0" else letter for letter in _first]
    yaml.add_implicit_resolver(
        _TAG + _kind, re.compile(f"^(?:{_pattern})$"), _letters, _Loader, _Dumper
    )


def write_document(value: Any, *, flow: bool | None = None) -> str:
    """`value` as YAML, read alike by `read_document` and by readers of YAML 1.1."""
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=flow, width=10**6)
    return str(text)


def read_file(path: Path, faults: Faults) -> Node:
    """The root of the YAML document in a file. Raises the error of `faults`."""
    return read_document(read_text(path, faults.error), faults)


def read_text(path: Path, error: type[SpaceError] | type[ConfigError]) -> str:
    """The text of a YAML file (or pipe) of at most MAX_FILE_BYTES. Raises `error`."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise error(f"{path}: must be a file, but there is none of that name") from None
    except IsADirectoryError:
        raise error(f"{path}: must be a file, but is a folder") from None
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or fault
        raise error(f"{path}: cannot be read: {reason}") from None
    if len(content) > MAX_FILE_BYTES:
        raise error(f"{path}: must have at most {MAX_FILE_BYTES} bytes, but has more")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        line = content.count(b"\n", 0, fault.start) + 1
        byte = content[fault.start]
        raise error(f"{path}:{line}: must be UTF-8 text, but got the byte 0x{byte:02x}") from None


def read_document(text: str, faults: Faults) -> Node:
    """The root of the one YAML document in `text`; a node of null if it is empty.

    Duplicate keys, tags and numbers that are not finite go to `faults`. Raises its error at once
    if the text is not YAML.
    """
    try:
        root: Any = yaml.compose(text, _Loader)
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
        return Node(1, None) if root is None else _node(root, faults, root.start_mark.line + 1, 0)
    faults.raise_if_any()
    raise AssertionError("unreachable")


def _node(node: yaml.Node, faults: Faults, line: int, depth: int) -> Node:
    if depth > _MAX_DEPTH:
        faults.add(line, f"must be nested at most {_MAX_DEPTH} deep")
        return Node(line, BROKEN)
    if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
        return Node(line, _mapping(node, faults, depth))
    if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
        items = [_node(n, faults, n.start_mark.line + 1, depth + 1) for n in node.value]
        return Node(line, items)
    return Node(
        line, _scalar(node, faults), node.value if isinstance(node, yaml.ScalarNode) else None
    )


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
            faults.add(line, f"{show(key)} is given twice, first in line {found[key].line}")
        else:
            found[key] = _node(value_node, faults, line, depth + 1)
    return found


def _scalar(node: yaml.Node, faults: Faults) -> Any:
    """The plain value of a scalar node, or BROKEN."""
    line, kind = node.start_mark.line + 1, node.tag.removeprefix(_TAG)
    if not isinstance(node, yaml.ScalarNode) or kind not in ("str", *_SCALARS):
        if node.tag.startswith(_TAG) and kind in ("map", "seq"):
            faults.add(line, "a name must be text, but got a list or a mapping")
        else:
            tag = node.tag.replace(_TAG, "!!")
            faults.add(line, f"must be a plain value, but got the tag {tag}")
        return BROKEN
    if kind == "str":
        return node.value
    try:
        value = _SCALARS[kind][2](node.value)
    except (ValueError, KeyError):
        word = "true or false" if kind == "bool" else "a number that can be read"
        faults.add(line, f"must be {word}, but got {show(node.value)}")
        return BROKEN
    if isinstance(value, float) and not math.isfinite(value):
        faults.add(line, f"must be a finite number, but got {node.value[:60]}")
        return BROKEN
    return value


def plain(node: Node) -> Any:
    """The node's value without lines: lists become tuples; BROKEN if any part is."""
    if isinstance(node.value, list):
        parts = [plain(item) for item in node.value]
        return BROKEN if any(part is BROKEN for part in parts) else tuple(parts)
    if isinstance(node.value, dict):
        values = {key: plain(item) for key, item in node.value.items()}
        return BROKEN if any(value is BROKEN for value in values.values()) else values
    return node.value


def show(value: Any) -> str:
    """A value as the user wrote it in YAML, cut to 60 characters, for messages."""
    text = _spelled(plain(value) if isinstance(value, Node) else value)
    return text if len(text) <= 60 else text[:57] + "..."


def _spelled(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_spelled, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_spelled(item)}" for key, item in value.items()) + "}"
    return repr(value)
