"""A space file's text -> Space, or every fault in it at once."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from sweep.config.document import BROKEN, Faults, Node, plain, read_document, show
from sweep.errors import must_be_one_of
from sweep.space.conditions import (
    check_conditions,
    check_optimizer_arguments,
    check_reachable,
)
from sweep.space.definition import Space
from sweep.space.naming import canonical_key
from sweep.space.reading import Entry, read_fixed, read_parameter
from sweep.space.rules import VOCABULARY, is_own, rules_for

_SECTIONS = ("parameters", "fixed", "first")


def parse_space(
    text: str,
    name: str = "space",
    path: Path | None = None,
    vocabulary: Collection[str] | None = VOCABULARY,
) -> Space:
    """The space described by `text` (YAML).

    Args:
        text: The file's content.
        name: The space's name; without a path also the file's name in faults.
        path: The file.
        vocabulary: Allowed names of hyperparameters; by default those of MLPClassifier, with
            checks of their values. None: any name, for a module of the user's.

    Raises:
        SpaceError: With every fault and its line.
    """
    faults = Faults(str(path or f"{name}.yaml"))
    sections = _sections(read_document(text, faults), faults)
    entries = _entries(sections, faults)
    _check_vocabulary(entries, vocabulary, faults)
    ordered = check_conditions(entries, faults)
    if not len(faults):  # the next checks need sound entries
        check_reachable(entries, faults)
        if is_own(vocabulary):
            check_optimizer_arguments(entries, faults)
    space = Space(
        name=name,
        path=path,
        text=text,
        parameters=tuple(e.parameter for e in ordered if e.parameter is not None),
        fixed={e.name: e.points[0][1] for e in entries.values() if e.kind == "fixed" and e.points},
        first=(),
    )
    first = _first(sections.get("first", Node(0, [])), space, entries, faults)
    faults.raise_if_any()
    return replace(space, first=first)


def _sections(root: Node, faults: Faults) -> dict[str, Node]:
    if root.value is None:
        faults.add(root.line, "must have a section 'parameters', but the file is empty")
    else:
        faults.holds(root, dict, "must be a mapping with 'parameters'")
    if not isinstance(root.value, dict):
        faults.raise_if_any()
    for key in root.value:
        if key not in _SECTIONS:
            faults.add(root.value[key].line, must_be_one_of("a section", key, _SECTIONS))
    if "parameters" not in root.value:
        faults.add(root.line, "must have a section 'parameters', but it is missing")
    return dict(root.value)


def _entries(sections: Mapping[str, Node], faults: Faults) -> dict[str, Entry]:
    """Everything named in `parameters` and `fixed`, in order."""
    entries: dict[str, Entry] = {}
    varied, fixed = (_mapping(sections, name, faults) for name in ("parameters", "fixed"))
    for name, node in varied.items():
        entries[name] = read_parameter(name, node, faults)
    if "parameters" in sections and sections["parameters"].value == {}:
        faults.add(sections["parameters"].line, "parameters must have at least one, but got none")
    for name, node in fixed.items():
        if name in entries:
            line = entries[name].line
            faults.add(node.line, f"{name} is fixed, but also varies (line {line})")
        else:
            entries[name] = read_fixed(name, node, faults)
    return entries


def _mapping(sections: Mapping[str, Node], name: str, faults: Faults) -> dict[str, Node]:
    node = sections.get(name, Node(0, {}))
    rule = f"{name} must be a mapping of names to what they may be"
    return dict(node.value) if faults.holds(node, dict, rule) else {}


def _check_vocabulary(
    entries: Mapping[str, Entry], vocabulary: Collection[str] | None, faults: Faults
) -> None:
    """Names are known, and values legal for them."""
    rules = rules_for(vocabulary)
    whose = "of MLPClassifier" if is_own(vocabulary) else "of the module"
    for entry in entries.values():
        if vocabulary is not None and entry.name not in vocabulary:
            text = must_be_one_of(f"a hyperparameter {whose}", entry.name, vocabulary)
            faults.add(entry.line, text)
        elif not entry.name.isidentifier():
            text = "a hyperparameter must be a Python name (the module takes it as an argument)"
            faults.add(entry.line, f"{text}, but got {entry.name!r}")
        elif entry.name in rules:
            rule = rules[entry.name]
            if entry.kind not in (*rule.kinds, "fixed", "unknown"):
                kinds = " or ".join(rule.kinds)
                faults.add(entry.line, f"{entry.name} must vary as {kinds}, not {entry.kind}")
                continue
            for line, value in entry.points:
                if complaint := rule.complaint(entry.name, value):
                    faults.add(line, complaint)


def _first(
    node: Node, space: Space, entries: Mapping[str, Entry], faults: Faults
) -> tuple[dict[str, object], ...]:
    """The configurations of `first:`, resolved; values are checked once the rest is in order."""
    if not faults.holds(node, list, "first must be a list of configurations"):
        return ()
    is_sound = not len(faults)
    found: dict[str, dict[str, object]] = {}
    for item in node.value:
        if not faults.holds(item, dict, "first: a configuration must be a mapping"):
            continue
        if not is_sound:
            _check_names(item, entries, faults)
        elif configuration := _configuration(item, space, faults):
            key = canonical_key(configuration)
            if key in found:
                faults.add(item.line, f"first: {show(item)} is given twice")
            found[key] = configuration
    return tuple(found.values())


def _configuration(item: Node, space: Space, faults: Faults) -> dict[str, object] | None:
    values = plain(item)
    problems = [] if values is BROKEN else space.problems_of(values)
    for problem in problems:
        line = item.value[problem.name].line if problem.name in item.value else item.line
        faults.add(line, f"first: {problem.sentence}")
    params = None if problems or values is BROKEN else space.params_for(values)
    return None if params is None else space.resolve(params)


def _check_names(item: Node, entries: Mapping[str, Entry], faults: Faults) -> None:
    for name, node in item.value.items():
        if name not in entries:
            text = must_be_one_of("a hyperparameter of this space", name, entries)
            faults.add(node.line, f"first: {text}")
