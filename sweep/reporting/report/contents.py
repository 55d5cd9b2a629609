"""The page of a study: its sections, in the order in which they are read."""

from __future__ import annotations

import dataclasses
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sweep.config.settings import RunConfig, flag_name, public_name
from sweep.ledger.confirmation import confirmation_in
from sweep.ledger.trials import LedgerTrial
from sweep.redact import redacted
from sweep.reporting.formats import format_duration, format_metric, format_value
from sweep.reporting.report import findings
from sweep.reporting.report.axes import shortened
from sweep.reporting.report.chart_data import chart_data, rounded
from sweep.reporting.report.document import (
    Block,
    Chart,
    Code,
    Document,
    Gallery,
    Grid,
    Image,
    Section,
    Tiles,
    Words,
)
from sweep.reporting.report.facts import StudyFacts, epochs_of
from sweep.reporting.report.findings import quoted
from sweep.reporting.report.verdict import configuration, counted, tiles, verdict
from sweep.reporting.summary import next_commands
from sweep.space import canonical_key
from sweep.trial import FAILURES, TrialState

LONGEST_MESSAGE = 300
MAX_CLASSES = 20
"""Rows of a confusion matrix that can be read."""
WORDS = {
    TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed",
    TrialState.RUNNING: "unfinished", TrialState.WAITING: "unfinished",
}  # fmt: skip


def document_of(facts: StudyFacts, samples: Mapping[str, Any] | None = None) -> Document:
    """The page; `samples`: what the winner gets wrong (see `reuse.samples`)."""
    sections = [_verdict(facts), _lessons(facts), _trials_in_charts(facts), _importance(facts),
                _budget(facts), _samples(samples), _again(facts), _table(facts)]  # fmt: skip
    kinds = [
        f"{facts.objective.metric}, {facts.objective.extreme} is best",
        f"data {facts.config.data}" if facts.stored else "made by another program",
        counted(len(facts.trials), "trial"),
        *([f"begun {facts.began:%Y-%m-%d}"] if facts.began else []),
    ]
    return Document(
        facts.name, " · ".join(kinds), [s for s in sections if s.blocks], chart_data(facts)
    )


def _verdict(facts: StudyFacts) -> Section:
    said = verdict(facts)
    blocks: list[Block] = [
        Words(said[:1], is_lead=True), Tiles(tiles(facts)),
        Words([*said[1:], *configuration(facts)], is_list=True),
    ]  # fmt: skip
    return Section("verdict", "What came out", blocks)


def _lessons(facts: StudyFacts) -> Section:
    trials, objective = facts.trials, facts.objective
    known = [*facts.importance, *facts.importance_of_better]
    sure = {one.name for one in known if one.is_sure} if known else None
    sentences = [
        *findings.about_importance(facts.importance, facts.importance_of_better, facts.n_scored),
        *findings.about_choices(facts.axes, trials, objective),
        *findings.about_bounds(facts.axes, trials, objective, sure),
        *findings.about_useless_ends(facts.axes, trials, objective),
        *_about_epochs(facts),
        *_about_stopping(facts),
        *_about_failures(trials),
    ]
    if not facts.importance:
        sentences.append(
            f"Which parameters matter cannot be said from {counted(facts.n_scored, 'score')}."
        )
    return Section("lessons", "What the trials teach", [Words(sentences, is_list=True)])


def _about_stopping(facts: StudyFacts) -> list[str]:
    if not facts.best_first:
        return []
    return findings.about_stopping(
        facts.best_first[0], facts.trials, facts.appraisal, facts.objective.direction
    )


def _about_epochs(facts: StudyFacts) -> list[str]:
    """Which epochs brought something, and what pruning saved; another program's steps may be
    anything."""
    if not facts.stored:
        return []
    trials, n_epochs = facts.trials, facts.config.epochs
    sentences = [
        *findings.about_epochs(trials, facts.objective, n_epochs),
        *findings.about_last_epochs(trials, facts.objective, n_epochs, facts.appraisal),
    ]
    pruned = [t for t in trials if t.state is TrialState.PRUNED]
    if pruned:
        trained = sum(map(epochs_of, pruned))
        saved = sum(max(0, n_epochs - epochs_of(trial)) for trial in pruned)
        share = saved / max(1, saved + sum(map(epochs_of, trials)))
        sentences.append(
            f"{counted(len(pruned), 'trial')} of {len(trials)} ended early, pruned after "
            f"{counted(trained, 'epoch')}: that saved {saved:,} epochs, {share:.0%} of the budget."
        )
    return sentences


