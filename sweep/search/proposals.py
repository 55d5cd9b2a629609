"""Proposals and verdicts: Optuna's samplers and pruners on a study in memory.

The seed of each proposal derives from (study seed, trial number, attempt).
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import check_distribution_compatibility
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from sweep.errors import ConfigError, StoreError, must_be_one_of
from sweep.ledger.trials import HYPERPARAMETERS
from sweep.loading import import_object
from sweep.objective import Objective
from sweep.search.known_trials import KnownTrials
from sweep.space import Space, canonical_key, run_name
from sweep.trial import Direction, TrialState, derive_seed

MAX_ATTEMPTS = 50
"""Proposals in a row that may be duplicates before the space counts as exhausted."""
SAMPLER_ATTEMPTS = 10
"""After so many duplicates in a row the random sampler proposes instead."""

MOST_BEST = 25
"""How many of the best trials a bounded history keeps: TPE counts at most 25 trials as good."""
QMC_STRIDE = 2**14
"""Distance in its sequence between the attempts of the QMC sampler at one trial."""
GROWING = ("tpe", "gp")
"""Samplers that are fitted anew for each proposal; the others walk a sequence or a tree that
needs every trial."""

_SCORED = (TrialState.COMPLETE, TrialState.PRUNED)
_RUNNING = optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING)
SamplerFactory = Callable[[int], BaseSampler]


@dataclass(frozen=True)
class Proposal:
    """What a trial is to try."""

    hyperparameters: Mapping[str, Any]
    params: Mapping[str, Any]
    """Optuna's parameters; empty for a configuration that the space cannot express."""
    frozen: FrozenTrial
    """A RUNNING trial to record."""


