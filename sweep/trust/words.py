"""What a score is worth, in sentences: for the terminal, the report and MLflow alike."""

from __future__ import annotations

from sweep.appraisal import Appraisal, Confirmation, Interval
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
        lines.append(f"Not corrected for having been chosen: {appraisal.why_not.rstrip('.')}")
    share = is_share(appraisal.best, direction)
    if appraisal.gain is not None and appraisal.p_better is not None:
        odds = f"; probability that it is better: {format_probability(appraisal.p_better)}"
        lines.append(gain_line(appraisal.gain, "than the baseline, corrected", share) + odds)
    if appraisal.more is not None:
        lines.append(more_line(appraisal.best, appraisal.more, share))
    return lines


def more_line(best: float, more: tuple[int, float], share: bool) -> str:
    """What as many trials again would bring to the score `best` (`Appraisal.more`)."""
    n, gain = more
    is_next_to_nothing = gain <= NEXT_TO_NOTHING * abs(best)
    said = "next to nothing" if is_next_to_nothing else f"about {amount(gain, share)}"
    return f"{n} more trials like these would gain {said}"


def confirmation_lines(found: Confirmation | None, direction: Direction) -> list[str]:
    """What the winner on fresh seeds is worth, a sentence a line; empty for None."""
    if found is None:
        return []
    lines = [
        f"Confirmed on {found.n_seeds} fresh seeds ({found.n_trained} trainings): {found.metric} "
        f"{format_interval(found.value)} on a new seed and split, by {found.winner_name}"
    ]
    if found.gain is not None:
        share = is_share(found.value.value, direction)
        lines.append(gain_line(found.gain, "than the reference on the same seeds", share))
    for whose, test in (("", found.test), ("the reference: ", found.reference_test)):
        if test:
            said = ", ".join(f"{name} {format_interval(one)}" for name, one in test.items())
            lines.append(f"Test split, {whose}{said}")
    if found.why_not_tested:
        lines.append(f"Not tested: {found.why_not_tested}")
    return lines


def gain_line(gain: Interval, than: str, share: bool) -> str:
    """A difference with its interval; one that may be none is no evidence."""
    low, high = (amount(end, share, unit=False) for end in (gain.low, gain.high))
    text = f"{amount(gain.value, share)} better {than} (95 % interval {low} to {high})"
    return text if gain.low > 0 else f"No evidence that the search helped: {text}"


def is_share(score: float, direction: Direction) -> bool:
    """Whether scores are shares of samples, whose differences are told in percentage points."""
    return direction == "maximize" and 0 <= score <= 1


def amount(difference: float, share: bool, *, unit: bool = True) -> str:
    """A difference of scores: of shares in percentage points.

    >>> amount(0.0123, True), amount(-2.5, False)
    ('1.23 points', '-2.5')
    """
    if share:
        return f"{100 * difference:.2f}{' points' if unit else ''}"
    return f"{difference:.4g}"


def format_interval(interval: Interval) -> str:
    """`0.9812 (95 % interval 0.957 to 0.9919)`."""
    return f"{interval.value:.4g} (95 % interval {interval.low:.4g} to {interval.high:.4g})"


def format_probability(p: float) -> str:
    """In percent, never 0 or 100.

    >>> format_probability(0.9999), format_probability(0.584), format_probability(0.0)
    ('above 99.9 %', '58.4 %', 'below 0.1 %')
    """
    if p > 0.999:
        return "above 99.9 %"
    return f"{100 * p:.1f} %" if p >= 0.001 else "below 0.1 %"
