"""A changed space on an existing study: say what changed, and carry over the trials that fit.

Also which failed trials `sweep retry` tries again.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from sweep.config.settings import RunConfig, flag_name
from sweep.ledger.trials import HYPERPARAMETERS, LedgerTrial
from sweep.objective import Objective
from sweep.space import Space, canonical_key
from sweep.trial import Direction, TrialState

SCORE_SETTINGS = ("metric", "direction", "data", "module")
"""Settings that a score means something else without."""

MAX_CARRIED = 1000
"""Trials that a fork starts with at most: the best ones."""


@dataclass(frozen=True)
class Carried:
    """Trials of an older study, as a new one starts with them."""

    trials: tuple[Mapping[str, Any], ...]
    """Each has hyperparameters, value and number; plain values, to be kept with the study."""
    n_old: int
    """Completed trials that the old study has."""
    reasons: Mapping[str, int]
    """Why others do not fit, and how many."""

    def told(self, new: str, old: str) -> list[str]:
        """What the user is told."""
        n = len(self.trials)
        lines = [
            f"{n} of the {self.n_old} trials of {old} inform{'s' if n == 1 else ''} the sampler "
            f"of {new}, which has none of them itself"
        ]
        lines += [
            f"  {n} {'does' if n == 1 else 'do'} not: {reason}"
            for reason, n in self.reasons.items()
        ]
        return lines


def differences(old: Space, new: Space) -> list[str]:
    """One sentence for each hyperparameter that may take other values now."""
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
    """Why no score of a study with these settings says anything here; empty where they do."""
    now = dataclasses.asdict(config) | {"direction": config.resolved_direction}
    old = {**stored, "direction": direction}
    for name in SCORE_SETTINGS:
        if name in old and old[name] != now[name]:
            flag = flag_name(name)
            return f"their scores are for {flag} {old[name]}, but now it is {now[name]}"
    return ""


def carry(
    space: Space, trials: Sequence[LedgerTrial], *, maximize: bool, strange: str = ""
) -> Carried:
    """The completed trials that lie inside `space`, best first, and why the others do not.

    With `strange`, a reason that holds for all, there are none.
    """
    done = [t for t in trials if t.state is TrialState.COMPLETE and t.value is not None]
    if strange:
        return Carried((), len(done), {strange: len(done)} if done else {})
    objective = Objective("", "maximize" if maximize else "minimize")
    done.sort(key=lambda t: objective.goodness(t.value), reverse=True)
    kept: list[Mapping[str, Any]] = []
    reasons: Counter[str] = Counter()
    for trial in done:
        if space.params_for(trial.hyperparameters) is not None:
            kept.append(
                {
                    "hyperparameters": dict(trial.hyperparameters),
                    "value": trial.value,
                    "number": trial.number,
                }
            )
            continue
        problems = [*space.problems_of(trial.hyperparameters).values(), "outside the space"]
        reasons[_reason(problems[0])] += 1
    if len(kept) > MAX_CARRIED:
        reasons[f"the best {MAX_CARRIED} are enough"] = len(kept) - MAX_CARRIED
    return Carried(tuple(kept[:MAX_CARRIED]), len(done), dict(reasons))


def as_history(space: Space, carried: Sequence[Mapping[str, Any]]) -> list[FrozenTrial]:
    """Carried trials as completed Optuna trials in the terms of `space`.

    They teach the sampler; they are no trials of the study and count for nothing.
    """
    history = []
    distributions = space.distributions()
    for trial in carried:
        params = space.params_for(trial["hyperparameters"])
        if params is None:
            continue
        history.append(
            optuna.trial.create_trial(
                params=params,
                distributions={name: distributions[name] for name in params},
                value=trial["value"],
                user_attrs={HYPERPARAMETERS: trial["hyperparameters"]},
            )
        )
    return history


def _described(space: Space) -> dict[str, str]:
    described = {name: f"fixed at {value!r}" for name, value in space.fixed.items()}
    for parameter in space.parameters:
        conditions = " and ".join(
            f"{name} in {', '.join(map(str, values))}" for name, values in parameter.when.items()
        )
        suffix = f" when {conditions}" if conditions else ""
        described[parameter.name] = parameter.expected() + suffix
    return described


def _reason(sentence: str) -> str:
    """The rule without the value got, so that equal reasons count together."""
    return sentence.partition(", but got")[0]


def to_retry(trials: Sequence[LedgerTrial], kind: str | None = None) -> dict[str, int]:
    """What `sweep retry` tries: failed configurations, by key, and a trial of each.

    A configuration counts once, however often it failed; not at all if another try of it was
    completed or pruned.

    Args:
        trials: All of a study, by number.
        kind: Of failure; None: any.
    """
    if all(trial.state is not TrialState.FAIL for trial in trials):
        return {}  # keys of thousands take a tenth of a second
    failed, succeeded = dict[str, int](), set[str]()
    for trial in trials:
        key = canonical_key(trial.hyperparameters)
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
            succeeded.add(key)
        elif trial.state is TrialState.FAIL and kind in (None, _kind_of(trial)):
            failed[key] = trial.number
    return {key: number for key, number in failed.items() if key not in succeeded}


def _kind_of(trial: LedgerTrial) -> str | None:
    return (trial.result.get("failure") or {}).get("kind")