class Proposals:
    """Ask, report, prune and tell, by the study's trial numbers.

    A proposal depends on (study seed, trial number, what is known of other trials) alone, a
    verdict on that and the trial's own curve. One trial at a time, a search that is continued
    in another process proposes and prunes what an uninterrupted one does. With several trials at
    a time, it depends on the order in which results come in, too.
    """

    def __init__(
        self, space: Space, sampler: str, pruner: str, direction: Direction, seed: int,
        n_epochs: int, history: int | None = None,
    ) -> None:  # fmt: skip
        """`history` bounds the finished trials that the samplers of GROWING look at."""
        _hush_optuna()
        if sampler == "grid":
            space.check_grid()
        self._space, self._seed, self._sampler = space, seed, sampler
        self._objective, self._history = Objective("", direction), history
        self._make_sampler = sampler_factory(sampler, seed)
        # Hyperband puts a trial into a bracket by a checksum of the study's name and its number.
        self._known = KnownTrials(f"seed-{seed}", [*space.distributions()])
        self._study = optuna.create_study(
            storage=self._known, sampler=self._make_sampler(seed),
            pruner=make_pruner(pruner, n_epochs), direction=direction,
        )  # fmt: skip
        # Hyperband makes its brackets as it is asked first, and TPE looks at one bracket only.
        self._study.pruner.prune(self._study, _RUNNING)
        self._keys: dict[int, str] = {}
        """Running trial -> its canonical configuration."""
        self._values: dict[str, float | None] = {}
        """Canonical configuration -> objective of its completed trial, else None."""

    def fitting(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Those of `trials` that can stand beside this space's in one study.

        Raises StoreError for another program's that Optuna keeps this space's out for.
        """
        own = self._space.distributions()
        for trial in trials:
            for name, distribution in trial.distributions.items():
                try:
                    if name in own:
                        check_distribution_compatibility(distribution, own[name])
                except ValueError as error:
                    raise StoreError(
                        f"trial {trial.number} is another program's and has {name} as another "
                        "kind of parameter: go on without it by --fork NEW"
                    ) from error
        return [t for t in trials if HYPERPARAMETERS in t.user_attrs or {*t.params} <= {*own}]

    def remember(self, trials: Sequence[FrozenTrial]) -> None:
        """Learn from finished trials, of an earlier run of this study or of another study.

        Those of another study have no numbers: they come before all others.
        """
        for place, trial in enumerate(trials):
            number = trial.number if trial.number >= 0 else place - len(trials)
            self._known.add(number, trial)
            hyperparameters = trial.user_attrs.get(HYPERPARAMETERS, trial.params)
            value = trial.value if trial.state.name == "COMPLETE" else None
            self._values[canonical_key(hyperparameters)] = value

    def ask(self, number: int) -> Proposal | None:
        """A configuration that was not tried yet; None where the space has no more."""
        n_all = self._space.n_configurations()
        if n_all is not None and len(self._values) >= n_all:
            return None
        self._known.window = self._window(self._known.finished())
        try:
            return self._first_new(number)
        finally:
            self._known.window = None
            self._known.forget_duplicates()

    def _first_new(self, number: int) -> Proposal | None:
        for attempt in range(MAX_ATTEMPTS):
            trial = self._attempt(number, attempt)
            hyperparameters = self._space.suggest(trial)
            key = canonical_key(hyperparameters)
            if key not in self._values:
                return self._accept(number, hyperparameters, key)
            self._known.set_aside(number, attempt, self._values[key])
        return None

    def _attempt(self, number: int, attempt: int) -> optuna.Trial:
        seed = derive_seed(self._seed, "proposal", number, attempt) % 2**32
        is_stuck = attempt >= SAMPLER_ATTEMPTS
        self._study.sampler = (
            optuna.samplers.RandomSampler(seed=seed) if is_stuck else self._make_sampler(seed)
        )
        self._known.next_number = number
        if self._sampler == "qmc" and not is_stuck:
            self._place_in_sequence(number + attempt * QMC_STRIDE)
        return self._study.ask()

    def _place_in_sequence(self, place: int) -> None:
        """Let the QMC sampler go on from `place` of its sequence.

        It counts in the study's attributes: one question makes sure that the counter is there.
        """
        trial = self._study.ask()
        self._space.suggest(trial)
        self._known.forget(trial.number)
        for name in self._known.get_study_system_attrs(0):
            self._known.set_study_system_attr(0, name, place - 1)

    def adopt(
        self, number: int, hyperparameters: Mapping[str, Any], params: Mapping[str, Any] | None
    ) -> Proposal:
        """A given configuration as trial `number`; `params` is None where it is outside."""
        known = self._space.distributions() if params else {}
        inside = {name: value for name, value in (params or {}).items() if name in known}
        trial = optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING, params=inside,
            distributions={name: known[name] for name in inside},
        )  # fmt: skip
        self._known.add(number, trial)
        return self._accept(number, hyperparameters, canonical_key(hyperparameters))

    def queued(
        self, number: int, params: Mapping[str, Any]
    ) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """The configuration, and its parameters, that trial `number` was queued with.

        What `params` leaves open is drawn at random, by the trial's number. Raises ConfigError
        where the space does not have it.
        """
        names = self._space.distributions()
        unknown = [name for name in params if name not in names]
        if unknown:
            raise ConfigError(must_be_one_of("a parameter of this space", unknown[0], names))
        try:
            configuration = self._space.draw(derive_seed(self._seed, "queued", number), params)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"no configuration of this space has {dict(params)}") from error
        found = self._space.params_for(configuration)
        if found is None:
            raise ConfigError([*self._space.problems_of(configuration).values()][:1])
        if idle := [name for name in params if name not in found]:
            raise ConfigError(f"{idle[0]} is not active in that configuration")
        return configuration, found

    def is_known(self, hyperparameters: Mapping[str, Any]) -> bool:
        """Whether exactly this configuration was tried or is being tried."""
        return canonical_key(hyperparameters) in self._values

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Tell the pruner the objective after `epoch`; whether the trial should end."""
        self._known.set_trial_intermediate_value(number, epoch, value)
        return self._study.pruner.prune(self._study, self._known.get_trial(number))

    def tell(self, number: int, state: TrialState, value: float | None) -> Mapping[str, Any]:
        """End a trial; returns what the sampler wants to be kept with it (system attributes)."""
        is_scored = value is not None and not math.isnan(value)
        if state is TrialState.COMPLETE and not is_scored:
            state = TrialState.FAIL
        values = [value] if value is not None and is_scored and state in _SCORED else None
        end = optuna.trial.TrialState[state]
        trial = self._known.get_trial(number)
        self._study.sampler.after_trial(self._study, trial, end, values)
        self._known.set_trial_state_values(number, end, values)
        key = self._keys.pop(number)
        if state is TrialState.COMPLETE:
            self._values[key] = value
        return self._known.get_trial(number).system_attrs

    def _accept(self, number: int, hyperparameters: Mapping[str, Any], key: str) -> Proposal:
        self._keys[number] = key
        self._values.setdefault(key, None)
        trial = self._known.get_trial(number)
        frozen = optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={
                HYPERPARAMETERS: dict(hyperparameters),
                "name": run_name(number, hyperparameters),  # for optuna-dashboard's table
            },
        )
        return Proposal(dict(hyperparameters), trial.params, frozen)

    def _window(self, finished: Sequence[FrozenTrial]) -> frozenset[int] | None:
        """Numbers of the best and the latest trials, `history` in all; None: all trials."""
        if self._sampler not in GROWING or self._history is None or len(finished) <= self._history:
            return None
        scored = [t for t in finished if t.state.name == "COMPLETE"]
        best = sorted(scored, key=lambda t: (-self._objective.goodness(t.value), t.number))
        shown = {t.number for t in best[: min(MOST_BEST, self._history // 2)]}
        return frozenset(shown | {t.number for t in finished[len(shown) - self._history :]})


def sampler_factory(name: str, study_seed: int) -> SamplerFactory:
    """Seed -> sampler. Raises ConfigError for a class that is not a sampler.

    qmc walks one sequence, so its seed is the study's and not the trial's.
    """
    samplers = optuna.samplers
    table: dict[str, SamplerFactory] = {
        "tpe": lambda seed: samplers.TPESampler(
            seed=seed, multivariate=True, group=True, constant_liar=True
        ),
        "gp": lambda seed: samplers.GPSampler(seed=seed, warn_independent_sampling=False),
        "cmaes": lambda seed: samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False),
        "qmc": lambda seed: samplers.QMCSampler(
            seed=study_seed, scramble=True, warn_asynchronous_seeding=False,
            warn_independent_sampling=False,
            independent_sampler=samplers.RandomSampler(seed=seed),
        ),
        "random": lambda seed: samplers.RandomSampler(seed=seed),
        "grid": lambda seed: _Grid(seed=seed),
        "nsga2": lambda seed: samplers.NSGAIISampler(seed=seed),
    }  # fmt: skip
    return table[name] if name in table else _user_sampler(name)


def make_pruner(name: str, n_epochs: int) -> BasePruner:
    """The pruner called `name`, for trials of `n_epochs` epochs."""
    pruners = optuna.pruners
    table: dict[str, Callable[[], BasePruner]] = {
        "none": pruners.NopPruner,
        # Optuna counts steps from 0, epochs count from 1: the first epoch is not judged.
        "median": lambda: pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=2),
        "asha": lambda: pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3),
        "hyperband": lambda: pruners.HyperbandPruner(
            min_resource=1, max_resource=n_epochs, reduction_factor=3
        ),
        "patient": lambda: pruners.PatientPruner(
            pruners.MedianPruner(n_startup_trials=5), patience=max(1, n_epochs // 4)
        ),
    }
    return table[name]()


class _Grid(optuna.samplers.BruteForceSampler):
    """Optuna's, less its `Study.stop` at the end, which only `optimize` may call: `ask` knows."""

    def after_trial(self, *_: Any) -> None:
        """Leave the study as it is."""


def _user_sampler(path: str) -> SamplerFactory:
    user_class: Any = import_object(path, "--sampler")
    if not (inspect.isclass(user_class) and issubclass(user_class, BaseSampler)):
        raise ConfigError(f"--sampler {path!r} must be a class derived from Optuna's BaseSampler")
    make: Callable[..., BaseSampler] = user_class
    takes_seed = "seed" in inspect.signature(make).parameters
    return lambda seed: make(seed=seed) if takes_seed else make()


def _hush_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.logging.disable_default_handler()
    warnings.filterwarnings("ignore", category=ExperimentalWarning)
