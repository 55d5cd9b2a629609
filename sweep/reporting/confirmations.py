"""A confirmation in words."""

from __future__ import annotations

import math
from collections.abc import Mapping

from sweep.appraisal import Confirmation, Finalist, Interval
from sweep.objective import told_direction
from sweep.reporting.appraisals import amount, format_interval
from sweep.reporting.formats import format_metric


def confirmation_lines(found: Confirmation) -> list[str]:
    """A line for each finalist, then the winner's score, its gain, and the test."""
    rows = [*found.finalists, *([found.reference] if found.reference else [])]
    width = max(len(one.name) for one in rows)
    lines = [f"{'':{width}}  search  on fresh seeds"]
    lines += [_row(one, width) + _role(found, one) for one in rows]
    lines += ["", (
        f"{found.metric} {format_interval(found.value)} on a new seed and split: "
        f"{_winner(found).name}, {found.n_seeds} seeds, {found.n_trained} trainings"
    )]  # fmt: skip
    if found.gain is not None and found.reference is not None:
        lines.append(_gain(found, found.gain))
    for who, test in (("", found.test), ("the reference: ", found.reference_test)):
        if test:
            lines.append(f"Test split, {who}{_metrics(test)}")
    if found.why_not_tested:
        lines.append(f"Not tested: {found.why_not_tested}")
    return lines


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
    return "  (the reference)" if found.reference and one is found.reference else ""


def _winner(found: Confirmation) -> Finalist:
    return next(one for one in found.finalists if one.trial == found.winner)


def _gain(found: Confirmation, gain: Interval) -> str:
    share = told_direction(found.metric) == "maximize" and 0 <= found.value.value <= 1
    low, high = (amount(end, share, unit=False) for end in (gain.low, gain.high))
    text = (
        f"{amount(gain.value, share)} better than the reference on the same seeds "
        f"(95 % interval {low} to {high})"
    )
    return text if gain.low > 0 else f"No evidence that the search helped: {text}"


def _metrics(test: Mapping[str, Interval]) -> str:
    return ", ".join(f"{name} {format_interval(one)}" for name, one in test.items())
