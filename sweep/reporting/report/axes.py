"""What varies in a study: one axis for each of Optuna's parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sweep.ledger.trials import LedgerTrial
from sweep.reporting.formats import format_value

MAX_LABEL = 80
"""Characters of a choice on the page."""


@dataclass(frozen=True, slots=True)
class Axis:
    """A parameter that varies: a range of numbers, or a few choices."""

    name: str
    values: tuple[float | None, ...] = field(repr=False)
    """For each trial the number, or the place in `choices`; None if the trial lacks it."""
    choices: tuple[str, ...] = ()
    """Labels of the choices; empty for numbers."""
    is_ordered: bool = True
    """Whether the values go from small to large: numbers, or choices that are numbers."""
    is_log: bool = False
    low: float = 0.0
    high: float = 0.0
    """Bounds of the search space; for choices those of their places."""

    def place(self, value: float) -> float:
        """Where a value lies between the bounds, from 0 to 1, on the axis' own scale."""
        low, high = self.low, self.high
        if self.is_log and low > 0 and value > 0:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low) if high > low else 0.5

    def label(self, value: float) -> str:
        """A value as people read it."""
        return self.choices[int(value)] if self.choices else format_value(value)


def axes_of(trials: Sequence[LedgerTrial]) -> list[Axis]:
    """The axes of a study, in the order of its search space; only parameters that vary."""
    found: dict[str, list[Any]] = {}
    for trial in trials:
        for name, distribution in trial.frozen.distributions.items():
            found.setdefault(name, []).append(distribution)
    configurations = [_by_place(flat(trial), trial, found) for trial in trials]
    names = dict.fromkeys([*found, *(name for values in configurations for name in values)])
    axes = (_axis(name, configurations, found.get(name, [])) for name in names)
    return [axis for axis in axes if axis is not None]


def flat(trial: LedgerTrial) -> dict[str, Any]:
    """Optuna's parameters of a trial, and what else its configuration has; lists by place."""
    values = dict(trial.params)
    for name, value in trial.hyperparameters.items():
        if not isinstance(value, tuple):
            values.setdefault(name, value)
        elif name not in values and not any(key.startswith(f"{name}.") for key in values):
            values[name] = format_value(value)
    return {k: v for k, v in values.items() if not isinstance(v, float) or math.isfinite(v)}


def _by_place(
    values: dict[str, Any], trial: LedgerTrial, known: Mapping[str, Any]
) -> dict[str, Any]:
    """With a list by place where Optuna did not draw it, such as the baseline's layers."""
    for name, given in trial.hyperparameters.items():
        is_drawn_elsewhere = isinstance(given, tuple) and f"{name}.n_layers" in known
        if is_drawn_elsewhere and f"{name}.n_layers" not in values:
            values.pop(name, None)
            values[f"{name}.n_layers"] = len(given)
            values |= {f"{name}.{place}": value for place, value in enumerate(given)}
    return values


def _axis(
    name: str, configurations: Sequence[Mapping[str, Any]], distributions: Sequence[Any]
) -> Axis | None:
    """The axis of one parameter; None if it does not vary."""
    given = [values.get(name, _ABSENT) for values in configurations]
    there = [value for value in given if value is not _ABSENT]
    if len({_key(value) for value in there}) < 2:
        return None
    if all(_is_number(value) for value in there) and not _choices(distributions):
        ranges = [d for d in distributions if hasattr(d, "low")]
        low = min([*there, *(d.low for d in ranges)])
        high = max([*there, *(d.high for d in ranges)])
        is_log = any(d.log for d in ranges) and low > 0
        values = tuple(None if value is _ABSENT else float(value) for value in given)
        return Axis(name, values, is_log=is_log, low=float(low), high=float(high))
    known = {_key(value): value for value in [*_choices(distributions), *there]}
    is_ordered = all(_is_number(value) for value in known.values())
    order = sorted(known, key=lambda key: known[key]) if is_ordered else [*known]
    at = {key: float(place) for place, key in enumerate(order)}
    values = tuple(None if value is _ABSENT else at[_key(value)] for value in given)
    labels = tuple(shortened(format_value(known[key])) for key in order)
    return Axis(name, values, labels, is_ordered, high=float(len(order) - 1))


_ABSENT = object()


def _choices(distributions: Iterable[Any]) -> list[Any]:
    return [choice for d in distributions for choice in getattr(d, "choices", ())]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _key(value: Any) -> tuple[str, str]:
    """1 and 1.0 are one value; true and "1" are others."""
    return ("number", repr(float(value))) if _is_number(value) else ("other", repr(value))


def shortened(text: str, length: int = MAX_LABEL) -> str:
    """`text` with an ellipsis in place of what is beyond `length`."""
    return text if len(text) <= length else f"{text[: length - 1]}…"
