"""What the charts of a page draw, as plain JSON: columns, one value a trial."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sweep.reporting.report.axes import Axis, shortened
from sweep.reporting.report.facts import StudyFacts, epochs_of
from sweep.trial import TrialState
from sweep.trust.importance import Importance

MAX_POINTS = 40_000
"""Points of all learning curves together; a curve has 12 to 200 of them."""
LETTERS = {
    TrialState.COMPLETE: "C", TrialState.PRUNED: "P", TrialState.FAIL: "F",
    TrialState.RUNNING: "R", TrialState.WAITING: "R",
}  # fmt: skip


def chart_data(facts: StudyFacts) -> dict[str, Any]:
    """Trials as columns: number, state, score, best epoch, curve, and a column for each axis."""
    trials = facts.trials
    most = min(200, max(12, MAX_POINTS // max(1, len(trials))))
    baseline = facts.end.baseline_value
    return {
        "metric": facts.objective.metric,
        "direction": facts.objective.direction,
        "epochs": facts.n_epochs,
        "best": facts.best_first[0].number if facts.best_first else None,
        "baseline": rounded(baseline, 6),
        "number": [trial.number for trial in trials],
        "state": "".join(LETTERS[trial.state] for trial in trials),
        "score": [rounded(t.value, 6) if t.state.is_scored else None for t in trials],
        "epoch": [trial.result.get("best_epoch") for trial in trials],
        "n_epochs": [epochs_of(trial) for trial in trials],
        "axes": [_axis(axis) for axis in facts.axes],
        "curves": [thinned(trial.curve, most) for trial in trials],
        "importance": [
            _pair(one, {other.name: other for other in facts.importance_of_better})
            for one in facts.importance
        ],
    }  # fmt: skip


def rounded(value: float | None, digits: int) -> float | int | None:
    """`value` with so many significant digits; None for NaN, infinities and None."""
    if value is None or not math.isfinite(value):
        return None
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def thinned(curve: Mapping[int, float], most: int) -> list[float | int | None]:
    """Epoch, value, epoch, value ...: at most `most` points, the last one among them."""
    points = sorted(curve.items())
    step = max(1, math.ceil(len(points) / most))
    kept = [*points[:-1:step], *points[-1:]]
    return [number for epoch, value in kept for number in (epoch, rounded(value, 4))]


def _axis(axis: Axis) -> dict[str, Any]:
    digits = 6 if axis.choices else 4
    shown: dict[str, Any] = {
        "name": shortened(axis.name),
        "low": axis.low,
        "high": axis.high,
        "values": [rounded(value, digits) for value in axis.values],
    }
    return shown | ({"choices": axis.choices} if axis.choices else {"log": axis.is_log})


def _pair(one: Importance, others: Mapping[str, Importance]) -> dict[str, Any]:
    better = others.get(one.name)
    return {
        "name": shortened(one.name),
        "all": _numbers(one),
        "better": _numbers(better) if better else None,
    }


def _numbers(one: Importance) -> Sequence[Any]:
    return [rounded(one.share, 3), rounded(one.low, 3), rounded(one.high, 3), one.is_sure]
