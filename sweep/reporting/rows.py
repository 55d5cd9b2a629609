"""Studies and trials as plain rows for tables, JSON and CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sweep.ledger import LedgerTrial, StudySummary
from sweep.space import short

STUDY_COLUMNS = (
    "study",
    "finished",
    "of",
    "complete",
    "pruned",
    "failed",
    "best",
    "best_trial",
    "data",
)
_FIRST = ("number", "state", "value", "best_epoch", "n_epochs", "seconds")


def study_row(study: StudySummary) -> dict[str, Any]:
    """One line of `sweep list`."""
    counts = study.n_by_state
    complete, pruned, failed = (counts.get(s, 0) for s in ("COMPLETE", "PRUNED", "FAIL"))
    return {
        "study": study.name,
        "finished": complete + pruned + failed,
        "of": study.config.get("trials"),
        "complete": complete,
        "pruned": pruned,
        "failed": failed,
        "best": study.best_value,
        "best_trial": study.best_number,
        "data": study.config.get("data"),
    }


def trial_row(trial: LedgerTrial) -> dict[str, Any]:
    """One line of `sweep trials`: state, score, then its hyperparameters."""
    result = trial.result
    hyperparameters = {
        k: short(v) if isinstance(v, tuple) else v for k, v in trial.hyperparameters.items()
    }
    failure = result.get("failure") or {}
    return {
        "number": trial.number,
        "state": str(trial.state),
        "value": trial.value,
        "best_epoch": result.get("best_epoch"),
        "n_epochs": result.get("n_epochs"),
        "seconds": result.get("seconds"),
        **hyperparameters,
        "failure": failure.get("kind"),
    }


def trial_columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Columns of `sweep trials`: only those that some row has; failures last."""
    names = dict.fromkeys([*_FIRST, *(k for row in rows for k in row)])
    names.pop("failure", None)
    if any(row.get("failure") for row in rows):
        names["failure"] = None
    return list(names)


def study_fields(study: StudySummary, trials: Sequence[LedgerTrial]) -> dict[str, Any]:
    """`sweep show STUDY`."""
    row = study_row(study)
    best = next((t for t in trials if t.number == study.best_number), None)
    fields: dict[str, Any] = {k: v for k, v in row.items() if k not in ("data", "best_trial")}
    fields["direction"] = study.direction
    if best is not None:
        fields["best_trial"] = {"number": best.number, **trial_row(best)}
        fields["best_trial"].pop("failure", None)
    fields["settings"] = dict(study.config)
    return fields


def trial_fields(trial: LedgerTrial, study: str) -> dict[str, Any]:
    """`sweep show STUDY TRIAL`."""
    result = dict(trial.result)
    result.pop("failure", None)
    fields: dict[str, Any] = {
        "study": study,
        "number": trial.number,
        "state": str(trial.state),
        "value": trial.value,
        "hyperparameters": {
            k: short(v) if isinstance(v, tuple) else v for k, v in trial.hyperparameters.items()
        },
        **result,
        "curve": {str(epoch): value for epoch, value in sorted(trial.curve.items())},
    }
    if trial.result.get("failure"):
        fields["failure"] = trial.result["failure"]
    return fields
