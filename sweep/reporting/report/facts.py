"""What is known of a study for its page, gathered once from the ledger."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sweep.appraisal import Appraisal
from sweep.config.settings import RunConfig
from sweep.ledger.ranking import study_end
from sweep.ledger.study import Ledger
from sweep.ledger.trials import LedgerTrial
from sweep.objective import Objective
from sweep.reporting.report.axes import Axis, axes_of
from sweep.reporting.report.findings import ranked
from sweep.trial import EPOCHS_DONE, VALUE, DatasetInfo, StudyFinished
from sweep.trust.importance import Column, Importance, better_half, importances


@dataclass(frozen=True)
class StudyFacts:
    """A study, as its page needs it."""

    name: str
    config: RunConfig
    """The study's own settings."""
    stored: Mapping[str, Any]
    """The same as they are stored; empty for another program's study."""
    objective: Objective
    trials: Sequence[LedgerTrial] = field(repr=False)
    """Trials that began, by number."""
    best_first: Sequence[LedgerTrial] = field(repr=False)
    """Completed ones."""
    axes: Sequence[Axis] = field(repr=False)
    """What varies; the most important first."""
    importance: Sequence[Importance]
    importance_of_better: Sequence[Importance]
    """The same among the better half of the scores."""
    appraisal: Appraisal | None
    end: StudyFinished
    began: datetime | None
    """When the first trial started."""
    wall_s: float
    """From the first trial's start to the last one's end."""
    space_text: str = field(repr=False)
    tags: Mapping[str, str] = field(repr=False)
    dataset: DatasetInfo | None = None

    @property
    def n_scored(self) -> int:
        """Trials with a score, from which importance is told."""
        return sum(value is not None for value in goodness_of(self.trials, self.objective))

    @property
    def n_epochs(self) -> int:
        """Epochs of a trial at most: by the settings, or by the longest."""
        return max([self.config.epochs, *(epochs_of(trial) for trial in self.trials)])


def facts_of(ledger: Ledger, config: RunConfig) -> StudyFacts:
    """Gather; `config` are the study's own settings (see `reuse.best.located`)."""
    stored = ledger.config
    metric = config.metric if stored else VALUE
    objective = Objective(metric, ledger.direction)
    trials = [t for t in ledger.trials() if t.queued is None]
    goodness = goodness_of(trials, objective)
    axes = axes_of(trials)
    columns = {
        a.name: Column(a.values, is_choice=bool(a.choices) and not a.is_ordered) for a in axes
    }
    found = importances(columns, goodness)
    order = {one.name: place for place, one in enumerate(found)}
    times = [t.frozen.datetime_start for t in trials if t.frozen.datetime_start]
    ends = [t.frozen.datetime_complete for t in trials if t.frozen.datetime_complete]
    end = study_end(config, trials, "done", 0)
    return StudyFacts(
        name=ledger.name, config=config, stored=stored, objective=objective, trials=trials,
        best_first=ranked(trials, objective),
        axes=sorted(axes, key=lambda axis: order.get(axis.name, len(order))),
        importance=found,
        importance_of_better=importances(columns, better_half(goodness)),
        appraisal=end.appraisal,
        end=end,
        began=min(times, default=None),
        wall_s=(max(ends) - min(times)).total_seconds() if times and ends else 0.0,
        space_text=ledger.space_text, tags=ledger.tags, dataset=ledger.dataset,
    )  # fmt: skip


def goodness_of(trials: Sequence[LedgerTrial], objective: Objective) -> list[float | None]:
    """A number for each trial with a finite score, larger for a better one."""
    values = [objective.goodness(t.value) if t.state.is_scored else None for t in trials]
    return [None if value == -float("inf") else value for value in values]


def epochs_of(trial: LedgerTrial) -> int:
    """Epochs that a trial trained."""
    if EPOCHS_DONE in trial.result.get("metrics", {}) and trial.reports:
        return math.ceil(trial.reports[-1].epochs_done)
    return int(trial.result.get("n_epochs") or max(trial.curve, default=0))
