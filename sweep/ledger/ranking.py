"""The result of a search: its best trials, its baseline, its end."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Sequence

from sweep.config.settings import RunConfig
from sweep.hyperparameters import REFERENCE
from sweep.ledger.trials import BASELINE, LedgerTrial
from sweep.objective import Objective
from sweep.space import canonical_key
from sweep.trial import MAX_RANKED, EndReason, Ranked, StudyFinished, TrialState
from sweep.trust.appraise import appraise


def study_end(
    config: RunConfig, trials: Sequence[LedgerTrial], reason: EndReason, time_ms: int
) -> StudyFinished:
    """The final record of a search that ended for `reason`."""
    objective = Objective(config.metric, config.resolved_direction)
    best, baseline = objective.best(trials), _baseline(config, trials)
    return StudyFinished(
        time_ms,
        n_by_state=dict(Counter(str(t.state) for t in trials)),
        best_number=best.number if best else None,
        best_value=best.value if best else None,
        baseline_value=baseline.value if baseline else None,
        reason=reason,
        ranking=ranking_of(trials, objective),
        appraisal=appraise(
            trials, objective, config.study_dir, baseline.number if baseline else None
        ),
    )


def ranking_of(trials: Sequence[LedgerTrial], objective: Objective) -> list[Ranked]:
    """The best completed trials, best first, the earlier of equals first."""
    scored = [
        (-objective.goodness(trial.value), trial.number, trial)
        for trial in trials
        if trial.state is TrialState.COMPLETE and objective.goodness(trial.value) > -math.inf
    ]
    return [
        Ranked(number, trial.result.get("name") or f"t{number:03d}", trial.value or 0.0)
        for _, number, trial in heapq.nsmallest(MAX_RANKED, scored, key=lambda s: s[:2])
    ]


def _baseline(config: RunConfig, trials: Sequence[LedgerTrial]) -> LedgerTrial | None:
    """Trial 0, if that is the reference network or has the defaults, and is complete."""
    if not trials or trials[0].state is not TrialState.COMPLETE:
        return None
    is_reference = canonical_key(trials[0].hyperparameters) == canonical_key(REFERENCE)
    is_baseline = config.baseline if is_reference else BASELINE in trials[0].frozen.user_attrs
    return trials[0] if is_baseline else None
