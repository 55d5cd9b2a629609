"""Pruners, one record each: the only place that lists them. Loads Optuna when one is made.

A new pruner is one entry of PRUNERS: `--pruner`, its help and the documentation read the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.pruners import BasePruner


@dataclass(frozen=True)
class Pruner:
    """A pruner of Optuna's, by name."""

    meaning: str
    """One line for users."""
    make: Callable[[Any, int], BasePruner]
    """(package optuna, most epochs of a trial) -> pruner."""


PRUNERS = {
    "none": Pruner("every trial trains to its end", lambda optuna, _: optuna.pruners.NopPruner()),
    "median": Pruner(
        "worse than the median of completed trials at that epoch",
        # Optuna counts steps from 0, epochs count from 1: the first epoch is not judged.
        lambda optuna, _: optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=2),
    ),
    "asha": Pruner(
        "asynchronous successive halving, the best third goes on",
        lambda optuna, _: optuna.pruners.SuccessiveHalvingPruner(
            min_resource=1, reduction_factor=3
        ),
    ),
    "hyperband": Pruner(
        "successive halving in several brackets",
        lambda optuna, n_epochs: optuna.pruners.HyperbandPruner(
            min_resource=1, max_resource=n_epochs, reduction_factor=3
        ),
    ),
    "patient": Pruner(
        "median, after a quarter of the epochs without progress",
        lambda optuna, n_epochs: optuna.pruners.PatientPruner(
            optuna.pruners.MedianPruner(n_startup_trials=5), patience=max(1, n_epochs // 4)
        ),
    ),
}


def make_pruner(name: str, n_epochs: int) -> BasePruner:
    """The pruner called `name`, for trials of at most `n_epochs` epochs."""
    import optuna

    return PRUNERS[name].make(optuna, n_epochs)
