"""Names for configurations: a key for exact duplicates, a readable run name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sweep.trial import HyperValue

MAX_NAME_LENGTH = 60
_HEADLINE = ("optimizer", "lr", "hidden")


def canonical_key(hyperparameters: Mapping[str, HyperValue]) -> str:
    """A text, equal for exact duplicates.

    It ignores the order of names, int or float, tuple or list; floats are compared to 12
    significant digits because of rounding in `low + k * step`.
    """
    return json.dumps({name: _canonical(value) for name, value in hyperparameters.items()},
                      sort_keys=True)  # fmt: skip


def _canonical(value: HyperValue) -> Any:
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if isinstance(value, float):
        rounded = float(f"{value:.12g}")
        return int(rounded) if rounded.is_integer() else rounded
    return value if value is None or isinstance(value, str | bool | int) else str(value)


def run_name(number: int, hyperparameters: Mapping[str, HyperValue]) -> str:
    """A name for tables and MLflow, at most 60 characters.

    >>> run_name(17, {"hidden": (256, 64), "lr": 0.0012, "optimizer": "Adam", "momentum": 0.9})
    't017 Adam lr=1.2e-3 256-64'
    >>> run_name(3, {"depth": 4, "kernel": "rbf"})
    't003 depth=4 kernel=rbf'
    """
    parts = [_headline(name, hyperparameters[name]) for name in _HEADLINE
             if name in hyperparameters]  # fmt: skip
    if len(parts) < 2:
        rest = (name for name in hyperparameters if name not in _HEADLINE)
        parts += [f"{name}={short(hyperparameters[name])}" for name in rest]
    text = f"t{number:03d}"
    for part in parts:
        if len(text) + 1 + len(part) > MAX_NAME_LENGTH:
            break
        text += f" {part}"
    return text


def _headline(name: str, value: HyperValue) -> str:
    if name == "hidden" and isinstance(value, list | tuple) and not value:
        return "linear"
    return f"lr={short(value)}" if name == "lr" else short(value)


def short(value: HyperValue) -> str:
    """A value in few characters, with the words of a YAML file: 1.2e-3, 256-64, relu.

    >>> [short(x) for x in (0.00123, 0.05, 1e-4, 64, (256, 64), True, None)]
    ['1.2e-3', '0.05', '1e-4', '64', '256-64', 'true', 'null']
    """
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, list | tuple):
        return "-".join(short(item) for item in value)
    if not isinstance(value, float):
        return str(value)
    if value == 0.0 or 0.01 <= abs(value) < 10_000:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}" if exponent else mantissa
