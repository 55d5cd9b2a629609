"""Studies, or single trials, side by side: what differs, and what came out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sweep.config.settings import public_name
from sweep.ledger.trials import LedgerTrial
from sweep.objective import Objective
from sweep.redact import redacted
from sweep.reporting.formats import format_duration, format_metric, format_value
from sweep.reporting.report.axes import shortened
from sweep.reporting.report.chart_data import rounded, thinned
from sweep.reporting.report.document import Block, Chart, Document, Grid, Section, Words
from sweep.reporting.report.facts import StudyFacts, epochs_of
from sweep.reporting.report.findings import best_epoch_of, listed, quoted, ranked
from sweep.space import parse_space
from sweep.trial import TrialState

MAX_POINTS = 200
NOT_COMPARED = ("study", "trials", "tracking_uri", "storage", "work_dir")


@dataclass(frozen=True)
class Compared:
    """A study, or one of its trials."""

    name: str
    """As it was named: STUDY or STUDY:N."""
    facts: StudyFacts = field(repr=False)
    trial: LedgerTrial | None = None
    """None: the whole study."""

    @property
    def best(self) -> LedgerTrial | None:
        """The trial whose score counts."""
        if self.trial is not None:
            return self.trial
        return self.facts.best_first[0] if self.facts.best_first else None

    @property
    def score(self) -> float | None:
        """Its score."""
        return self.best.value if self.best is not None else None


def rows_of(given: Sequence[Compared]) -> list[dict[str, Any]]:
    """One row for each aspect: {"what": ..., NAME: value, ...}."""
    rows = [
        _row(given, what, value)
        for what, value in _ASPECTS.items()
        if what not in _OF_STUDIES or any(one.trial is None for one in given)
    ]
    rows += _differing(given, "setting", [_settings(one.facts) for one in given])
    if all(one.trial is None for one in given):
        rows += _differing(given, "space", [_space(one.facts) for one in given])
    else:
        values = [one.best.hyperparameters if one.best else {} for one in given]
        rows += _differing(given, "value", [dict(each) for each in values])
    return [row for row in rows if any(row[one.name] is not None for one in given)]


def comparison(given: Sequence[Compared]) -> Document:
    """The page of the comparison."""
    names = [one.name for one in given]
    cells = [[row["what"], *(row[name] for name in names)] for row in rows_of(given)]
    metric = given[0].facts.objective.metric
    overlays = [
        {"key": "best", "x": "trial", "lines": _lines(given, _best_so_far)},
        {"key": "curve", "x": "epoch", "lines": _lines(given, _curve)},
    ]
    titles = {"best": "Best score so far", "curve": "Learning curve of the best trial"}
    charts: list[Block] = [
        Chart(str(one["key"]), titles[str(one["key"])], f"{metric} of {listed(names)}.")
        for one in overlays
        if one["lines"]
    ]
    sections = [
        Section("verdict", "Side by side", [Words(sentences(given), is_list=True)]),
        Section("curves", "Curves", charts if _are_comparable(given) else []),
        Section("table", "What differs", [Grid("compared", "", ["", *names], cells)]),
    ]
    title = " / ".join(names)
    return Document(
        title, metric, [s for s in sections if s.blocks], {"overlays": overlays, "metric": metric,
        "direction": given[0].facts.objective.direction, "baseline": None, "best": None}
    )  # fmt: skip


def sentences(given: Sequence[Compared]) -> list[str]:
    """Which is best, and whether that can be told from luck."""
    if not _are_comparable(given):
        kinds = [f"{quoted(o.name)} by {o.facts.objective.metric}, {o.facts.objective.extreme} is "
                 "best" for o in given]  # fmt: skip
        return [f"Their scores cannot be compared: {listed(kinds)}."]
    objective = given[0].facts.objective
    order = sorted(given, key=lambda one: -objective.goodness(one.score))
    first, second = order[0], order[1]
    if objective.goodness(first.score) == -float("inf"):
        return ["None of them has a score."]
    said = [f"Best {quoted(objective.metric)}: {quoted(first.name)} {format_metric(first.score)}"]
    said += [f"{quoted(one.name)} {format_metric(one.score)}" for one in order[1:]]
    return [f"{', then '.join(said)}.", *_luck(first, second, objective), *_other_data(given)]


def _luck(first: Compared, second: Compared, objective: Objective) -> list[str]:
    corrected = [
        one.facts.appraisal.corrected
        for one in (first, second)
        if one.trial is None and one.facts.appraisal is not None
    ]
    a, b = (*corrected, None, None)[:2]
    if first.trial is not None and second.trial is not None:
        return ["Each was trained once: a small difference may be luck."]
    if a is None or b is None:
        return ["Best scores are partly luck, more so of more trials; nothing here corrects them."]
    is_apart = a.low > b.high if objective.direction == "maximize" else a.high < b.low
    if is_apart:
        return [
            f"Corrected for luck {quoted(first.name)} is better, too: the intervals are apart."
        ]
    return ["Corrected for luck their intervals overlap, which does not tell which one is better."]


def _other_data(given: Sequence[Compared]) -> list[str]:
    digests = {one.facts.dataset.digest for one in given if one.facts.dataset}
    return ["Their data differ, so their scores need not compare."] if len(digests) > 1 else []


def _are_comparable(given: Sequence[Compared]) -> bool:
    return len({one.facts.objective for one in given}) == 1


def _row(given: Sequence[Compared], what: str, value: Callable[[Compared], Any]) -> dict[str, Any]:
    return {"what": what, **{one.name: value(one) for one in given}}


def _differing(
    given: Sequence[Compared], kind: str, values: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """A row for each name whose values are not all the same."""
    names = dict.fromkeys(name for each in values for name in each)
    return [
        {
            "what": f"{kind} {name}",
            **{
                one.name: shortened(format_value(each[name])) if name in each else None
                for one, each in zip(given, values, strict=True)
            },
        }
        for name in names
        if len({repr(each.get(name)) for each in values}) > 1
    ]


def _settings(facts: StudyFacts) -> dict[str, Any]:
    return {
        public_name(name): redacted(value) if isinstance(value, str) else value
        for name, value in facts.stored.items()
        if name not in NOT_COMPARED
    }


def _space(facts: StudyFacts) -> dict[str, Any]:
    if not facts.space_text:
        return {}
    space = parse_space(facts.space_text, "space", is_mlp=facts.config.is_mlp)
    return {p.name: p.expected() for p in space.parameters} | dict(space.fixed)


def _counts(one: Compared) -> str:
    states = [trial.state for trial in one.facts.trials]
    words = {
        TrialState.COMPLETE: "complete",
        TrialState.PRUNED: "pruned",
        TrialState.FAIL: "failed",
    }
    parts = [f"{states.count(state)} {word}" for state, word in words.items() if state in states]
    return f"{len(states)} ({', '.join(parts)})" if parts else str(len(states))


def _corrected(one: Compared) -> str | None:
    said = one.facts.appraisal.corrected if one.facts.appraisal and not one.trial else None
    if said is None:
        return None
    return f"{format_metric(said.value)} ({format_metric(said.low)} to {format_metric(said.high)})"


def _trained(one: Compared) -> Sequence[LedgerTrial]:
    return [one.trial] if one.trial is not None else one.facts.trials


def _best_epoch(one: Compared) -> Any:
    return best_epoch_of(one.best) or None if one.best is not None else None


_ASPECTS: Mapping[str, Callable[[Compared], Any]] = {
    "metric": lambda one: one.facts.objective.metric,
    "best": lambda one: None if one.score is None else format_metric(one.score),
    "corrected": _corrected,
    "baseline": lambda one: rounded(one.facts.end.baseline_value, 4),
    "best trial": lambda one: one.best.number if one.best is not None else None,
    "best epoch": _best_epoch,
    "trials": _counts,
    "epochs": lambda one: sum(map(epochs_of, _trained(one))),
    "training": lambda one: format_duration(
        sum(trial.result.get("seconds") or 0.0 for trial in _trained(one))
    ),
    "time": lambda one: format_duration(one.facts.wall_s),
}
"""What a comparison says of each."""
_OF_STUDIES = ("corrected", "baseline", "best trial", "trials", "time")
"""Of these a single trial has none."""


def _lines(
    given: Sequence[Compared], points: Callable[[Compared], Sequence[Any]]
) -> list[dict[str, Any]]:
    lines = [{"name": one.name, "points": points(one)} for one in given]
    return [line for line in lines if len(line["points"]) > 2]


def _curve(one: Compared) -> Sequence[Any]:
    return thinned(one.best.curve, MAX_POINTS) if one.best is not None else []


def _best_so_far(one: Compared) -> Sequence[Any]:
    """The best score after each completed trial, by number."""
    objective, best, points = one.facts.objective, None, dict[int, float]()
    if one.trial is not None:
        return []
    for trial in sorted(ranked(one.facts.trials, objective), key=lambda t: t.number):
        if trial.value is not None and (best is None or objective.better(trial.value, best)):
            best = trial.value
        points[trial.number] = best or 0.0
    return thinned(points, MAX_POINTS)


def of_trial(name: str, facts: StudyFacts, number: int | None) -> Compared | None:
    """The study, or its trial `number`; None if it has no such trial."""
    if number is None:
        return Compared(name, facts)
    found = next((trial for trial in facts.trials if trial.number == number), None)
    return Compared(name, facts, found) if found is not None else None
