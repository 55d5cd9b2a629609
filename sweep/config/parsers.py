"""Parsers of values from flags, environment and files; each fault is one sentence.

A parser takes the name for its message and the raw value. It returns the value or raises
ConfigError.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from sweep.data.catalog import MODULES_OWN, dataset_names
from sweep.databases import sqlite
from sweep.errors import ConfigError, must_be_one_of, shown
from sweep.redact import redacted

_IMPORT_PATH = re.compile(r"(?:[A-Za-z_][\w.]*|[^\0:]+\.py):[A-Za-z_]\w*")
_PAIR = re.compile(r"[A-Za-z_][\w.]*=.+", re.DOTALL)
STUDY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_USERINFO = r"[^/\s@?#{}:]*(?::[^/\s@?#{}:]*)?@"
_HOST = r"(?:\[[^\]/?#\s@]*\]|[^/?#\s@:\[\]]*)(?::\d*)?"
_ADDRESS = re.compile(rf"[A-Za-z][\w+.-]*://(?:{_USERINFO})?{_HOST}(?:[/?#][^\s@]*)?")
_NUMBER = re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?", re.ASCII)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)?", re.ASCII)
_SECONDS = {None: 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BEST = re.compile("best")
_INDICES = re.compile(r"\d+,|\d+(?:, ?\d+)+,?|\[\d+(?:, ?\d+)*\]", re.ASCII)
_FLAGS = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}

Parser = Callable[[str, Any], Any]


def _parser(rule: str, convert: Callable[[Any], Any]) -> Parser:
    """A parser by `convert`, whose ValueError or similar becomes "FIELD must RULE"."""

    def parse(field: str, value: Any) -> Any:
        try:
            return convert(value)
        except (TypeError, ValueError, OverflowError, KeyError):
            raise ConfigError(f"{field} must {rule}, but got {shown(value)}") from None

    return parse


def text(field: str, value: Any) -> str:
    """A word."""
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{field} must be a word, but got {redacted(shown(value))}")
    if not value.isprintable():
        raise ConfigError(f"{field} must be printable text, but got {redacted(shown(value))}")
    return value


def path(field: str, value: Any) -> str:
    """A file or folder: `~` is a home folder; a relative path starts at the current folder."""
    word = text(field, value)
    if not word.startswith("~"):
        return word
    expanded = os.path.expanduser(word)  # noqa: PTH111 - Path raises for an unknown user
    if expanded.startswith("~"):
        raise ConfigError(
            f"{field} must be a path, but {shown(word)} names the home of nobody: write ./~ for "
            "a name that begins with ~"
        )
    return expanded


def address(field: str, value: Any) -> str:
    """A store's address; `sqlite:///~/FILE` lies in the home folder.

    An unescaped '@', '/' or ':' would make libraries print part of the password as a host or a
    port, so a faulty address is never repeated.
    """
    word = text(field, value)
    if word.startswith("sqlite:///~"):
        return f"sqlite:///{path(field, word.removeprefix('sqlite:///'))}"
    is_file = word.startswith(("sqlite", "file:"))
    if not is_file and ("@" in word or "://" in word) and not _ADDRESS.fullmatch(word):
        raise ConfigError(
            f"{field} must be an address whose user and password have %40 for @, %2F for /, %3A "
            "for :, %3F for ?, %23 for #, %7B for {, %7D for } and %20 for a space, and whose "
            "port is a number"
        )
    if fault := sqlite.fault_of(word):
        raise ConfigError(f"{field}: {fault}")
    return word


def as_number(value: Any) -> float:
    """`value` as a finite number; text as in YAML 1.2: no 1_000, no 0x10. Raises ValueError."""
    is_text = isinstance(value, str)
    if isinstance(value, bool) or (is_text and not _NUMBER.fullmatch(value.strip())):
        raise ValueError(value)
    number = float(value)
    if not abs(number) < 1e18:
        raise ValueError(value)
    return number


def _count(value: Any, low: int) -> int:
    number = as_number(value)
    if number != int(number) or number < low:
        raise ValueError(value)
    return int(number)


def count(low: int) -> Parser:
    """A parser of whole numbers from `low`."""
    return _parser(f"be a whole number >= {low}", lambda value: _count(value, low))


def _positive(value: float) -> float:
    if value <= 0:
        raise ValueError(value)
    return value


def _share(value: float) -> float:
    if value < 0 or (value > 1 and value != int(value)):
        raise ValueError(value)
    return value


def _duration(value: Any) -> float:
    match = None if isinstance(value, bool) else _DURATION.fullmatch(str(value).strip())
    if match is None:
        raise ValueError(value)
    return _positive(float(match[1])) * _SECONDS[match[2]]


def _matching(pattern: re.Pattern[str], value: Any) -> Any:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(value)
    return value


def _logged_models(value: Any) -> str:
    if isinstance(value, bool):
        return "all" if value else "none"
    word = str(value).strip()
    if word not in ("auto", "all", "none"):
        before, _, number = word.partition(":")
        word = f"{_matching(_BEST, before)}:{_count(number, 1)}"
    return word


def _device(value: Any) -> str:
    word = str(value).strip().replace("'", "")  # a list in a file holds words
    if word == "auto":
        return "1"
    indices = re.findall(r"\d+", word)
    is_several = len(set(indices)) == len(indices) and _INDICES.fullmatch(word)
    if not is_several and not re.fullmatch(r"[1-9]\d*", word, re.ASCII):
        raise ValueError(value)
    return word


study_name = _parser(
    "be 1-100 letters, digits, '.', '_' or '-', beginning with a letter or digit",
    lambda value: _matching(STUDY_NAME, value),
)
"""A name that is safe as a folder and as an experiment."""
module_path = _parser(
    "name a LightningModule as package.module:Class or file.py:Class",
    lambda value: _matching(_IMPORT_PATH, value),
)
duration = _parser("be a positive time such as 90, 90s, 15m or 2h", _duration)
"""Seconds, from 90, 90s, 15m, 2h or 1d."""
gigabytes = _parser("be a positive number of gigabytes", lambda value: _positive(as_number(value)))
gigabytes_or_none = _parser(
    "be none or a positive number of gigabytes",
    lambda value: None if value == "none" else _positive(as_number(value)),
)
share_of_devices = _parser(
    "be 0, a whole number or a part of 1 such as 0.5", lambda value: _share(as_number(value))
)
price = _parser("be a positive amount", lambda value: _positive(as_number(value)))
switch = _parser("be true or false", lambda value: _FLAGS[str(value).lower()])
population = _parser(
    "be auto or a number >= 1", lambda value: None if value in (None, "auto") else _count(value, 1)
)
logged_models = _parser("be auto, all, none or best:K such as best:10", _logged_models)
"""Which completed trials get a logged model; true and false are all and none."""
device_count = _parser("be a number of devices, or indices as '2,' or '0,2'", _device)
"""Lightning's `devices`: how many, or the index of each."""


