"""Old trials in a new search: `--fork` carries over fitting ones, `retry` repeats failed ones."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from sweep.config.settings import RunConfig, flag_name
from sweep.ledger.trials import HYPERPARAMETERS, LedgerTrial
from sweep.objective import Objective
from sweep.space import Space, canonical_key
from sweep.trial import Direction, TrialState

SCORE_SETTINGS = ("metric", "direction", "data", "module")
"""Settings that decide what a score means."""

MAX_CARRIED = 1000
"""Maximum number of carried trials: the best ones."""


def differences(old: Space, new: Space) -> list[str]:
    """One sentence for each hyperparameter with another range."""
    before, after = _described(old), _described(new)
    lines = []
    for name in dict.fromkeys([*before, *after]):
        if name not in after:
            lines.append(f"{name}: was {before[name]}, is gone")
        elif name not in before:
            lines.append(f"{name}: is new, {after[name]}")
        elif before[name] != after[name]:
            lines.append(f"{name}: was {before[name]}, is {after[name]}")
    return lines


def incomparable(config: RunConfig, stored: Mapping[str, Any], direction: Direction) -> str:
    """Why scores of a study with `stored` settings do not compare with this search's, or ""."""
    now = dataclasses.asdict(config) | {"direction": config.resolved_direction}
    old = {**stored, "direction": direction}
    for name in SCORE_SETTINGS:
        if name in old and old[name] != now[name]:
            flag = flag_name(name)
            return f"their scores are for {flag} {old[name]}, but now it is {now[name]}"
    return ""


def carry(
    space: Space, trials: Sequence[LedgerTrial], objective: Objective, strange: str = ""
) -> tuple[list[dict[str, Any]], Mapping[str, int]]:
    """The completed trials inside `space`, best first, in plain values; reasons for the others.

    The second item counts the trials left out for each reason. With `strange`, a reason for all,
    no trial is carried.
    """
    done = [t for t in trials if t.state is TrialState.COMPLETE and t.value is not None]
    kept: list[dict[str, Any]] = []
    reasons: Counter[str] = Counter()
    for trial in sorted(done, key=lambda t: objective.goodness(t.value), reverse=True):
        values = trial.hyperparameters
        if not strange and space.params_for(values) is not None:
            kept.append(
                {"hyperparameters": dict(values), "value": trial.value, "number": trial.number}
            )
            continue
        problems = space.problems_of(values) if not strange else {}
        # the rule without the value, so that equal reasons count together
        rules = [sentence.partition(", but got")[0] for sentence in problems.values()]
        reasons[strange or (rules[0] if rules else "outside the space")] += 1
    if len(kept) > MAX_CARRIED:
        reasons[f"the best {MAX_CARRIED} are enough"] = len(kept) - MAX_CARRIED
    return kept[:MAX_CARRIED], reasons


def carried_lines(n: int, reasons: Mapping[str, int], new: str, old: str) -> list[str]:
    """Lines for the user: `n` trials of study `old` teach the sampler of `new`."""
    n_old = n + sum(reasons.values())
    lines = [
        f"{n} of the {n_old} trials of {old} inform{'s' if n == 1 else ''} the sampler "
        f"of {new}, which has none of them itself"
    ]
    return lines + [
        f"  {n} {'does' if n == 1 else 'do'} not: {reason}" for reason, n in reasons.items()
    ]


def as_history(space: Space, carried: Sequence[Mapping[str, Any]]) -> list[FrozenTrial]:
    """Carried trials as completed Optuna trials with the parameters of `space`.

    They teach the sampler, but are no trials of the study.
    """
    distributions = space.distributions()
    fitting = [(trial, space.params_for(trial["hyperparameters"])) for trial in carried]
    return [
        optuna.trial.create_trial(
            params=params,
            distributions={name: distributions[name] for name in params},
            value=trial["value"],
            user_attrs={HYPERPARAMETERS: trial["hyperparameters"]},
        )
        for trial, params in fitting
        if params is not None
    ]


def _described(space: Space) -> dict[str, str]:
    described = {name: f"fixed at {value!r}" for name, value in space.fixed.items()}
    for parameter in space.parameters:
        conditions = " and ".join(
            f"{name} in {', '.join(map(str, values))}" for name, values in parameter.when.items()
        )
        suffix = f" when {conditions}" if conditions else ""
        described[parameter.name] = parameter.expected() + suffix
    return described


def to_retry(trials: Sequence[LedgerTrial], kind: str | None = None) -> dict[str, int]:
    """Configurations for `sweep retry`: key -> number of its last failed trial.

    Excludes configurations with a completed or pruned trial.

    Args:
        trials: All trials of a study, by number.
        kind: Kind of failure; None: any.
    """
    if all(trial.state is not TrialState.FAIL for trial in trials):
        return {}  # keys of thousands take a tenth of a second
    failed, succeeded = dict[str, int](), set[str]()
    for trial in trials:
        key = canonical_key(trial.hyperparameters)
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
            succeeded.add(key)
        elif trial.state is TrialState.FAIL:
            failure = trial.result.get("failure") or {}
            if kind in (None, failure.get("kind")):
                failed[key] = trial.number
    return {key: number for key, number in failed.items() if key not in succeeded}
