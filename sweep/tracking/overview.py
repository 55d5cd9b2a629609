"""The description of a study on MLflow's pages, in Markdown: verdict, best five, next commands."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from sweep.objective import Objective
from sweep.trial import Ranked, StudyFinished, StudyInfo

N_SHOWN = 5
"""Trials in the description; MLflow's table has all of them."""


def describe(study: StudyInfo, end: StudyFinished | None, ranking: Sequence[Ranked]) -> str:
    """The description of `study`; `ranking` are its best trials so far, best first."""
    parts = [_verdict(study, end, ranking)]
    if ranking:
        rows = [
            f"| {rank} | {_cell(ranked.name)} | {ranked.value:.6g} |"
            for rank, ranked in enumerate(ranking[:N_SHOWN], 1)
        ]
        parts.append("\n".join(["| rank | trial | " + _cell(study.metric) + " |",
                                "| ---: | --- | ---: |", *rows]))  # fmt: skip
    parts.append('"Expand rows" above the table of runs shows the trials and their charts.')
    parts.append(_next(study, has_best=bool(ranking)))
    return "\n\n".join(parts)


def _verdict(study: StudyInfo, end: StudyFinished | None, ranking: Sequence[Ranked]) -> str:
    which = Objective(study.metric, study.direction).extreme
    if not ranking:
        best = f"No trial is complete yet; the search looks for the {which} `{study.metric}`."
    else:
        best = f"**{which.capitalize()} {study.metric}: {ranking[0].value:.6g}** "
        best += f"({_cell(ranking[0].name)})"
    if end is None:
        return (
            f"{best}\n\nThe search runs: {study.n_trials} trials of at most {study.epochs} epochs."
        )
    counts = ", ".join(f"{n} {name.lower()}" for name, n in end.n_by_state.items() if n)
    text = f"{best}\n\n{sum(end.n_by_state.values())} trials: {counts}."
    if end.baseline_value is not None:
        text += f" The reference network has {end.baseline_value:.6g}."
    if end.reason not in ("done", "exhausted"):
        text += f" The search ended early ({end.reason})."
    return text


def _next(study: StudyInfo, *, has_best: bool) -> str:
    name = shlex.quote(study.name)
    commands = [f"sweep best {name} > best.yaml", "sweep train --config best.yaml"]
    commands = [*(commands if has_best else []), f"sweep trials {name}"]
    return "\n".join(["```", *commands, "```"])


def _cell(text: str) -> str:
    """`text` within a table of Markdown."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
