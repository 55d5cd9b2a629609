"""An appraisal in words."""

from __future__ import annotations

from sweep.appraisal import Appraisal, Interval
from sweep.reporting.formats import format_metric
from sweep.trial import Direction

NEXT_TO_NOTHING = 5e-5
"""Of a score: smaller gains are not told in digits."""


def appraisal_lines(appraisal: Appraisal | None, direction: Direction) -> list[str]:
    """What the best score is worth, a sentence a line; empty if nothing can be said."""
    if appraisal is None:
        return []
    lines = []
    if appraisal.corrected is not None:
        lines.append(
            f"Corrected for having been chosen: {format_interval(appraisal.corrected)}, from "
            f"{appraisal.n_samples:,} validation samples"
        )
    else:
        lines.append(f"Not corrected for having been chosen: {appraisal.why_not}")
    if appraisal.gain is not None and appraisal.p_better is not None:
        lines.append(_gain(appraisal, appraisal.gain, appraisal.p_better, direction))
    if appraisal.more is not None:
        n, gain = appraisal.more
        is_next_to_nothing = gain <= NEXT_TO_NOTHING * max(abs(appraisal.best), 1e-300)
        said = "next to nothing" if is_next_to_nothing else (
            f"about {amount(gain, is_share(appraisal, direction))}"
        )  # fmt: skip
        lines.append(f"{n} more trials like these would gain {said}")
    return lines


def _gain(appraisal: Appraisal, gain: Interval, p_better: float, direction: Direction) -> str:
    share = is_share(appraisal, direction)
    word = "better" if gain.value >= 0 else "worse"
    text = (
        f"{amount(abs(gain.value), share)} {word} than the baseline, corrected (95 % interval "
        f"{amount(gain.low, share, unit=False)} to {amount(gain.high, share, unit=False)}); "
        f"probability that it is better: {format_probability(p_better)}"
    )
    return text if appraisal.is_evidence else f"No evidence that the search helped: {text}"


def is_share(appraisal: Appraisal, direction: Direction) -> bool:
    """Whether scores are shares of samples, whose differences are told in percentage points."""
    return direction == "maximize" and 0 <= appraisal.best <= 1


def amount(difference: float, share: bool, *, unit: bool = True) -> str:
    """A difference of scores: of shares in percentage points.

    >>> amount(0.0123, True), amount(-2.5, False)
    ('1.23 points', '-2.500')
    """
    if share:
        return f"{100 * difference:.2f}{' points' if unit else ''}"
    return format_metric(difference)


def format_interval(interval: Interval) -> str:
    """`0.9812 (95 % interval 0.9570 to 0.9919)`."""
    low, high = format_metric(interval.low), format_metric(interval.high)
    return f"{format_metric(interval.value)} (95 % interval {low} to {high})"


def format_probability(p: float) -> str:
    """In percent, never 0 or 100.

    >>> format_probability(0.9999), format_probability(0.584), format_probability(0.0)
    ('above 99.9 %', '58.4 %', 'below 0.1 %')
    """
    if p > 0.999:
        return "above 99.9 %"
    return f"{100 * p:.1f} %" if p >= 0.001 else "below 0.1 %"
