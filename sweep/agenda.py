"""What the driver has in hand: trials that run, and trials that are to."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sweep.trial import Stop, TrainerName, TrialSpec


@dataclass
class Running:
    """What the driver knows of a trial that a worker trains."""

    spec: TrialSpec
    name: str
    began: float = field(default_factory=time.monotonic)
    metrics: dict[int, Mapping[str, float]] = field(default_factory=dict)
    best_epoch: int = 0
    stop: Stop | None = None
    n_retries: int = 0
    start_epoch: int | None = None
    spent_s: float = 0.0
    """Time that it was trained for by workers that gave it back."""


@dataclass(frozen=True)
class Planned:
    """A configuration that is to be trained whatever the sampler would say."""

    hyperparameters: Mapping[str, Any]
    params: Mapping[str, Any] | None
    number: int | None = None
    """Set for a trial that already has one: it was interrupted."""
    start_epoch: int | None = None
    """Population epoch that it first started in, where it trained at all."""
    trainer: TrainerName | None = None
    """The path that it was begun in, where that is known."""
