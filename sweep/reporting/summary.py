"""The end of a search in words: the best trial, its gain over the baseline, next commands."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sweep.config.resolving import resolve
from sweep.config.settings import RunConfig
from sweep.objective import Objective
from sweep.redact import redacted
from sweep.reporting.formats import format_duration, format_metric
from sweep.trial import StudyFinished, StudyInfo, TrialState
from sweep.trust.words import appraisal_lines

if TYPE_CHECKING:
    from sweep.search.study import Outcome


_REASONS = {
    "done": "",
    "timeout": "The time limit was reached; the same command with more time goes on.",
    "interrupted": "Interrupted; everything is saved, and the same command goes on.",
    "unsaved": "Interrupted; the same command goes on.",
    "failed": "Stopped, because trials keep failing.",
    "exhausted": "The search space holds no further configuration.",
}
_WORDS = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "unfinished",
}


def end_summary(
    config: RunConfig, outcome: Outcome, going_on: str | None = None, width: int | None = None
) -> list[str]:
    """The last lines of a search, as plain text.

    Args:
        config: Its settings.
        outcome: Its end.
        going_on: The command that continues it, if trials are left.
        width: Cells of the terminal; None: a pipe.
    """
    study, end = outcome.study, outcome.end
    lines = [_counts(study, end)]
    if outcome.n_new == 0 and study.n_done >= config.trials:
        lines.insert(0, _nothing_to_do(config, study.n_done, outcome.n_to_retry))
    reason = "unsaved" if outcome.unsaved and end.reason == "interrupted" else end.reason
    if _REASONS[reason]:
        lines += [_REASONS[reason], *outcome.unsaved]
    lines += _best(study, end, str(outcome.best.result.get("name", "")) if outcome.best else "")
    if width is not None:
        lines = [part for line in lines for part in textwrap.wrap(line, width)]
    places = [
        ("MLflow:", redacted(config.tracking_uri)),
        ("Optuna:", redacted(config.storage)),
        ("checkpoints:", str(config.study_dir)),
    ]
    lines += ["", *_aligned(places)]
    if commands := next_commands(config, end, outcome.n_to_retry, going_on):
        lines += ["", "Next:", *_commands(commands, width)]
    return lines


def _nothing_to_do(config: RunConfig, n_done: int, n_to_retry: int) -> str:
    hint = f"Ask for more, e.g. with --trials {n_done + 50}."
    if n_to_retry:
        hint += f" Try failed trials again with `sweep retry {config.study_name}`."
    return (
        f"study {config.study_name} already has {n_done} finished trials: nothing to do for "
        f"--trials {config.trials}. {hint}"
    )


def _commands(commands: Sequence[tuple[str, str]], width: int | None) -> list[str]:
    """Commands with their effect behind them, or above them if a line would wrap."""
    lines = [f"  {line}" for line in _aligned([(c, f"# {why}") for c, why in commands])]
    if width is None or max(map(len, lines)) <= width:
        return lines
    return [line for command, why in commands for line in (f"  # {why}", f"  {command}")]


def next_commands(
    config: RunConfig, end: StudyFinished, n_to_retry: int = 0, going_on: str | None = None
) -> list[tuple[str, str]]:
    """(command, its effect) to type after a search.

    A store is named only if the environment and the defaults name another; `n_to_retry` counts
    failed configurations without a later success.
    """
    name, known = shlex.quote(config.study_name), resolve({}).config
    at = _flag("--storage", config.storage, known.storage)
    uri = _flag("--tracking-uri", config.tracking_uri, known.tracking_uri)
    # a module's own loaders need no data set, so none is named
    data = _flag("--data", config.data) if config.is_mlp else ""
    train = f"sweep train --config best.yaml{data}{_flag('--data-dir', config.data_dir)}"
    then = f"train it{' on train + validation' if data else ' again'}, then test it"
    failed = (
        f"{n_to_retry} failed configurations" if n_to_retry > 1 else "the failed configuration"
    )
    n_completed = end.n_by_state.get("COMPLETE", 0)
    has_best, has_failed = end.best_value is not None, end.n_by_state.get("FAIL", 0) > 0
    offers = [
        (going_on is not None, going_on or "", "go on with the search"),
        (has_failed, f"sweep trials {name} --state fail{at}", "why trials failed"),
        (has_best, f"sweep best {name}{at} > best.yaml", "keep the best configuration"),
        (has_best and config.kind != "objective", train + uri, then),
        (n_completed > 1, f"sweep confirm {name}{at}", "the best again on fresh seeds"),
        (has_best, f"sweep report {name}{at}", "one page that says what came out"),
        (has_best, f"sweep ui {name}{uri}", "look at every trial"),
        (n_to_retry > 0, f"sweep retry {name}{at}", f"try {failed} again"),
    ]
    return [(command, why) for is_offered, command, why in offers if is_offered]


def _flag(name: str, value: str | None, known: str | None = None) -> str:
    """` NAME VALUE` for a shell, without passwords; empty for None or the `known` value."""
    return "" if value in (None, known) else f" {name} {shlex.quote(redacted(value or ''))}"


def gain(study: StudyInfo, value: float, baseline: float) -> str:
    """The difference between `value` and `baseline` in words.

    Two shares (between 0 and 1, larger is better) differ in percentage points, other metrics in
    their own unit.
    """
    reference = f"trial 0, the baseline ({format_metric(baseline)})"
    difference = value - baseline if study.direction == "maximize" else baseline - value
    is_share = study.direction == "maximize" and 0 <= value <= 1 and 0 <= baseline <= 1
    amount = f"{abs(difference) * 100:.2f}" if is_share else format_metric(abs(difference))
    unit = " points" if is_share else ""
    if difference == 0:
        return f"no better than {reference}"
    return f"{amount}{unit} {'better' if difference > 0 else 'worse'} than {reference}"


def _counts(study: StudyInfo, end: StudyFinished) -> str:
    counts = [(word, end.n_by_state.get(state, 0)) for state, word in _WORDS.items()]
    n_done = sum(n for word, n in counts if word != "unfinished")
    said = ", ".join(f"{n} {word}" for word, n in counts if n)
    took = format_duration(max(0.0, (end.time_ms - study.time_ms) / 1000))
    head = f"{study.name}: {n_done} of {study.n_trials} trials in {took}"
    return f"{head} ({said})" if said else head


def _best(study: StudyInfo, end: StudyFinished, name: str) -> list[str]:
    if end.best_value is None:
        return ["No trial completed, so there is no best one."]
    trial = name or (f"trial {end.best_number}" if end.best_number is not None else "a trial")
    extreme = Objective(study.metric, study.direction).extreme
    lines = [f"Best {study.metric} {format_metric(end.best_value)} ({extreme}) by {trial}"]
    if end.baseline_value is not None:
        if end.best_number == 0:
            lines.append("Nothing was better than trial 0, the baseline.")
        else:
            lines.append(gain(study, end.best_value, end.baseline_value).capitalize())
    return lines + appraisal_lines(end.appraisal, study.direction)


def _aligned(pairs: Sequence[tuple[str, str]]) -> list[str]:
    column = max(len(left) for left, _ in pairs)
    return [f"{left.ljust(column)}  {right}" for left, right in pairs]
