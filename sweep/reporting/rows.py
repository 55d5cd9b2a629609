"""Studies and trials as plain rows for tables, JSON and CSV."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sweep.ledger.trials import LedgerTrial, StudySummary
from sweep.reporting.formats import format_metric, sparkline

_FINISHED = ("COMPLETE", "PRUNED", "FAIL")
STUDY_COLUMNS: Mapping[str, Callable[[StudySummary], Any]] = {
    "study": lambda study: study.name,
    "finished": lambda study: sum(study.n_by_state.get(state, 0) for state in _FINISHED),
    "of": lambda study: study.config.get("trials"),
    "complete": lambda study: study.n_by_state.get("COMPLETE", 0),
    "pruned": lambda study: study.n_by_state.get("PRUNED", 0),
    "failed": lambda study: study.n_by_state.get("FAIL", 0),
    "best": lambda study: study.best_value,
    "best_trial": lambda study: study.best_number,
    "data": lambda study: study.config.get("data"),
}
"""Columns of `sweep list`, each with its value."""
LEAST_OF_A_STUDY = ("complete", "pruned", "data", "failed", "best_trial")
"""Columns of `sweep list` left out on a narrow terminal, the first one first."""
_FIRST = ("number", "state", "value", "best_epoch", "n_epochs", "seconds")
FAILURE_COLUMNS = ("failure", "message")
LEAST_OF_A_TRIAL = ("n_epochs", "best_epoch", "seconds")
"""The same for `sweep trials`."""
CURVE_WIDTH = 20


def study_row(study: StudySummary) -> dict[str, Any]:
    """One line of `sweep list`."""
    return {column: value_of(study) for column, value_of in STUDY_COLUMNS.items()}


def trial_row(trial: LedgerTrial) -> dict[str, Any]:
    """One line of `sweep trials`: state, score, then its hyperparameters."""
    result = trial.result
    failure = result.get("failure") or {}
    taken = (*_FIRST, *FAILURE_COLUMNS)
    return {
        "number": trial.number,
        "state": str(trial.state),
        "value": trial.value,
        "best_epoch": result.get("best_epoch"),
        "n_epochs": result.get("n_epochs"),
        "seconds": result.get("seconds"),
        **{f"hp.{k}" if k in taken else k: v for k, v in trial.hyperparameters.items()},
        "failure": failure.get("kind"),
        "message": failure.get("message"),
    }


def trial_columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Columns of `sweep trials` that some row has; failures last."""
    names = dict.fromkeys([*_FIRST, *(k for row in rows for k in row)])
    last = [name for name in FAILURE_COLUMNS if any(row.get(name) for row in rows)]
    return [name for name in names if name not in FAILURE_COLUMNS] + last


def shown_columns(
    columns: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> tuple[list[str], Sequence[str]]:
    """(`columns` in the order for `rows`, columns to leave out first on a narrow terminal).

    If all trials failed, the reasons come first and stay.
    """
    if not rows or not all(row.get("failure") for row in rows):
        return list(columns), LEAST_OF_A_TRIAL
    head = ("number", *FAILURE_COLUMNS)
    others = [name for name in columns if name not in head and name not in LEAST_OF_A_TRIAL]
    return [*head, *others, *LEAST_OF_A_TRIAL], [*LEAST_OF_A_TRIAL, *others[::-1]]


def study_fields(study: StudySummary, trials: Sequence[LedgerTrial]) -> dict[str, Any]:
    """`sweep show STUDY`."""
    row = study_row(study)
    best = next((t for t in trials if t.number == study.best_number), None)
    fields: dict[str, Any] = {k: v for k, v in row.items() if k not in ("data", "best_trial")}
    fields["direction"] = study.direction
    if best is not None:
        fields["best_trial"] = {"number": best.number, **trial_row(best)}
        for name in FAILURE_COLUMNS:
            fields["best_trial"].pop(name)
    fields["settings"] = dict(study.config)
    return fields


def trial_fields(trial: LedgerTrial, study: str, checkpoint: str | None) -> dict[str, Any]:
    """`sweep show STUDY TRIAL`; `checkpoint` is its path or URI."""
    result = {k: v for k, v in trial.result.items() if k not in ("failure", "has_checkpoint")}
    metrics = {k: v for k, v in result.pop("metrics", {}).items() if k != "epoch_s"}
    named = ("name", "best_epoch", "n_epochs", "seconds")
    fields: dict[str, Any] = {
        "study": study,
        "number": trial.number,
        "state": str(trial.state),
        "value": trial.value,
        "hyperparameters": dict(trial.hyperparameters),
        **{name: result.pop(name) for name in named if name in result},
        "best_metrics": metrics,
        "checkpoint": checkpoint,
        **result,
        "curve": {str(epoch): value for epoch, value in sorted(trial.curve.items())},
    }
    if trial.result.get("failure"):
        fields["failure"] = trial.result["failure"]
    return fields


def in_words(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a trial for people: the curve is drawn, not listed."""
    curve = list(fields["curve"].values())
    if not curve:
        return dict(fields)
    ends = f"{format_metric(curve[0])} to {format_metric(curve[-1])}"
    return {**fields, "curve": f"{sparkline(curve, CURVE_WIDTH)}  {ends}"}
