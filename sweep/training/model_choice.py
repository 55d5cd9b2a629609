"""Which completed trials of a worker get a model: `--log-models`."""

from __future__ import annotations

import bisect

from sweep.hyperparameters import DEFAULT_MODULE
from sweep.training.run import Run
from sweep.trial import Task

QUICK_S = 0.05
"""An export that takes no longer costs less than a trial's records do."""
N_BEST = 10
"""Trials that are likely to be looked at."""


class ModelChoice:
    """Says for each trial, as it ends, whether its model is exported.

    The best are the best that this worker ended: with several workers there may be more of them.
    `auto` is all for the built-in network, whose exports share a traced program (12 ms); for a
    module of the user's it is what the second export takes, because torch loads its exporter at
    the first.
    """

    def __init__(self, task: Task) -> None:
        self._how, self._module = task.log_models, task.module
        self._limit: int | None = None
        if task.log_models.startswith("best:"):
            self._limit = int(task.log_models.partition(":")[2])
        self._goodness: list[float] = []
        """Of the trials so far, worst first."""
        self._n_exported = 0

    def includes(self, run: Run) -> bool:
        """Whether the trial, which ended just now, gets a model."""
        goodness = run.objective.goodness(run.best_value)
        bisect.insort(self._goodness, goodness)
        if self._how == "none":
            return False
        return self._limit is None or goodness >= self._goodness[-self._limit :][0]

    def exported(self, took_s: float) -> str:
        """Take note of an export; what the user should know of the choice, or ""."""
        self._n_exported += 1
        if self._how != "auto" or self._module == DEFAULT_MODULE or self._n_exported != 2:
            return ""
        if took_s <= QUICK_S:
            return ""
        self._limit = N_BEST
        return (
            f"exporting {self._module} takes {1000 * took_s:.0f} ms: only trials among the best "
            f"{N_BEST} as they end get a logged model (--log-models all: each of them)"
        )