def choice(choices: tuple[str, ...], *, or_import: str = "") -> Parser:
    """A parser of one of `choices`, or of package.module:name for an `or_import` such as class."""

    def parse(field: str, value: Any) -> Any:
        if value in choices or (or_import and _IMPORT_PATH.fullmatch(str(value))):
            return value
        known = (*choices, f"a {or_import} as package.module:name") if or_import else choices
        raise ConfigError(must_be_one_of(field, value, known))

    return parse


def several(one: Parser) -> Parser:
    """A parser of one value or a list of values, each by `one`."""

    def parse(field: str, value: Any) -> tuple[Any, ...]:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(one(field, item) for item in items)

    return parse


_pairs = several(_parser("be NAME=VALUE", lambda value: _matching(_PAIR, value)))


def pairs(field: str, value: Any) -> tuple[str, ...]:
    """NAME=VALUE, several of them, or a mapping; the last one of a name counts."""
    if isinstance(value, Mapping):
        value = [f"{name}={_spelled(item)}" for name, item in value.items()]
    found = {pair.partition("=")[0]: pair for pair in _pairs(field, value)}
    return tuple(found.values())


def _spelled(value: Any) -> str:
    """A value of a mapping as it stands on a command line."""
    return value if isinstance(value, str) else json.dumps(value)


import_paths = several(_parser(
    "be package.module:name or file.py:name", lambda value: _matching(_IMPORT_PATH, value)
))  # fmt: skip
data_name = choice((*dataset_names(), MODULES_OWN), or_import="class or function")