def _about_failures(trials: Sequence[LedgerTrial]) -> list[str]:
    failed = [t for t in trials if t.state is TrialState.FAIL]
    if not failed:
        return ["No trial failed."] if trials else []
    (kind, n_of_kind), *_ = _kinds(failed).most_common(1)
    why = _most_frequent([t for t in failed if _kind(t) == kind])
    how_many = "" if n_of_kind == len(failed) else f"{n_of_kind} "
    meaning = {str(known): one.meaning for known, one in FAILURES.items()}.get(kind)
    return [
        f"{counted(len(failed), 'trial')} of {len(trials)} failed, {how_many}with "
        f"{quoted(kind)}{f' ({meaning})' if meaning else ''}{f': {quoted(why)}' if why else ''}."
    ]


def _trials_in_charts(facts: StudyFacts) -> Section:
    if not facts.trials:
        return Section("charts", "", [])
    metric, n_axes = facts.objective.metric, len(facts.axes)
    named = findings.listed([axis.name for axis in facts.axes]) if facts.axes else "nothing"
    best = facts.best_first[0] if facts.best_first else None
    at_best = f"; the best is {format_metric(best.value)} by trial {best.number}" if best else ""
    charts: list[Block] = []
    if n_axes:
        charts.append(
            Chart("parallel", "Configurations and scores",
                  f"A line a trial through {named} and {metric}{at_best}.",
                  "Drag along an axis to choose trials on the whole page; click it to let go.")
        )  # fmt: skip
    charts.append(
        Chart("history", "Score by trial",
              f"{metric} of {len(facts.trials)} trials in their order, with the best so far"
              f"{at_best}.")
    )  # fmt: skip
    if any(len(trial.curve) > 1 for trial in facts.trials):
        charts.append(
            Chart("curves", "Learning curves",
                  f"{metric} by epoch, a line a trial, up to epoch {facts.n_epochs}.")
        )  # fmt: skip
    if n_axes:
        charts.append(Chart("slices", "Score by parameter", f"{metric} against each of {named}."))
    return Section("charts", "The trials side by side", charts)


def _importance(facts: StudyFacts) -> Section:
    if not facts.importance:
        return Section("importance", "", [])
    better = {one.name: one for one in facts.importance_of_better}
    rows = []
    for one in facts.importance:
        other = better.get(one.name)
        rows.append([
            shortened(one.name), f"{one.share:.0%}", f"{one.low:.0%} to {one.high:.0%}",
            "matters" if one.is_sure else "cannot be told from noise",
            f"{other.share:.0%} ({other.low:.0%} to {other.high:.0%})" if other else "-",
        ])  # fmt: skip
    total = sum(one.share for one in facts.importance)
    words = (
        "How much of the differences between the trials' ranks each parameter explains by itself, "
        f"with 95 % intervals; together {min(total, 1):.0%}. The rest is interplay and noise. "
        "Shares depend on the ranges: one that reaches far into bad values explains more. So the "
        "better half of the trials is shown beside them."
    )
    label = "Shares: " + ", ".join(f"{r[0]} {r[1]} ({r[2]})" for r in rows[:10]) + "."
    columns = ["parameter", "share", "95 % interval", "verdict", "in the better half"]
    return Section("importance", "Which parameters matter", [
        Words([words]), Chart("importance", "Importance", label),
        Grid("importances", f"At {facts.n_scored} scores, pruned ones too", columns, rows),
    ])  # fmt: skip


def _budget(facts: StudyFacts) -> Section:
    trials = facts.trials
    total_s = sum(map(_seconds, trials))
    failed = [t for t in trials if t.state is TrialState.FAIL]
    keys = Counter(canonical_key(t.hyperparameters) for t in trials)
    seen, repeated = set[str](), list[LedgerTrial]()
    for trial in trials:
        key = canonical_key(trial.hyperparameters)
        if keys[key] > 1 and key in seen:
            repeated.append(trial)
        seen.add(key)
    groups = [
        (word, [t for t in trials if WORDS[t.state] == word], "")
        for word in ("complete", "pruned", "unfinished")
    ]
    for kind, _ in _kinds(failed).most_common():
        of_kind = [t for t in failed if _kind(t) == kind]
        groups.append((f"failed: {kind}", of_kind, _most_frequent(of_kind)))
    groups.append(("repeated configurations", repeated, "also counted above"))
    rows = [
        [word, len(group), sum(map(epochs_of, group)), format_duration(sum(map(_seconds, group))),
         f"{sum(map(_seconds, group)) / total_s:.0%}" if total_s else "-", why]
        for word, group, why in groups if group or word in ("complete", "pruned")
    ]  # fmt: skip
    if not failed:
        rows.append(["failed", 0, 0, "0.0s", "0%", ""])
    columns = ["trials that are", "trials", "epochs", "training", "share of it", "what they say"]
    return Section("budget", "Where the budget went", [Grid("budget", "", columns, rows)])


