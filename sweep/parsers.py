"""Values as flags, environment and files give them, checked: each fault is one sentence.

A parser takes the name to use in its message and the raw value, and returns the value or raises
ConfigError.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, cast

from sweep import sqlite
from sweep.datasets import dataset_names
from sweep.errors import ConfigError, must_be_one_of

_IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
STUDY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ADDRESS = re.compile(r"[A-Za-z][\w+.-]*://[^/\s@?#{}]+@[^/?#\s@]*([/?#]\S*)?")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)?")
_SECONDS = {None: 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


Parser = Callable[[str, Any], Any]


def text(field: str, value: Any) -> str:
    """A word."""
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{field} must be a word, but got {value!r}")
    return value


def address(field: str, value: Any) -> str:
    """A store's address. What is wrong in one with user and password is said without it.

    What such a character makes of the rest no library hides: half a password becomes a host.
    """
    word = text(field, value)
    if "@" in word and not word.startswith(("sqlite", "file:")) and not _ADDRESS.fullmatch(word):
        raise ConfigError(
            f"{field} must be an address whose user and password have %40 for @, %2F for /, %3F "
            "for ?, %23 for #, %7B for {, %7D for } and %20 for a space"
        )
    if fault := sqlite.fault_of(word):
        raise ConfigError(f"{field}: {fault}")
    return word


def study_name(field: str, value: Any) -> str:
    """A name that is safe as a folder and as an experiment."""
    if not isinstance(value, str) or not STUDY_NAME.fullmatch(value):
        raise ConfigError(
            f"{field} must be 1-100 letters, digits, '.', '_' or '-', beginning with a letter "
            f"or digit, but got {value!r}"
        )
    return value


def count(low: int) -> Parser:
    """A parser of whole numbers from `low`."""

    def parse(field: str, value: Any) -> int:
        number = as_number(value)
        if number is None or number != int(number) or number < low:
            raise ConfigError(f"{field} must be a whole number >= {low}, but got {value!r}")
        return int(number)

    return parse


def as_number(value: Any) -> float | None:
    """`value` as a finite number, or None."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if abs(number) < 1e18 else None


def duration(field: str, value: Any) -> float:
    """Seconds, from 90, 90s, 15m, 2h or 1d."""
    match = _DURATION.fullmatch(str(value).strip()) if not isinstance(value, bool) else None
    if match is None or float(match[1]) <= 0:
        raise ConfigError(
            f"{field} must be a positive time such as 90, 90s, 15m or 2h, but got {value!r}"
        )
    return float(match[1]) * _SECONDS[match[2]]


def gigabytes(field: str, value: Any) -> float:
    """A positive number of gigabytes."""
    number = as_number(value)
    if number is None or number <= 0:
        raise ConfigError(f"{field} must be a positive number of gigabytes, but got {value!r}")
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
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if isinstance(value, bool):
        return value
    if str(value).lower() not in words:
        raise ConfigError(f"{field} must be true or false, but got {value!r}")
    return words[str(value).lower()]


def population(field: str, value: Any) -> int | None:
    """A number of trials; None for auto."""
    if value is None or value == "auto":
        return None
    try:
        return cast(int, count(1)(field, value))
    except ConfigError:
        raise ConfigError(f"{field} must be auto or a number >= 1, but got {value!r}") from None


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
            f"{field} must name a LightningModule as package.module:Class, but got {value!r}"
        )
    return cast(str, value)


def device_count(field: str, value: Any) -> str:
    """Lightning's `devices`: 1, or one device's index."""
    text = str(value).strip()
    if text in ("1", "auto") or re.fullmatch(r"\d+,|\[\d+\]", text):
        return "1" if text == "auto" else text
    raise ConfigError(f"{field} must be 1, or one device as '2,' (its index), but got {value!r}")
