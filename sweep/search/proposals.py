"""Proposals and pruning: Optuna's samplers and pruners on a study in memory."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import check_distribution_compatibility
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

from sweep.config.settings import RunConfig
from sweep.errors import ConfigError, StoreError, must_be_one_of
from sweep.ledger.trials import HYPERPARAMETERS
from sweep.search.known_trials import KnownTrials
from sweep.search.pruners import make_pruner
from sweep.search.samplers import SAMPLERS, find_sampler
from sweep.space import Space, canonical_key, run_name
from sweep.trial import TrialState, derive_seed

MAX_ATTEMPTS = 50
"""The space counts as exhausted after so many duplicate proposals in a row."""
SAMPLER_ATTEMPTS = 10
"""After so many duplicates in a row the random sampler proposes instead."""
MOST_BEST = 25
"""Best trials in a bounded history at most: TPE counts at most 25 trials as good."""
GENERATION = 16
"""Trials that `--deterministic` proposes from the same earlier ones. A judgement: more keep more
workers busy, fewer teach the sampler sooner; it decides what is proposed, so it is fixed."""
QMC_STRIDE = 2**14
"""Distance in its sequence between two attempts of the QMC sampler at one trial."""

_RUNNING = create_trial(state=OptunaState.RUNNING)


@dataclass(frozen=True)
class Proposal:
    """The configuration of a new trial."""

    hyperparameters: Mapping[str, Any]
    params: Mapping[str, Any]
    """Optuna's parameters; empty if the space cannot express the configuration."""
    frozen: FrozenTrial
    """A RUNNING trial to record in the ledger."""