def _samples(samples: Mapping[str, Any] | None) -> Section:
    """Confusion matrix and worst mistakes of the winner."""
    if not samples:
        return Section("samples", "", [])
    matrix, names = samples["confusion"], samples["classes"]
    n_all, n_wrong = sum(map(sum, matrix)), samples["n_wrong"]
    said = (
        f"Of {samples['split']} ({n_all:,}) trial {samples['trial']} gets {n_wrong:,} wrong "
        f"({n_wrong / max(n_all, 1):.1%})."
    )
    blocks: list[Block] = [Words([said]), _confusion(matrix, names)]
    captions = [
        f"true {worst['true']}, said {worst['said']} ({min(worst['sure'], 0.9999):.2%} sure)"
        for worst in samples["worst"]
    ]
    images = [worst["image"] for worst in samples["worst"]]
    if captions:
        blocks.append(Words(["Wrong, and most sure of it:"]))
    if all(images):
        pairs = zip(images, captions, strict=True)
        blocks.append(Gallery([Image(address, text) for address, text in pairs]))
    else:
        blocks.append(Words(captions, is_list=True))
    return Section("samples", "What the winner gets wrong", blocks)


def _confusion(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> Grid:
    """The matrix; of many classes the pairs that are confused most."""
    if len(names) <= MAX_CLASSES:
        rows = [[f"true {name}", *row] for name, row in zip(names, matrix, strict=True)]
        caption = "Rows are the true classes, columns the predicted ones"
        return Grid("confusion", caption, ["", *names], rows)
    pairs = [
        (count, names[true], names[said])
        for true, row in enumerate(matrix)
        for said, count in enumerate(row)
        if count and true != said
    ]
    most = sorted(pairs, key=lambda pair: -pair[0])[:MAX_CLASSES]
    rows = [[true, said, count] for count, true, said in most]
    return Grid("confused", "Confused most", ["true", "said", "samples"], rows)


def _again(facts: StudyFacts) -> Section:
    """Commands, settings, versions and the search space."""
    if not facts.stored:
        return Section("again", "", [])
    config, name = facts.config, shlex.quote(facts.name)
    failed = {canonical_key(t.hyperparameters) for t in facts.trials if t.state is TrialState.FAIL}
    done = {canonical_key(t.hyperparameters) for t in facts.trials if t.state.is_scored}
    own = f"sweep report {name}"
    offers = next_commands(config, facts.end, len(failed - done))
    commands = [offer for offer in offers if not offer[0].startswith(own)]
    commands.sort(key=lambda offer: not offer[0].startswith("sweep confirm"))
    commands += [(search_command(config, facts.stored), "this search again, under a new name")]
    if facts.best_first:
        commands.append((f"sweep best {name} --format python", "the winner as a line of Python"))
    lines = [line for command, why in commands for line in (f"# {why}", command)]
    blocks: list[Block] = [Code("\n".join(lines), "What to type next")]
    if first := _first_step(facts):
        blocks.insert(0, Words([first]))
    if facts.space_text:
        blocks.append(Code(redacted(facts.space_text), f"Search space {config.space_name}.yaml",
                           is_folded=True))  # fmt: skip
    blocks.append(Grid("settings", "Settings", ["setting", "value"], _settings(facts)))
    blocks.append(Grid("origin", "Code, versions and data", ["what", "value"], _origin(facts)))
    return Section("again", "Next, and how to repeat it", blocks)


def _first_step(facts: StudyFacts) -> str:
    """The most useful thing to do next, with the reason."""
    name, said = shlex.quote(facts.name), facts.appraisal
    if len(facts.best_first) < 2 or confirmation_in(facts.tags) is not None:
        return ""
    why = "the best score was chosen for being so"
    if said is not None and said.n_samples:
        why += f", and rests on {said.n_samples:,} validation samples"
    command = quoted(f"sweep confirm {name}")
    return f"First: {command}, which trains the best again on fresh seeds: {why}."


def search_command(config: RunConfig, stored: Mapping[str, Any]) -> str:
    """The command that would search again, without passwords."""
    words = ["sweep", "run", "--study", f"{config.study_name}-again"]
    for setting in dataclasses.fields(RunConfig):
        value, flag = stored.get(setting.name, setting.default), flag_name(setting.name)
        is_usual = value is None or value == _listed(setting.default)
        is_said = flag == "--trials" or not is_usual
        if setting.name in ("study", "storage", "direction") or not is_said:
            continue
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            for one in value if isinstance(value, list) else [value]:
                words += [flag, redacted(str(one))]
    if "direction" in stored and config.metric != RunConfig.metric:
        words += ["--direction", str(stored["direction"])]
    return shlex.join(words)


def _settings(facts: StudyFacts) -> list[list[Any]]:
    """Settings that are not the default, and those that are always of interest."""
    always = ("trials", "epochs", "data", "sampler", "pruner", "metric", "direction", "seed")
    defaults = {f.name: f.default for f in dataclasses.fields(RunConfig)}
    return [
        [public_name(name), shortened(redacted(_said(value)), LONGEST_MESSAGE)]
        for name, value in facts.stored.items()
        if name in always or value != _listed(defaults.get(name))
    ]


def _said(value: Any) -> str:
    return ", ".join(map(format_value, value)) if isinstance(value, list) else format_value(value)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _origin(facts: StudyFacts) -> list[list[Any]]:
    rows = [
        [key.removeprefix("mlflow.source.").removeprefix("sweep."), redacted(str(value))]
        for key, value in sorted(facts.tags.items())
    ]
    data = facts.dataset
    if data is not None:
        of_code = ", of its code" if data.digest in facts.tags.values() else ""
        rows += [
            ["data", data.name],
            ["data from", redacted(data.source)],
            [f"data digest{of_code}", data.digest],
        ]
        if data.n_train:  # else a DataModule's own, which nobody counted
            said = f"{data.n_train:,} to train on, {data.n_val:,} to validate"
            rows.append(["samples", said])
    return [[key, shortened(value, LONGEST_MESSAGE)] for key, value in rows]


def _table(facts: StudyFacts) -> Section:
    """All trials, best first, then those without a rank."""
    ranks = {trial.number: place for place, trial in enumerate(facts.best_first, 1)}
    names = _varying(facts.trials)
    order = sorted(facts.trials, key=lambda t: (ranks.get(t.number, len(ranks) + 1), t.number))
    columns = ["rank", "trial", facts.objective.metric, "best epoch", "epochs", "state",
               *map(shortened, names)]  # fmt: skip
    rows = [
        [
            ranks.get(trial.number), trial.number,
            rounded(trial.value, 5) if trial.state.is_scored else None,
            findings.best_epoch_of(trial) or None, epochs_of(trial) or None, _state(trial),
            *(_cell(trial.hyperparameters, name) for name in names),
        ]
        for trial in order
    ]  # fmt: skip
    grid = Grid("trials", "", columns, rows, is_sortable=True,
                row_ids=[trial.number for trial in order])  # fmt: skip
    return Section("trials", "Trials, best first", [grid] if rows else [])


def _varying(trials: Sequence[LedgerTrial]) -> list[str]:
    """Hyperparameters with more than one value."""
    values: dict[str, set[str]] = {}
    for trial in trials:
        for name, value in trial.hyperparameters.items():
            values.setdefault(name, set()).add(repr(value))
    return [
        name for name, found in values.items()
        if len(found) > 1 or any(name not in trial.hyperparameters for trial in trials)
    ]  # fmt: skip


def _cell(hyperparameters: Mapping[str, Any], name: str) -> Any:
    if name not in hyperparameters:
        return None
    value = hyperparameters[name]
    if isinstance(value, float):
        return rounded(value, 4)
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return value if is_whole else shortened(format_value(value))


def _state(trial: LedgerTrial) -> str:
    kind = _kind(trial) if trial.state is TrialState.FAIL else ""
    return f"{WORDS[trial.state]}: {kind}" if kind else WORDS[trial.state]


def _kind(trial: LedgerTrial) -> str:
    return str((trial.result.get("failure") or {}).get("kind", "unknown"))


def _kinds(failed: Sequence[LedgerTrial]) -> Counter[str]:
    return Counter(map(_kind, failed))


def _most_frequent(failed: Sequence[LedgerTrial]) -> str:
    """The message that most of them have."""
    said = Counter(str((t.result.get("failure") or {}).get("message", "")) for t in failed)
    message = said.most_common(1)[0][0] if said else ""
    return shortened(" ".join(redacted(message).split()), LONGEST_MESSAGE)


def _seconds(trial: LedgerTrial) -> float:
    return float(trial.result.get("seconds") or 0.0)
