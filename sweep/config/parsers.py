"""Values as flags, environment and files give them, checked: each fault is one sentence.

A parser takes the name to use in its message and the raw value, and returns the value or raises
ConfigError.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any, cast

from sweep.data.catalog import dataset_names
from sweep.databases import sqlite
from sweep.errors import ConfigError, must_be_one_of, shown
from sweep.redact import redacted

_IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
STUDY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_USERINFO = r"[^/\s@?#{}:]*(?::[^/\s@?#{}:]*)?@"
_HOST = r"(?:\[[^\]/?#\s@]*\]|[^/?#\s@:\[\]]*)(?::\d*)?"
_ADDRESS = re.compile(rf"[A-Za-z][\w+.-]*://(?:{_USERINFO})?{_HOST}(?:[/?#][^\s@]*)?")
_NUMBER = re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?", re.ASCII)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)?", re.ASCII)
_SECONDS = {None: 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


Parser = Callable[[str, Any], Any]


def text(field: str, value: Any) -> str:
    """A word."""
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{field} must be a word, but got {redacted(shown(value))}")
    if not value.isprintable():
        raise ConfigError(f"{field} must be printable text, but got {redacted(shown(value))}")
    return value


def path(field: str, value: Any) -> str:
    """A file or folder: `~` is a home folder; anything relative starts at the current folder."""
    word = text(field, value)
    if not word.startswith("~"):
        return word
    expanded = os.path.expanduser(word)  # noqa: PTH111 - Path raises where nobody has the name
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


def study_name(field: str, value: Any) -> str:
    """A name that is safe as a folder and as an experiment."""
    if not isinstance(value, str) or not STUDY_NAME.fullmatch(value):
        raise ConfigError(
            f"{field} must be 1-100 letters, digits, '.', '_' or '-', beginning with a letter "
            f"or digit, but got {shown(value)}"
        )
    return value


def count(low: int) -> Parser:
    """A parser of whole numbers from `low`."""

    def parse(field: str, value: Any) -> int:
        number = as_number(value)
        if number is None or number != int(number) or number < low:
            raise ConfigError(f"{field} must be a whole number >= {low}, but got {shown(value)}")
        return int(number)

    return parse


def as_number(value: Any) -> float | None:
    """`value` as a finite number, or None. Text is a number as in YAML 1.2: no 1_000, no 0x10."""
    if isinstance(value, bool) or (
        isinstance(value, str) and not _NUMBER.fullmatch(value.strip())
    ):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if abs(number) < 1e18 else None


def duration(field: str, value: Any) -> float:
    """Seconds, from 90, 90s, 15m, 2h or 1d."""
    match = _DURATION.fullmatch(str(value).strip()) if not isinstance(value, bool) else None
    if match is None or float(match[1]) <= 0:
        raise ConfigError(
            f"{field} must be a positive time such as 90, 90s, 15m or 2h, but got {shown(value)}"
        )
    return float(match[1]) * _SECONDS[match[2]]


def gigabytes(field: str, value: Any) -> float:
    """A positive number of gigabytes."""
    number = as_number(value)
    if number is None or number <= 0:
        raise ConfigError(
            f"{field} must be a positive number of gigabytes, but got {shown(value)}"
        )
    return number


def gigabytes_or_none(field: str, value: Any) -> float | None:
    """A positive number of gigabytes; None for none."""
    if value == "none":
        return None
    try:
        return gigabytes(field, value)
    except ConfigError as error:
        raise ConfigError(str(error).replace("must be", "must be none or")) from None


def switch(field: str, value: Any) -> bool:
    """True or false, from their usual words."""
    words = dict.fromkeys(("true", "yes", "on", "1"), True)
    words |= dict.fromkeys(("false", "no", "off", "0"), False)
    if isinstance(value, bool):
        return value
    if str(value).lower() not in words:
        raise ConfigError(f"{field} must be true or false, but got {shown(value)}")
    return words[str(value).lower()]


def population(field: str, value: Any) -> int | None:
    """A number of trials; None for auto."""
    if value is None or value == "auto":
        return None
    try:
        return cast(int, count(1)(field, value))
    except ConfigError:
        raise ConfigError(
            f"{field} must be auto or a number >= 1, but got {shown(value)}"
        ) from None


def choice(choices: tuple[str, ...], *, or_import: str = "") -> Parser:
    """A parser of one of `choices`, or of package.module:name where `or_import` says what."""

    def parse(field: str, value: Any) -> str:
        if value in choices or (or_import and _IMPORT_PATH.fullmatch(str(value))):
            return cast(str, value)
        known = (*choices, f"a {or_import} as package.module:name") if or_import else choices
        raise ConfigError(must_be_one_of(field, value, known))

    return parse


def data_name(field: str, value: Any) -> str:
    """A data set of the catalog, or package.module:function."""
    parsed = choice(tuple(dataset_names()), or_import="function")(field, value)
    return cast(str, parsed)


def module_path(field: str, value: Any) -> str:
    """package.module:Class."""
    if not _IMPORT_PATH.fullmatch(str(value)):
        raise ConfigError(
            f"{field} must name a LightningModule as package.module:Class, but got {shown(value)}"
        )
    return cast(str, value)


def device_count(field: str, value: Any) -> str:
    """Lightning's `devices`: 1, or one device's index."""
    text = str(value).strip().replace("'", "")  # a list of a file has words
    if text in ("1", "auto") or re.fullmatch(r"\d+,|\[\d+\]", text):
        return "1" if text == "auto" else text
    raise ConfigError(
        f"{field} must be 1, or one device as '2,' (its index), but got {shown(value)}"
    )
