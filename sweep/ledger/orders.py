"""Orders of the user to a search that runs elsewhere, and the driver's word on its running trials.

Both travel as system attributes of the Optuna study: any process that reaches the storage can
write and read them, and they cost one small SELECT, however many trials there are. Optuna cannot
remove an attribute, so an order that was followed is emptied.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from optuna.storages import BaseStorage

from sweep.trial import now_ms

Verb = Literal["stop", "prune", "extend"]

ORDER = "sweep:order:"
"""Prefix of the attributes with an order each; "" once it was followed."""
LIVE = "sweep:live"
MOST_POINTS = 2048
"""Points of all curves in LIVE: a text in MySQL has 65,535 characters."""
LONGEST_CURVE = 32


@dataclass(frozen=True, slots=True)
class UserOrder:
    """What a user asked of a search."""

    key: str
    """Its attribute."""
    verb: Verb
    number: int
    """prune: the trial; extend: the study's new total; stop: 0."""
    time_ms: int
    by: str
    """Process and host."""


@dataclass(frozen=True, slots=True)
class LiveTrial:
    """A running trial, as far as it has reported."""

    number: int
    epochs_done: float
    resumed_at: float
    """Epochs that earlier searches trained."""
    best: float
    """Best objective so far; NaN: none yet."""
    values: tuple[float, ...]
    """The objective at its latest reports."""


@dataclass(frozen=True, slots=True)
class LiveSearch:
    """A running search, by its driver's word."""

    began_ms: int
    training_ms: int
    """When its first trial had begun."""
    time_ms: int
    """When the driver said so."""
    trials: tuple[LiveTrial, ...]


class OrderBook:
    """The orders of one study, and its LiveSearch.

    Raises StoreError, and KeyError if the study was deleted meanwhile.
    """

    def __init__(self, storage: BaseStorage, study_id: int) -> None:
        self._storage, self._study_id = storage, study_id

    def give(self, verb: Verb, number: int = 0) -> None:
        """Ask something of the study's search, the present or the next one."""
        by = f"process {os.getpid()} on {socket.gethostname()}"
        order = {"verb": verb, "number": number, "time_ms": now_ms(), "by": by}
        self._set(f"{ORDER}{uuid.uuid4().hex[:12]}", json.dumps(order))

    def kept(self) -> list[UserOrder]:
        """Orders that nobody has followed yet, the earliest first."""
        attrs = self._storage.get_study_system_attrs(self._study_id)
        found = [_order(key, text) for key, text in attrs.items() if key.startswith(ORDER)]
        return sorted(filter(None, found), key=lambda order: order.time_ms)

    def empty(self, order: UserOrder) -> None:
        """Note that an order was followed."""
        self._set(order.key, "")

    def tell(self, search: LiveSearch) -> None:
        """Keep the driver's word."""
        n_points = max(1, min(LONGEST_CURVE, MOST_POINTS // max(1, len(search.trials))))
        trials = [
            [t.number, t.epochs_done, t.resumed_at, _short(t.best)]
            + [_short(value) for value in t.values[-n_points:]]
            for t in search.trials
        ]
        times_ms = search.began_ms, search.training_ms, search.time_ms
        self._set(LIVE, json.dumps({"times_ms": times_ms, "trials": trials}))

    def told(self) -> LiveSearch | None:
        """What the last driver said; None: nothing that can be read."""
        text = self._storage.get_study_system_attrs(self._study_id).get(LIVE)
        with contextlib.suppress(TypeError, ValueError, KeyError):
            told = json.loads(text or "")
            trials = [
                LiveTrial(number, done, resumed, _number(best), tuple(map(_number, values)))
                for number, done, resumed, best, *values in told["trials"]
            ]
            began_ms, training_ms, time_ms = told["times_ms"]
            return LiveSearch(began_ms, training_ms, time_ms, tuple(trials))
        return None

    def _set(self, key: str, text: str) -> None:
        self._storage.set_study_system_attr(self._study_id, key, text)


def _order(key: str, text: Any) -> UserOrder | None:
    """None for an order that was followed, or is of another form."""
    with contextlib.suppress(TypeError, ValueError):
        values = json.loads(text)
        if isinstance(values, Mapping):
            return UserOrder(key, **values)
    return None


def _short(value: float) -> float | None:
    """Six digits; JSON has no NaN and no infinity."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
