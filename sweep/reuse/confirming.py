"""`sweep confirm`: the best trials of a study on fresh seeds, and the test split once.

The finalists race (`sweep.trust.race`). Each round is a study of its own, STUDY-confirm-N: an
ordinary search of the configurations that are left, with a seed of its own for split, order and
weights. So they train side by side, and what was broken off goes on with the same command.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sweep.appraisal import Confirmation, Finalist, Interval
from sweep.config.settings import RunConfig
from sweep.errors import ConfigError, NotFoundError, StudyInterrupted, StudyLockedError, SweepError
from sweep.ledger.confirmation import (
    confirmation_in,
    n_completed,
    opening,
    round_name,
    study_of_round,
    tags_of,
)
from sweep.ledger.ranking import baseline_of, ranking_of
from sweep.ledger.trials import LedgerTrial
from sweep.reuse.best import find_trial, opened, owned
from sweep.reuse.final_training import test_checkpoint
from sweep.search.study import Extras, Outcome
from sweep.space import Space, canonical_key, parse_space
from sweep.space.naming import run_name
from sweep.trial import TrialState, derive_seed
from sweep.trust.intervals import Z
from sweep.trust.race import result, runners, student

Search = Callable[[RunConfig, Space, Extras], Outcome]


def confirm(
    study: str | None,
    where: RunConfig,
    search: Search,
    *,
    top: int,
    n_seeds: int,
    is_tested: bool,
) -> Confirmation:
    """Race the best `top` trials over `n_seeds` fresh seeds; the reference trains beside them.

    Args:
        study: Its name; None: the only one.
        where: Storage, tracking URI, work folder; machine settings.
        search: Runs a search.
        top: Finalists.
        n_seeds: Rounds.
        is_tested: Open the test split once the winner is chosen.

    Raises NotFoundError without two completed trials, ConfigError for a round of a confirmation,
    StudyInterrupted; and what a search raises.
    """
    with opened(study, where) as (ledger, config):
        if (whole := study_of_round(ledger.name)) is not None:
            raise ConfigError(f"{ledger.name} is a round of a confirmation: confirm {whole}")
        trials, tags = ledger.trials(), ledger.tags
        space = parse_space(ledger.space_text, config.space_name, is_mlp=config.is_mlp)
    race = _Race(config, space, *_finalists(config, trials, top), search)
    for _ in range(n_seeds):
        race.train_round()
    found = dataclasses.replace(race.result(), n_known=n_completed(trials))
    earlier = confirmation_in(tags)
    if earlier is not None and earlier.test and _is_same_race(earlier, found):
        found = dataclasses.replace(
            found, test=earlier.test, reference_test=earlier.reference_test
        )
        is_tested = False  # the split was opened for this very winner
    _note(config, tags_of(found))
    if is_tested:
        found = _tested(found, race)
        _note(config, tags_of(found) | (opening(tags) if found.test else {}))
    return found


def _is_same_race(one: Confirmation, other: Confirmation) -> bool:
    return (one.winner, one.n_seeds, one.value) == (other.winner, other.n_seeds, other.value)


def _finalists(
    config: RunConfig, trials: Sequence[LedgerTrial], top: int
) -> tuple[list[LedgerTrial], LedgerTrial | None]:
    by_number = {trial.number: trial for trial in trials}
    found: dict[Any, LedgerTrial] = {}
    for ranked in ranking_of(trials, config.objective):
        trial = by_number[ranked.number]
        found.setdefault(canonical_key(trial.hyperparameters), trial)
    reference = baseline_of(config, trials)
    if len(found) < 2:
        raise NotFoundError(
            f"study {config.study_name!r} has {len(found)} completed configurations: there is "
            "nothing to choose from"
        )
    return list(found.values())[:top], reference


class _Race:
    """The rounds of a race. What they came to is read from their studies."""

    def __init__(
        self, config: RunConfig, space: Space, finalists: Sequence[LedgerTrial],
        reference: LedgerTrial | None, search: Search,
    ) -> None:  # fmt: skip
        self._config, self._space, self._search = config, space, search
        self._finalists, self.reference = finalists, reference
        self._sign = 1.0 if config.resolved_direction == "maximize" else -1.0
        self._rounds: list[tuple[RunConfig, dict[Any, LedgerTrial]]] = []
        """Settings of each round, and its completed trainings by configuration."""

    def train_round(self) -> None:
        """Train those that are left, and the reference, on one more seed."""
        place = len(self._rounds) + 1
        alive = [self._finalists[k] for k in runners(self._scores(), self._before())]
        wanted = {
            canonical_key(trial.hyperparameters): trial.hyperparameters
            for trial in self._with_reference(alive)
        }
        config = dataclasses.replace(
            self._config, study=round_name(self._config.study_name, place),
            seed=derive_seed(self._config.seed, "confirm", place) % 2**31, pruner="none",
            sampler="random", baseline=False, timeout_s=None, log_models="none", keep=None,
        )  # fmt: skip
        ended = _ended(config)
        missing = {key: given for key, given in wanted.items() if key not in ended}
        if missing:
            config = dataclasses.replace(config, trials=len(ended) + len(missing))
            space = dataclasses.replace(
                self._space, first=tuple(missing.values()), has_defaults_first=False
            )
            outcome = self._search(config, space, Extras())
            if outcome.end.reason not in ("done", "exhausted"):
                raise StudyInterrupted("interrupted; the same `sweep confirm` goes on")
            ended = _ended(config)
        done = {k: t for k, t in ended.items() if t.state is TrialState.COMPLETE and k in wanted}
        self._rounds.append((config, done))

    def result(self) -> Confirmation:
        """The result. Raises NotFoundError if too many trainings failed."""
        scores = self._scores()
        found = result(scores, self._before())
        if found is None:
            raise NotFoundError(
                "no finalist has a score on two seeds: "
                f"`sweep trials {round_name(self._config.study_name, 1)}` shows why"
            )
        low, high = sorted(self._sign * end for end in (found.value.low, found.value.high))
        if all(trial.value is not None and 0 <= trial.value <= 1 for trial in self._finalists):
            low, high = max(0.0, low), min(1.0, high) if self._sign > 0 else high
        entries = [
            self._entry(trial, row) for trial, row in zip(self._finalists, scores, strict=True)
        ]
        reference, gain = None, None
        if self.reference is not None:
            own = self._row(self.reference)
            reference = self._entry(self.reference, own)
            gaps = np.array(found.chosen) - own[-len(found.chosen) :]
            gaps = gaps[~np.isnan(gaps)]
            if len(gaps) > 1 and self.reference is not self._finalists[found.winner]:
                error = float(gaps.std(ddof=1)) / math.sqrt(len(gaps))
                gain = student(float(gaps.mean()), error, len(gaps) - 1)
        return Confirmation(
            self._config.study_name, self._config.metric, self._config.resolved_direction,
            len(self._rounds), tuple(entries),
            self._finalists[found.winner].number,
            Interval(self._sign * found.value.value, low, high), reference, gain,
            sum(len(done) for _, done in self._rounds),
        )  # fmt: skip

    def trainings(self, number: int) -> list[tuple[RunConfig, int]]:
        """(settings of the round, number in its study) of each training of a finalist."""
        known = self._with_reference(self._finalists)
        trial = next(trial for trial in known if trial.number == number)
        key = canonical_key(trial.hyperparameters)
        return [(config, done[key].number) for config, done in self._rounds if key in done]

    def _with_reference(self, trials: Sequence[LedgerTrial]) -> list[LedgerTrial]:
        return [*trials, *([self.reference] if self.reference else [])]

    def _entry(self, trial: LedgerTrial, row: Any) -> Finalist:
        name = str(trial.result.get("name") or run_name(trial.number, trial.hyperparameters))
        scores = tuple(float(self._sign * score) for score in row)
        return Finalist(trial.number, name, float(trial.value or 0.0), scores)

    def _before(self) -> Any:
        return self._sign * np.array([trial.value for trial in self._finalists], float)

    def _scores(self) -> Any:
        """(K, S), larger is better."""
        rows = [self._row(trial) for trial in self._finalists]
        return np.array(rows).reshape(len(rows), len(self._rounds))

    def _row(self, trial: LedgerTrial) -> Any:
        key = canonical_key(trial.hyperparameters)
        found = [done[key].value if key in done else math.nan for _, done in self._rounds]
        return self._sign * np.array(found, float)


def _ended(config: RunConfig) -> dict[Any, LedgerTrial]:
    """The ended trials of a study by configuration; none if there is no such study."""
    with contextlib.suppress(NotFoundError), opened(config.study_name, config) as (ledger, _):
        ended = [trial for trial in ledger.trials() if trial.state.is_finished]
        return {canonical_key(trial.hyperparameters): trial for trial in ended}
    return {}


def _tested(found: Confirmation, race: _Race) -> Confirmation:
    """With what the winner's models, and the reference's, reach on the test split."""
    try:
        test = _test_of(race, found.winner)
        reference = _test_of(race, race.reference.number) if race.reference else {}
    except SweepError as error:  # the race is not lost for that
        return dataclasses.replace(found, why_not_tested=str(error))
    return dataclasses.replace(found, test=test, reference_test=reference)


def _test_of(race: _Race, number: int) -> dict[str, Interval]:
    """Each metric's mean over the seeds, with an interval for seeds and test samples."""
    rows: list[Mapping[str, float]] = []
    for config, own in race.trainings(number):
        best = find_trial(config.study_name, own, config)
        metrics, n_samples = test_checkpoint(best.recipe, config, best.checkpoint)
        rows.append(metrics)
    found = {}
    for name in rows[0] if len(rows) > 1 else ():
        values = np.array([row[name] for row in rows])
        error = float(values.std(ddof=1)) / math.sqrt(len(values))
        one = student(float(values.mean()), error, len(values) - 1)
        if "acc" in name and 0 <= one.value <= 1:
            half = math.hypot(
                one.high - one.value, Z * math.sqrt(one.value * (1 - one.value) / n_samples)
            )
            one = Interval(one.value, max(0.0, one.value - half), min(1.0, one.value + half))
        found[name] = one
    return found


def _note(config: RunConfig, tags: Mapping[str, str]) -> None:
    """Keep tags with the study, in ledger and MLflow. Raises StoreError.

    While a search of the study runs, MLflow has them once that is over.
    """
    from sweep.repair.records import StudyRecords
    from sweep.tracking.mirror import sync_study

    with opened(config.study_name, config) as (ledger, _):
        ledger.note_tags(tags)
    with (
        contextlib.suppress(StudyLockedError),
        owned(config.study_name, config) as (ledger, _),
    ):
        records = StudyRecords(config, ledger)
        sync_study(config.tracking_uri, records.study(), records.end())
