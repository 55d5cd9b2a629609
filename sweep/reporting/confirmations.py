"""The finalists of a race, a line each."""

from __future__ import annotations

import math

from sweep.appraisal import Confirmation, Finalist
from sweep.reporting.formats import format_metric


def race_lines(found: Confirmation) -> list[str]:
    """Each finalist's score in the search and its mean over fresh seeds."""
    rows = list(found.finalists)
    if found.reference is not None and found.reference.trial not in {r.trial for r in rows}:
        rows.append(found.reference)
    width = max(len(one.name) for one in rows)
    return [
        f"{'':{width}}  search  on fresh seeds",
        *(_row(one, width) + _role(found, one) for one in rows),
    ]


def _row(one: Finalist, width: int) -> str:
    scores = [score for score in one.scores if math.isfinite(score)]
    mean = sum(scores) / len(scores) if scores else None
    seeds = "seed" if len(scores) == 1 else "seeds"
    return (
        f"{one.name:{width}}  {format_metric(one.before)}  {format_metric(mean)}, "
        f"{len(scores)} {seeds}"
    )


def _role(found: Confirmation, one: Finalist) -> str:
    if one.trial == found.winner:
        return "  <- chosen"
    if found.reference is not None and one.trial == found.reference.trial:
        return "  (the reference)"
    return "  dropped out" if math.isnan(one.scores[-1]) else ""