class Proposals:
    """Proposes configurations and judges curves, by the study's trial numbers.

    A proposal depends on (study seed, trial number, attempt) and on the other trials known so far,
    a pruner's verdict on those and the trial's own curve. With one trial at a time, a continued
    search therefore proposes and prunes as an uninterrupted one. With several at a time, the
    order in which results arrive matters, too, unless the search is deterministic: there a
    proposal and a verdict depend on the trials of earlier generations alone.

    Raises ConfigError for a bad sampler class, SpaceError if a grid is endless.
    """

    def __init__(self, space: Space, config: RunConfig) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        optuna.logging.disable_default_handler()
        warnings.filterwarnings("ignore", category=ExperimentalWarning)
        self._space, self._config = space, config
        self._sampler = find_sampler(config.sampler)
        if self._sampler.is_grid:
            space.check_grid()
        self._known = KnownTrials(f"seed-{config.seed}", [*space.distributions()])
        self._study = optuna.create_study(
            storage=self._known,
            sampler=self._sampler.make(optuna, config.seed, config.seed),
            pruner=make_pruner(config.pruner, config.epochs),
            direction=config.resolved_direction,
        )
        # Hyperband makes its brackets at the first call, and TPE looks at one bracket only.
        self._study.pruner.prune(self._study, _RUNNING)
        self._tried: set[str] = set()
        """Keys of all configurations that were tried or are running."""
        self._n_all, self._n_inside = space.n_configurations(), 0
        """Configurations of a finite space (None: it is infinite), and those of them tried."""

    def remember(self, trials: Sequence[FrozenTrial]) -> None:
        """Learn from finished trials, except other programs' with parameters outside the space.

        Trials of another study have no number (-1): they precede all others. Raises StoreError
        if a parameter of another program's trial is of another kind than the space's, because
        Optuna then refuses all trials of this search.
        """
        own = self._space.distributions()
        for place, trial in enumerate(trials):
            for name in trial.distributions.keys() & own.keys():
                try:
                    check_distribution_compatibility(trial.distributions[name], own[name])
                except ValueError as error:
                    raise StoreError(
                        f"trial {trial.number} is another program's and has {name} as another "
                        "kind of parameter: go on without it by --fork NEW"
                    ) from error
            hyperparameters = trial.user_attrs.get(HYPERPARAMETERS)
            if hyperparameters is not None or trial.params.keys() <= own.keys():
                number = trial.number if trial.number >= 0 else place - len(trials)
                self._known.add(number, trial)
                self._note_tried(hyperparameters or trial.params)

    def ask(self, number: int) -> Proposal | None:
        """A new configuration for trial `number`; None if the space is exhausted."""
        if self._n_all is not None and self._n_inside >= self._n_all:
            return None
        self._look_from(number)
        if self._sampler.is_grid:  # it goes by what was proposed, however that ended
            self._known.before = None
        self._known.window = self._window()
        try:
            for attempt in range(MAX_ATTEMPTS):
                hyperparameters = self._space.suggest(self._attempt(number, attempt))
                if not self.is_known(hyperparameters):
                    return self._accept(number, hyperparameters)
                self._known.forget(number)
        finally:
            self._known.window = None
        return None

    def _attempt(self, number: int, attempt: int) -> optuna.Trial:
        sampler = self._sampler if attempt < SAMPLER_ATTEMPTS else SAMPLERS["random"]
        seed = derive_seed(self._config.seed, "proposal", number, attempt) % 2**32
        self._study.sampler = sampler.make(optuna, seed, self._config.seed)
        self._known.next_number = number
        if sampler.is_sequence:
            self._place_in_sequence(number + attempt * QMC_STRIDE)
        return self._study.ask()

    def _place_in_sequence(self, place: int) -> None:
        """Make the QMC sampler continue at `place` of its sequence.

        It counts in the study's attributes: a first question creates the counter.
        """
        trial = self._study.ask()
        self._space.suggest(trial)
        self._known.forget(trial.number)
        for name in self._known.get_study_system_attrs(0):
            self._known.set_study_system_attr(0, name, place - 1)

    def adopt(
        self, number: int, hyperparameters: Mapping[str, Any], params: Mapping[str, Any] | None
    ) -> Proposal:
        """Trial `number` with a given configuration; `params` is None if the space lacks it."""
        known = self._space.distributions() if params else {}
        inside = {name: value for name, value in (params or {}).items() if name in known}
        trial = create_trial(
            state=OptunaState.RUNNING, params=inside,
            distributions={name: known[name] for name in inside},
        )  # fmt: skip
        self._known.add(number, trial)
        return self._accept(number, hyperparameters)

    def queued(
        self, number: int, params: Mapping[str, Any]
    ) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Configuration and all parameters of trial `number`, queued by another program.

        Parameters missing in `params` are drawn at random, seeded by the number. Raises
        ConfigError if the space has no such configuration.
        """
        names = self._space.distributions()
        unknown = [name for name in params if name not in names]
        if unknown:
            raise ConfigError(must_be_one_of("a parameter of this space", unknown[0], names))
        try:
            configuration = self._space.draw(
                derive_seed(self._config.seed, "queued", number), params
            )
        except (TypeError, ValueError) as error:
            raise ConfigError(f"no configuration of this space has {dict(params)}") from error
        found = self._space.params_for(configuration)
        if found is None:
            raise ConfigError([*self._space.problems_of(configuration).values()][:1])
        if idle := [name for name in params if name not in found]:
            raise ConfigError(f"{idle[0]} is not active in that configuration")
        return configuration, found

    def is_known(self, hyperparameters: Mapping[str, Any]) -> bool:
        """Whether exactly this configuration was tried or is running."""
        return canonical_key(hyperparameters) in self._tried

    def first_of_generation(self, number: int) -> int:
        """Trials before this one are to have ended before trial `number` is proposed."""
        return number - number % GENERATION if self._config.deterministic else 0

    def _look_from(self, number: int) -> None:
        """Let sampler and pruner see what trial `number` may depend on."""
        if self._config.deterministic:
            self._known.before, self._known.own = self.first_of_generation(number), number

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Give the pruner the objective after `epoch`; returns whether the trial should end."""
        self._look_from(number)
        self._known.set_trial_intermediate_value(number, epoch, value)
        return self._study.pruner.prune(self._study, self._known.get_trial(number))

    def tell(self, number: int, state: TrialState, value: float | None) -> Mapping[str, Any]:
        """End a trial; returns the system attributes that the sampler needs to be kept."""
        values = None
        if state.is_scored and value is not None and not math.isnan(value):
            values = [value]
        if state is TrialState.WAITING or (state is TrialState.COMPLETE and values is None):
            state = TrialState.FAIL  # an interrupted trial teaches the sampler nothing
        end = OptunaState[state]
        self._look_from(number)
        if not self._sampler.is_grid:  # its `after_trial` calls `Study.stop`, for `optimize` only
            trial = self._known.get_trial(number)
            self._study.sampler.after_trial(self._study, trial, end, values)
        self._known.set_trial_state_values(number, end, values)
        return self._known.get_trial(number).system_attrs

    def _note_tried(self, hyperparameters: Mapping[str, Any]) -> None:
        key = canonical_key(hyperparameters)
        if key not in self._tried and self._n_all is not None:
            # The reference network, say, may be outside.
            self._n_inside += self._space.params_for(hyperparameters) is not None
        self._tried.add(key)

    def _accept(self, number: int, hyperparameters: Mapping[str, Any]) -> Proposal:
        self._note_tried(hyperparameters)
        trial = self._known.get_trial(number)
        frozen = create_trial(
            state=OptunaState.RUNNING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={
                HYPERPARAMETERS: dict(hyperparameters),
                "name": run_name(number, hyperparameters),  # for optuna-dashboard's table
            },
        )
        return Proposal(dict(hyperparameters), trial.params, frozen)

    def _window(self) -> frozenset[int] | None:
        """Numbers of the best and the latest trials, `--history` in all; None: all trials."""
        before, history = self._known.before, self._config.history
        finished = [t for t in self._known.finished() if before is None or t.number < before]
        if not self._sampler.has_window or history is None or len(finished) <= history:
            return None
        goodness = self._config.objective.goodness
        scored = [t for t in finished if t.state is OptunaState.COMPLETE]
        best = sorted(scored, key=lambda t: (-goodness(t.value), t.number))
        shown = {t.number for t in best[: min(MOST_BEST, history // 2)]}
        return frozenset(shown | {t.number for t in finished[len(shown) - history :]})
