"""The end of a search in words: the best trial, its gain over the baseline, next commands."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping, Sequence

from sweep.objective import Objective
from sweep.redact import redacted
from sweep.reporting.formats import format_duration, format_metric
from sweep.trial import StudyFinished, StudyInfo, TrialState

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
    study: StudyInfo,
    end: StudyFinished,
    *,
    best_name: str = "",
    places: Mapping[str, str] | None = None,
    commands: Sequence[tuple[str, str]] = (),
    unsaved: Sequence[str] = (),
    width: int | None = None,
) -> list[str]:
    """The last lines of a search, as plain text.

    Args:
        study: As the search opened it.
        end: Its end; `n_by_state` counts the whole study.
        best_name: Run name of the best trial; empty: its number is shown.
        places: Locations by name, e.g. {"MLflow": "sqlite:///mlflow.db", "log": "..."}.
        commands: (command, its effect) to type next, see `next_commands`.
        unsaved: Sentences on interrupted trials that have to train epochs again.
        width: Cells of the terminal; None: a pipe.
    """
    lines = [_counts(study, end)]
    reason = "unsaved" if unsaved and end.reason == "interrupted" else end.reason
    if _REASONS[reason]:
        lines += [_REASONS[reason], *unsaved]
    lines += _best(study, end, best_name)
    if width is not None:
        lines = [part for line in lines for part in textwrap.wrap(line, width)]
    if places:
        lines += ["", *_aligned([(f"{name}:", place) for name, place in places.items()])]
    if commands:
        lines += ["", "Next:", *_commands(commands, width)]
    return lines


def _commands(commands: Sequence[tuple[str, str]], width: int | None) -> list[str]:
    """Commands with their effect behind them, or above them if a line would wrap."""
    lines = [f"  {line}" for line in _aligned([(c, f"# {why}") for c, why in commands])]
    if width is None or max(map(len, lines)) <= width:
        return lines
    return [line for command, why in commands for line in (f"  # {why}", f"  {command}")]


def next_commands(
    study: str, data: str | None, *, data_dir: str | None = None, storage: str | None = None,
    tracking_uri: str | None = None, is_default_store: bool = True, has_best: bool = True,
    has_failed: bool = False, n_to_retry: int = 0, going_on: str | None = None,
) -> list[tuple[str, str]]:  # fmt: skip
    """(command, its effect) to type after a search.

    Args:
        study: Its name.
        data: The data set's name; None if the module may have loaders of its own.
        data_dir: Folder of the data set's files, if one was named.
        storage: Address of the Optuna storage, if commands have to name it.
        tracking_uri: Address of the MLflow store, if commands have to name it.
        is_default_store: A bare `mlflow ui` in the current folder finds the store.
        has_best: Some trial completed.
        has_failed: Some trial failed.
        n_to_retry: Number of failed configurations without a later success.
        going_on: The command that continues an unfinished search.
    """
    name, at = shlex.quote(study), _flag("--storage", storage)
    uri = _flag("--tracking-uri", tracking_uri)
    train = f"sweep train --config best.yaml{_flag('--data', data)}{_flag('--data-dir', data_dir)}"
    then = f"train it{' on train + validation' if data else ' again'}, then test it"
    failed = (
        f"{n_to_retry} failed configurations" if n_to_retry > 1 else "the failed configuration"
    )
    offers = [
        (going_on is not None, going_on or "", "go on with the search"),
        (has_failed, f"sweep trials {name} --state fail{at}", "why trials failed"),
        (has_best, f"sweep best {name}{at} > best.yaml", "keep the best configuration"),
        (has_best, train + uri, then),
        (has_best, "mlflow ui" if is_default_store else f"sweep ui{uri}", "look at every trial"),
        (n_to_retry > 0, f"sweep retry {name}{at}", f"try {failed} again"),
    ]
    return [(command, why) for is_offered, command, why in offers if is_offered]


def _flag(name: str, value: str | None) -> str:
    """` NAME VALUE` for a shell without passwords; empty for None."""
    return "" if value is None else f" {name} {shlex.quote(redacted(value))}"


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
            return [lines[0], "Nothing was better than trial 0, the baseline."]
        lines.append(gain(study, end.best_value, end.baseline_value).capitalize())
    return lines


def _aligned(pairs: Sequence[tuple[str, str]]) -> list[str]:
    column = max(len(left) for left, _ in pairs)
    return [f"{left.ljust(column)}  {right}" for left, right in pairs]
