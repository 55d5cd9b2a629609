"""A space file's text -> Space, or every fault in it at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from sweep.config.file import BROKEN, Faults, Node, plain, read_document, show
from sweep.errors import must_be_one_of
from sweep.space.conditions import (
    check_conditions,
    check_optimizer_arguments,
    check_reachable,
)
from sweep.space.definition import Space
from sweep.space.naming import canonical_key
from sweep.space.reading import Entry, read_fixed, read_parameter
from sweep.space.rules import RULES, TRAINING_RULES
from sweep.trial import HyperValue, trainers_fault

DEFAULTS = "defaults"
"""In place of the list in `first:`: the constructors' own values."""
_SECTIONS = ("parameters", "fixed", "first")


def parse_space(
    text: str, name: str = "space", path: Path | None = None, *, is_mlp: bool = True
) -> Space:
    """The space described by `text` (YAML).

    Args:
        text: The file's content.
        name: The space's name; without a path also the file's name in faults.
        path: The file.
        is_mlp: Names and values are those of MLPClassifier; else any names may be used, for a
            module of the user's.

    Raises:
        SpaceError: With every fault and its line.
    """
    faults = Faults(str(path or f"{name}.yaml"))
    sections = _sections(read_document(text, faults), faults)
    entries = _entries(sections, faults, is_mlp=is_mlp)
    ordered = check_conditions(entries, faults)
    if not len(faults):  # the next checks need sound entries
        check_reachable(entries, faults)
        if is_mlp:
            check_optimizer_arguments(entries, faults)
    space = Space(
        name=name,
        path=path,
        text=text,
        parameters=tuple(e.parameter for e in ordered if e.parameter is not None),
        fixed={e.name: e.values[0] for e in entries.values() if e.kind == "fixed" and e.values},
        first=(),
    )
    node = sections.get("first", Node(0, []))
    is_defaults = node.value == DEFAULTS
    if is_defaults and is_mlp:
        faults.add(
            node.line, "first: defaults is for a module of yours: MLPClassifier's is --baseline"
        )
    first = () if is_defaults else _first(node, space, entries, faults)
    faults.raise_if_any()
    return replace(space, first=first, has_defaults_first=is_defaults)


def _sections(root: Node, faults: Faults) -> dict[str, Node]:
    if root.value is None:
        faults.add(root.line, "must have a section 'parameters', but the file is empty")
    else:
        faults.expect(root, isinstance(root.value, dict), "must be a mapping with 'parameters'")
    if not isinstance(root.value, dict):
        faults.raise_if_any()
    for key in root.value:
        if key not in _SECTIONS:
            faults.add(root.value[key].line, must_be_one_of("a section", key, _SECTIONS))
    if "parameters" not in root.value:
        faults.add(root.line, "must have a section 'parameters', but it is missing")
    return dict(root.value)


def _entries(sections: Mapping[str, Node], faults: Faults, *, is_mlp: bool) -> dict[str, Entry]:
    """Everything named in `parameters` and `fixed`, in order."""
    entries: dict[str, Entry] = {}
    rules = RULES if is_mlp else TRAINING_RULES
    for section, read in (("parameters", read_parameter), ("fixed", read_fixed)):
        for name, node in _names(sections, section, faults).items():
            if name in entries:
                line = entries[name].line
                faults.add(node.line, f"{name} is fixed, but also varies (line {line})")
                continue
            if is_mlp and name not in rules:
                text = must_be_one_of("a hyperparameter of MLPClassifier", name, rules)
                faults.add(node.line, text)
            elif not all(part.isidentifier() for part in name.split(".")):
                text = "a hyperparameter must be a Python name (model.lr), as an argument is"
                faults.add(node.line, f"{text}, but got {name!r}")
            elif name.startswith("trainer.") and (fault := trainers_fault(name[8:])):
                faults.add(node.line, fault)
            entries[name] = read(name, node, rules.get(name), faults)
    return entries


def _names(sections: Mapping[str, Node], section: str, faults: Faults) -> dict[str, Node]:
    node = sections.get(section, Node(0, {}))
    rule = f"{section} must be a mapping of names to what they may be"
    if not faults.expect(node, isinstance(node.value, dict), rule):
        return {}
    if section == "parameters" and section in sections and not node.value:
        faults.add(node.line, "parameters must have at least one, but got none")
    return dict(node.value)


def _first(
    node: Node, space: Space, entries: Mapping[str, Entry], faults: Faults
) -> tuple[dict[str, HyperValue], ...]:
    """The configurations of `first:`, resolved; values are checked once the rest is in order."""
    if not faults.expect(
        node, isinstance(node.value, list), "first must be a list of configurations, or defaults"
    ):
        return ()
    is_sound = not len(faults)
    found: dict[str, dict[str, HyperValue]] = {}
    for item in node.value:
        rule = "first: a configuration must be a mapping"
        if not faults.expect(item, isinstance(item.value, dict), rule):
            continue
        values = plain(item)
        problems: Mapping[str, str] = {}
        if not is_sound:
            strange = [name for name in item.value if name not in entries]
            what = "a hyperparameter of this space"
            problems = {name: must_be_one_of(what, name, entries) for name in strange}
        elif values is not BROKEN:
            problems = space.problems_of(values)
        for name, sentence in problems.items():
            faults.add(item.value.get(name, item).line, f"first: {sentence}")
        if problems or not is_sound or values is BROKEN:
            continue
        configuration = space.resolve(space.params_for(values) or {})
        key = canonical_key(configuration)
        if key in found:
            faults.add(item.line, f"first: {show(item)} is given twice")
        found[key] = configuration
    return tuple(found.values())
