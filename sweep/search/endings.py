"""How a trial ends: the state that it is in, and what is kept of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sweep.trial import (
    Failure,
    Notice,
    Stop,
    TrialFinished,
    TrialResult,
    TrialState,
    now_ms,
    seconds_of,
)

LONGEST_TRACEBACK = 20_000
"""Characters of a traceback that the ledger keeps; MLflow's traceback.txt has all of them."""


def summary_of(
    record: TrialFinished, name: str, metrics: Mapping[int, Mapping[str, float]]
) -> dict[str, Any]:
    """What the ledger keeps of an ended trial beside its curve; `metrics` are by epoch."""
    failure = record.failure
    return {
        "name": name,
        "best_epoch": record.best_epoch,
        "n_epochs": record.n_epochs,
        "metrics": dict(record.best_metrics),
        "seconds": seconds_of(metrics.values()),
        "has_checkpoint": record.checkpoint is not None,
        "has_model": record.model_file is not None,
        "time_ms": record.time_ms,
        "failure": failure and {
            "kind": failure.kind, "message": failure.message,
            "traceback": _last_lines(failure.traceback),
        },
        **record.tags,
    }  # fmt: skip


def _last_lines(text: str) -> str:
    """The end of a traceback, at most LONGEST_TRACEBACK characters: what raised comes last."""
    if len(text) <= LONGEST_TRACEBACK:
        return text
    _, _, rest = text[-LONGEST_TRACEBACK:].partition("\n")
    return f"...\n{rest}"


def verdict_of(result: TrialResult, stop: Stop | None) -> tuple[TrialState, Failure | None]:
    """The state that a trial ends in: the trainer says what happened, the driver what it means.

    One that was stopped without the driver's order was interrupted by its executor.
    """
    if result.outcome == "failed":
        return TrialState.FAIL, result.failure or Failure("exception", "unknown failure")
    reason = stop.reason if stop is not None else "interrupted"
    if result.outcome == "finished" or reason == "converged":
        return TrialState.COMPLETE, None
    if reason == "pruned":
        return TrialState.PRUNED, None
    if reason == "timeout":
        return TrialState.FAIL, Failure("timeout", "the trial took longer than --trial-timeout")
    return TrialState.WAITING, None


def told_of(state: TrialState) -> TrialState:
    """What the sampler hears: an interrupted trial taught it nothing."""
    return TrialState.FAIL if state is TrialState.WAITING else state


def notice(message: str) -> Notice:
    """A line for the user, now."""
    return Notice(now_ms(), message)
