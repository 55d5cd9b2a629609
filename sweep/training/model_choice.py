"""Selects the completed trials with a logged model: `--log-models`."""

from __future__ import annotations

import bisect

from sweep.hyperparameters import DEFAULT_MODULE
from sweep.training.run import Run
from sweep.trial import Task

QUICK_S = 0.05
"""Up to this time an export costs less than a trial's records."""
N_BEST = 10
"""Trials with a model if exports are slow: the ones a user is likely to inspect."""


class ModelChoice:
    """Decides for each trial, as it ends, whether to export its model.

    `best:K` ranks the trials ended by this worker: several workers may export more than K. `auto`
    means all for the built-in network, whose exports share a traced program (12 ms); for a user's
    module it depends on the time of the second export, as torch loads its exporter in the first.
    """

    def __init__(self, task: Task) -> None:
        self._how, self._module = task.log_models, task.module
        self._limit: int | None = None
        if task.log_models.startswith("best:"):
            self._limit = int(task.log_models.partition(":")[2])
        self._goodness: list[float] = []
        """Goodness of the trials so far, worst first."""
        self._n_exported = 0

    def includes(self, run: Run) -> bool:
        """Whether to export the model of the trial just ended."""
        goodness = run.objective.goodness(run.best_value)
        bisect.insort(self._goodness, goodness)
        if self._how == "none":
            return False
        return self._limit is None or goodness >= self._goodness[-self._limit :][0]

    def exported(self, took_s: float) -> str:
        """Record an export of `took_s` seconds; returns a notice for the user, or ""."""
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
