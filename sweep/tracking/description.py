"""The description of a study on MLflow's pages, in Markdown: verdict, best five, next commands.

Its first line is plain text: MLflow's list of experiments shows it as it is.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from sweep.ledger.confirmation import confirmation_in
from sweep.objective import Objective
from sweep.trial import Ranked, StudyFinished, StudyInfo
from sweep.trust.words import appraisal_lines, confirmation_lines

N_SHOWN = 5
"""Trials in the description; MLflow's table has all of them."""
_MARKS = re.compile(r"[\\`*<>\[\]]|(?<!\w)_|_(?!\w)")
"""Characters that Markdown reads as something else; an underscore within a word it leaves."""


def describe(
    study: StudyInfo, end: StudyFinished | None, ranking: Sequence[Ranked],
    page: str = "",
) -> str:  # fmt: skip
    """The description of `study`.

    Args:
        study: As it stands.
        end: Its end; None while it runs.
        ranking: Its best trials so far, best first.
        page: Address of the table of its trials.
    """
    parts = verdict(study, end, ranking)
    if ranking:
        rows = [
            f"{rank}. {ranked.value:.6g}: {_plain(ranked.name)}"
            for rank, ranked in enumerate(ranking[:N_SHOWN], 1)
        ]
        parts.append("\n".join(rows))  # a list: MLflow draws tables without room between columns
    if page:
        parts.append(f"**[All trials, best first]({page})**")
    parts.append(_commands(study, has_best=bool(ranking), is_running=end is None))
    return "\n\n".join(parts)


def verdict(
    study: StudyInfo, end: StudyFinished | None, ranking: Sequence[Ranked]
) -> list[str]:  # fmt: skip
    """What came out, in paragraphs; the first one is a line of plain text."""
    objective = Objective(study.metric, study.direction)
    if not ranking:
        best = f"No trial is complete yet: the {objective.extreme} {_plain(study.metric)} wins."
    else:
        best = f"{objective.extreme.capitalize()} {_plain(study.metric)} {ranking[0].value:.6g}"
        best += f" by {_plain(ranking[0].name)}"
    if end is None:
        most = f"The search runs: {study.n_trials} trials of at most {study.epochs} epochs."
        return [best, most]
    if ranking and end.baseline_value is not None:
        difference = abs(ranking[0].value - end.baseline_value)
        is_better = objective.better(ranking[0].value, end.baseline_value)
        amount = f"{difference:.3g} better than" if is_better else "no better than"
        best += f", {amount} trial 0, the baseline ({end.baseline_value:.6g})"
    counts = ", ".join(f"{n} {name.lower()}" for name, n in end.n_by_state.items() if n)
    text = f"{sum(end.n_by_state.values())} trials: {counts}."
    if end.reason not in ("done", "exhausted"):
        text += f" The search ended early ({end.reason})."
    return [best, *_appraised(study, end), text]


def _appraised(study: StudyInfo, end: StudyFinished) -> list[str]:
    """What the best score is worth, and what a confirmation came to: a paragraph each."""
    confirmed = confirmation_lines(confirmation_in(study.tags), study.direction)
    parts = [confirmed, appraisal_lines(end.appraisal, study.direction)]
    return [" ".join(f"{_plain(line)}." for line in part) for part in parts if part]


def _commands(study: StudyInfo, *, has_best: bool, is_running: bool) -> str:
    name = shlex.quote(study.name)
    reuse = [f"sweep best {name} > best.yaml", "sweep train --config best.yaml"]
    running = [f"sweep status {name} --watch"]
    confirm = [f"sweep confirm {name}"]
    ended = has_best and not is_running
    commands = [*running * is_running, *reuse * has_best, *confirm * ended, f"sweep trials {name}"]
    return "\n".join(["```", *commands, "```"])


def _plain(text: str) -> str:
    """`text` in one line that Markdown leaves as it is."""
    return _MARKS.sub(r"\\\g<0>", " ".join(text.split()))
