"""What the trials teach, in sentences: parameters, choices, bounds, epochs.

Names stand in backticks, which each form of the page draws in its own way.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Collection, Sequence

from sweep.appraisal import Appraisal
from sweep.ledger.trials import LedgerTrial
from sweep.objective import Objective
from sweep.reporting.formats import format_metric, format_value
from sweep.reporting.report.axes import Axis
from sweep.trial import EPOCHS_DONE, Direction, TrialState
from sweep.trust.importance import Importance
from sweep.trust.words import amount, is_share, more_line

N_BEST = 3
"""So many of the best trials at one end of a range say that it is too narrow."""
NEAR_END = 0.1
"""Share of a range that counts as its end."""
LEAST_BEATEN = 8
"""Trials at the end of a range; that many in the worse half are luck in one case of 256."""
MIN_SPREAD = 10
"""Completed trials that are needed to speak of ends and epochs."""
MAX_NAMED = 6
MUCH = 0.05
"""A smaller share is little, however sure."""


def quoted(name: str) -> str:
    """A name in backticks."""
    return f"`{name.replace('`', chr(39))}`"


def listed(words: Sequence[str]) -> str:
    """`a, b and c`; a long list ends with how many more there are."""
    shown = list(words[:MAX_NAMED])
    if len(words) > MAX_NAMED:
        shown.append(f"{len(words) - MAX_NAMED} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def ranked(trials: Sequence[LedgerTrial], objective: Objective) -> list[LedgerTrial]:
    """Completed trials with a finite score, best first."""
    done = [
        trial
        for trial in trials
        if trial.state is TrialState.COMPLETE and objective.goodness(trial.value) > -float("inf")
    ]
    return sorted(done, key=lambda trial: (-objective.goodness(trial.value), trial.number))


def about_importance(
    found: Sequence[Importance], of_better: Sequence[Importance], n_scored: int
) -> list[str]:
    """Which parameters matter, and which cannot be told from noise."""
    if not found:
        return []
    sure = [one for one in found if one.is_sure]
    unsure = [quoted(one.name) for one in found if not one.is_sure]
    sentences = []
    for is_much, word in ((True, ""), (False, " little")):
        group = [one for one in sure if (one.share >= MUCH) == is_much]
        if group:
            verb = "matters" if len(group) == 1 else "matter"
            shares = [f"{quoted(one.name)} ({one.share:.0%} of the differences)" for one in group]
            sentences.append(f"{listed(shares)} {verb}{word}.")
    if unsure:
        sentences.append(f"{listed(unsure)} cannot be told from noise at {n_scored} scores.")
    known = [one.name for one in sure]
    late = [quoted(one.name) for one in of_better if one.is_sure and one.name not in known]
    if late:
        verb = "matters" if len(late) == 1 else "matter"
        sentences.append(f"Among the better half of the trials, {listed(late)} {verb} too.")
    return sentences


def about_choices(
    axes: Sequence[Axis], trials: Sequence[LedgerTrial], objective: Objective
) -> list[str]:
    """For each parameter with a few choices: which of them gave the best trials."""
    places = {trial.number: at for at, trial in enumerate(trials)}
    best_first = ranked(trials, objective)
    sentences = []
    for axis in axes:
        if not 2 <= len(axis.choices) <= MAX_NAMED or axis.is_ordered:
            continue
        scores: dict[str, list[float]] = {}
        n_pruned = Counter(
            axis.label(value)
            for trial in trials
            if trial.state is TrialState.PRUNED
            and (value := axis.values[places[trial.number]]) is not None
        )
        for trial in best_first:
            value = axis.values[places[trial.number]]
            if value is not None:
                scores.setdefault(axis.label(value), []).append(trial.value or 0.0)
        if len(scores) > 1:
            medians = {label: format_metric(statistics.median(of)) for label, of in scores.items()}
            parts = [
                f"{quoted(label)} {format_metric(of[0])} (median {medians[label]} of {len(of)}"
                f"{f', {n_pruned[label]} more pruned' if n_pruned[label] else ''})"
                for label, of in scores.items()
            ]
            sentences.append(f"Best score by {quoted(axis.name)}: {', '.join(parts)}.")
    return sentences


def about_bounds(
    axes: Sequence[Axis], trials: Sequence[LedgerTrial], objective: Objective,
    sure: Collection[str] | None = None,
) -> list[str]:  # fmt: skip
    """Ranges at whose end the best trials lie.

    `sure`: names whose effect was told from noise; None: nothing is known of that.
    """
    places = {trial.number: at for at, trial in enumerate(trials)}
    best_first = ranked(trials, objective)
    if len(best_first) < MIN_SPREAD:
        return []
    sentences = []
    for axis in (axis for axis in axes if axis.is_ordered and len(axis.choices) != 2):
        given = [axis.values[places[trial.number]] for trial in best_first[:N_BEST]]
        there = [value for value in given if value is not None]
        if len(there) < N_BEST:
            continue
        for is_upper, word in ((True, "upper"), (False, "lower")):
            ends = [axis.place(v) if is_upper else 1 - axis.place(v) for v in there]
            if min(ends) >= 1 - NEAR_END:
                bounds = f"{axis.label(axis.low)} to {axis.label(axis.high)}"
                values = listed([axis.label(value) for value in there])
                is_sure = sure is None or axis.name in sure
                doubt = "" if is_sure else ", though its effect cannot be told from noise"
                sentences.append(
                    f"The best three lie at the {word} end of {quoted(axis.name)} ({values} of "
                    f"{bounds}): widen it{doubt}."
                )
    if not sentences:
        sentences.append("The best three lie at no end of any range: none needs to be wider.")
    return sentences


def about_useless_ends(
    axes: Sequence[Axis], trials: Sequence[LedgerTrial], objective: Objective
) -> list[str]:
    """Ends of ranges from which no trial is among the better half."""
    best_first = ranked(trials, objective)
    better = {trial.number for trial in best_first[: len(best_first) // 2]}
    scored = {trial.number for trial in best_first}
    places = {trial.number: at for at, trial in enumerate(trials)}
    sentences = []
    for axis in (axis for axis in axes if not axis.choices):
        known = sorted(
            (value, trial.number)
            for trial in trials
            if trial.number in scored and (value := axis.values[places[trial.number]]) is not None
        )
        for is_upper, word in ((True, "above"), (False, "below")):
            from_end = known[::-1] if is_upper else known
            beaten = [*itertools.takewhile(lambda pair: pair[1] not in better, from_end)]
            if len(beaten) >= max(LEAST_BEATEN, len(known) / 6) and len(beaten) < len(from_end):
                bound = axis.label(from_end[len(beaten)][0])
                sentences.append(
                    f"None of the {len(beaten)} trials with {quoted(axis.name)} {word} {bound} is "
                    "among the better half: narrow it."
                )
    return sentences


def about_epochs(trials: Sequence[LedgerTrial], objective: Objective, n_epochs: int) -> list[str]:
    """When trials stopped improving."""
    best_first = [t for t in ranked(trials, objective) if best_epoch_of(t)]
    if len(best_first) < MIN_SPREAD or n_epochs < 2:
        return []
    last = max(best_epoch_of(trial) for trial in best_first)
    of_best = [best_epoch_of(trial) for trial in best_first[:5]]
    n_at_end = sum(epoch >= n_epochs for epoch in of_best)
    if last < n_epochs:
        return [f"No trial improved after epoch {last} of {n_epochs}: {last} epochs are enough."]
    if n_at_end >= 3:
        return [f"{n_at_end} of the best five were at their best in the last epoch ({n_epochs})."]
    if max(of_best) < n_epochs:
        return [
            f"None of the best five improved after epoch {max(of_best)} of {n_epochs}; some of "
            "the others did."
        ]
    return [f"The best five had their best epochs from {min(of_best)} to {n_epochs}."]


def about_last_epochs(
    trials: Sequence[LedgerTrial], objective: Objective, n_epochs: int, appraisal: Appraisal | None
) -> list[str]:
    """What the last quarter of the epochs brought the best five."""
    early, gains, best_five = n_epochs - math.ceil(n_epochs / 4), [], ranked(trials, objective)[:5]
    for trial in best_five:
        before = [objective.goodness(value) for e, value in trial.curve.items() if e <= early]
        if before and max(trial.curve) > early:
            gains.append(max(0.0, objective.goodness(trial.value) - max(before)))
    if len(gains) < 5:
        return []
    gain, share = statistics.mean(gains), is_share(best_five[0].value or 0.0, objective.direction)
    first = f"Epoch {n_epochs}" if early + 1 == n_epochs else f"Epochs {early + 1} to {n_epochs}"
    sentence = f"{first} brought the best five {amount(gain, share)} on average"
    if appraisal is None or appraisal.corrected is None:
        return [f"{sentence}."]
    verdict = (
        "less than the score is uncertain by: more epochs would gain little"
        if gain < appraisal.corrected.half_width
        else "more than the score is uncertain by: more epochs should gain"
    )
    return [f"{sentence}, {verdict}."]


def about_stopping(
    best: LedgerTrial, trials: Sequence[LedgerTrial], appraisal: Appraisal | None,
    direction: Direction,
) -> list[str]:  # fmt: skip
    """When the search found its best, and whether more trials would pay."""
    n_after = sum(trial.number > best.number for trial in trials)
    found = f"The best score came from trial {best.number}"
    if n_after:
        after = (
            "the one after it did not beat it"
            if n_after == 1
            else f"none of the {n_after} after it beat it"
        )
        sentences = [f"{found}; {after}."]
    else:
        sentences = [f"{found}, the last one."]
    if appraisal is not None and appraisal.more is not None and appraisal.corrected is not None:
        share, width = is_share(appraisal.best, direction), appraisal.corrected.half_width
        would = more_line(appraisal.best, appraisal.more, share)
        sure = f"the score is uncertain by ({amount(width, share)})"
        sentences.append(
            f"{would}, more than {sure}: going on pays."
            if appraisal.more[1] > width
            else f"{would}, less than {sure}: stop here, and confirm the best."
        )
    return sentences


def best_epoch_of(trial: LedgerTrial) -> int:
    """The epoch of a trial's score, begun ones counted; 0: it has none."""
    done = trial.result.get("metrics", {}).get(EPOCHS_DONE, trial.result.get("best_epoch"))
    return math.ceil(done or 0)


def values_of(trial: LedgerTrial) -> str:
    """A trial's configuration in a line."""
    return ", ".join(f"{k} = {format_value(v)}" for k, v in trial.hyperparameters.items())
