"""`--vary NAME=SPEC` and `--set NAME=VALUE`: a search space from the command line.

SPEC is a range `LOW..HIGH`, with `:log` or `:step=N` after it, of whole numbers if both ends are;
or choices `A,B,C`; or what a space file says of a name, `{choices: [...]}`. The result is the
text of a space file, so that a study keeps one text whatever its space came from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sweep.config.file import BROKEN, Faults, Node, plain, read_document, write_document
from sweep.errors import ConfigError, SpaceError

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})((?::\w+(?:=[^:]*)?)*)")
_WHOLE = re.compile(r"[-+]?\d+")


class Spec(str):
    """A SPEC made by `floats` or `ints`."""

    __slots__ = ()


def floats(low: float, high: float, *, log: bool = False, step: float | None = None) -> Spec:
    """A number from `low` to `high`, for `vary` of `sweep.run`.

    >>> floats(1e-4, 0.1, log=True)
    '0.0001..0.1:log'
    """
    return _spelled(repr(float(low)), repr(float(high)), log, step)


def ints(low: int, high: int, *, log: bool = False, step: int | None = None) -> Spec:
    """A whole number from `low` to `high`, for `vary` of `sweep.run`.

    >>> ints(8, 64, step=8)
    '8..64:step=8'
    """
    return _spelled(repr(int(low)), repr(int(high)), log, step)


def _spelled(low: str, high: str, log: bool, step: float | None) -> Spec:
    return Spec(f"{low}..{high}{':log' if log else ''}{'' if step is None else f':step={step!r}'}")


def with_changes(text: str, vary: Sequence[str], fixed: Sequence[str]) -> str:
    """The text of a space file, changed.

    Args:
        text: A sound space file, or "" for a space that consists of `vary` alone.
        vary: NAME=SPEC each; such a name is not fixed any more.
        fixed: NAME=VALUE each; such a name does not vary any more.

    Raises ConfigError with the fault of each SPEC.
    """
    if not vary and not fixed:
        return text
    whole: Any = plain(read_document(text, Faults("space"))) if text else {}
    sections = {key: dict(whole.get(key) or {}) for key in ("parameters", "fixed")}
    both = sorted({pair.partition("=")[0] for pair in vary}
                  & {pair.partition("=")[0] for pair in fixed})  # fmt: skip
    faults = [f"--set {name} fixes what --vary {name} varies: leave one out" for name in both]
    for pair in (*vary, *fixed):
        name, is_varied = pair.partition("=")[0], pair in vary
        try:
            value = _spec(name, pair) if is_varied else _value(name, pair)
        except ConfigError as error:
            faults += error.faults
            continue
        sections["fixed" if is_varied else "parameters"].pop(name, None)
        sections["parameters" if is_varied else "fixed"][name] = value
    if faults:
        raise ConfigError(faults)
    kept = {key: value for key, value in whole.items() if key not in sections}
    return write_document({**{k: v for k, v in sections.items() if v}, **kept})


def values_of(pairs: Sequence[str]) -> dict[str, Any]:
    """The value of each NAME=VALUE, as `--set` reads it. Raises ConfigError with all faults."""
    values, faults = dict[str, Any](), list[str]()
    for pair in pairs:
        name = pair.partition("=")[0]
        try:
            values[name] = _value(name, pair)
        except ConfigError as error:
            faults += error.faults
    if faults:
        raise ConfigError(faults)
    return values


def _spec(name: str, pair: str) -> Mapping[str, Any]:
    """What a space file would say of the name."""
    spec = pair.partition("=")[2].strip()
    if match := _RANGE.fullmatch(spec):
        return _range(name, match)
    if spec.startswith("{"):
        found = _yaml(name, spec)
        if isinstance(found, Mapping):
            return found
    choices = _yaml(name, spec if spec.startswith("[") else f"[{spec}]")
    if not isinstance(choices, tuple) or len(choices) < 2:
        raise ConfigError(
            f"--vary {name} must be a range such as 1e-4..1e-1:log or 8..64:step=8, or choices "
            f"such as 32,64,128, but got {spec!r}"
        )
    return {"choices": list(choices)}


def _range(name: str, match: re.Match[str]) -> Mapping[str, Any]:
    low, high, options = match[1], match[2], match[3].split(":")[1:]
    is_whole = bool(_WHOLE.fullmatch(low) and _WHOLE.fullmatch(high))
    read = int if is_whole else float
    found: dict[str, Any] = {"int" if is_whole else "float": [read(low), read(high)]}
    for option in options:
        key, _, value = option.partition("=")
        if key == "log" and not value:
            found["log"] = True
        elif key == "step" and re.fullmatch(_NUMBER, value):
            found["step"] = int(value) if _WHOLE.fullmatch(value) else float(value)
        else:
            raise ConfigError(f"--vary {name}: after a range goes :log or :step=N, not :{option}")
    return found


def _value(name: str, pair: str) -> Any:
    """The value of a `--set`, as YAML reads it: text needs no quotes."""
    value = _yaml(name, pair.partition("=")[2])
    return list(value) if isinstance(value, tuple) else value


def _yaml(name: str, text: str) -> Any:
    faults = Faults(name)
    try:
        node: Node = read_document(text, faults)
        faults.raise_if_any()
    except SpaceError as error:
        raise ConfigError(f"{name}: {error.faults[0].partition(': ')[2]}") from error
    value = plain(node)
    if value is BROKEN:
        raise ConfigError(f"{name} cannot be read: {text!r}")
    return value
