"""Who proposes and who prunes: Optuna's samplers and pruners on a study in memory.

The seed of each proposal derives from (study seed, trial number, attempt), so a search that is
resumed never repeats its first suggestions.
"""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Mapping, MutableSequence, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import check_distribution_compatibility
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from sweep.agenda import Planned
from sweep.errors import ConfigError, StoreError, must_be_one_of
from sweep.imports import import_object
from sweep.ledger import HYPERPARAMETERS
from sweep.space import Space, canonical_key
from sweep.space.trials import FilledTrial
from sweep.tpe import WORTH_SCIPY, evaluate_in_c
from sweep.trial import Direction, TrialState, derive_seed

MAX_ATTEMPTS = 50
"""Proposals in a row that may be duplicates before the space counts as exhausted."""
SAMPLER_ATTEMPTS = 10
"""After so many duplicates in a row the random sampler proposes instead."""

MOST_KNOWN, MOST_BEST = 192, 25
"""What a sampler whose work grows with history looks at: the best trials and the latest ones.

Optuna's TPE never counts more than 25 trials as good, so those are the ones that it would take
anyway; the rest stands for what is not good. One proposal of TPE took 11 ms of processor time at
100 trials and 80 at 800; with 256 kept it stayed near 20 at any number (8 since `tpe`)."""
GROWING = ("tpe", "gp")
"""Samplers that are fitted anew for each proposal; the others walk a sequence or a tree that
needs every trial."""

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
    """Ask, report, prune and tell, by the study's trial numbers."""

    def __init__(
        self, space: Space, sampler: str, pruner: str, direction: Direction, seed: int,
        n_epochs: int,
    ) -> None:  # fmt: skip
        _hush_optuna()
        if sampler == "grid":
            space.grid()  # raises SpaceError where there is none
        self._space, self._seed = space, seed
        self._make_sampler = sampler_factory(sampler, seed)
        self._study = optuna.create_study(
            storage=optuna.storages.InMemoryStorage(),
            sampler=self._make_sampler(seed),
            pruner=make_pruner(pruner, n_epochs),
            direction=direction,
        )
        self._is_growing, self._is_tpe = sampler in GROWING, sampler == "tpe"
        self._n_known = 0
        self._running: dict[int, optuna.Trial] = {}
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
        """Learn from finished trials of an earlier run of this study."""
        self._n_known += len(trials)
        for trial in trials:
            self._study.add_trial(trial)
            hyperparameters = trial.user_attrs.get(HYPERPARAMETERS, trial.params)
            value = trial.value if trial.state.name == "COMPLETE" else None
            self._values[canonical_key(hyperparameters)] = value

    def ask(self, number: int) -> Proposal | None:
        """A configuration that was not tried yet; None where the space has no more."""
        self._forget_some()
        if self._is_tpe and self._n_known >= WORTH_SCIPY:
            evaluate_in_c()
        n_all = self._space.n_configurations()
        if n_all is not None and len(self._values) >= n_all:
            return None
        for attempt in range(MAX_ATTEMPTS):
            seed = derive_seed(self._seed, "proposal", number, attempt) % 2**32
            is_stuck = attempt >= SAMPLER_ATTEMPTS
            self._study.sampler = (
                optuna.samplers.RandomSampler(seed=seed) if is_stuck else self._make_sampler(seed)
            )
            trial = self._study.ask()
            hyperparameters = self._space.suggest(trial)
            key = canonical_key(hyperparameters)
            if key not in self._values:
                return self._accept(number, trial, hyperparameters, key)
            self._tell_duplicate(trial, self._values[key])
        return None

    def think_ahead(
        self,
        agenda: MutableSequence[Planned],
        number: int,
        n_wanted: int,
        is_stopping: Callable[[], bool],
    ) -> None:
        """Give what is on `agenda` its proposals, and append new ones until it has `n_wanted`.

        Args:
            agenda: In the order in which it will be handed out.
            number: Of the next trial that has none yet.
            n_wanted: Trials, at most.
            is_stopping: Asked before each new proposal; one takes up to 80 ms.
        """
        for place, planned in enumerate(agenda):
            own = number if planned.number is None else planned.number
            agenda[place] = dataclasses.replace(planned, proposal=self.of(planned, own))
            number += planned.number is None
        while len(agenda) < n_wanted and not is_stopping():
            if (found := self.ask(number)) is None:
                return
            agenda.append(Planned(found.hyperparameters, found.params, proposal=found))
            number += 1

    def of(self, planned: Planned, number: int) -> Proposal:
        """What was thought of ahead for `planned`, else its configuration, adopted."""
        ahead = planned.proposal
        return ahead or self.adopt(number, planned.hyperparameters, planned.params)

    def adopt(
        self, number: int, hyperparameters: Mapping[str, Any], params: Mapping[str, Any] | None
    ) -> Proposal:
        """A given configuration as trial `number`; `params` is None where it is outside."""
        key = canonical_key(hyperparameters)
        if params is None:
            return self._accept(number, self._study.ask(), hyperparameters, key)
        self._study.enqueue_trial(dict(params))
        trial = self._study.ask()
        self._space.suggest(trial)
        return self._accept(number, trial, hyperparameters, key)

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
        drawn = FilledTrial(params, derive_seed(self._seed, "queued", number))
        try:
            configuration = self._space.suggest(drawn)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"no configuration of this space has {dict(params)}") from error
        found = self._space.params_for(configuration)
        if found is None:
            raise ConfigError([p.sentence for p in self._space.problems_of(configuration)][:1])
        if idle := [name for name in params if name not in found]:
            raise ConfigError(f"{idle[0]} is not active in that configuration")
        return configuration, found

    def is_known(self, hyperparameters: Mapping[str, Any]) -> bool:
        """Whether exactly this configuration was tried or is being tried."""
        return canonical_key(hyperparameters) in self._values

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Tell the pruner the objective after `epoch`; whether the trial should end."""
        trial = self._running[number]
        trial.report(value, step=epoch)
        return trial.should_prune()

    def tell(self, number: int, state: TrialState, value: float | None) -> Mapping[str, Any]:
        """End a trial; returns what the sampler wants to be kept with it (system attributes)."""
        trial = self._running.pop(number)
        frozen = self._tell(trial, state, value)
        if state is TrialState.COMPLETE:
            key = canonical_key(trial.user_attrs[HYPERPARAMETERS])
            self._values[key] = value
        return {k: v for k, v in frozen.system_attrs.items() if k != "fixed_params"}

    def _accept(
        self, number: int, trial: optuna.Trial, hyperparameters: Mapping[str, Any], key: str
    ) -> Proposal:
        trial.set_user_attr(HYPERPARAMETERS, dict(hyperparameters))
        self._running[number] = trial
        self._values.setdefault(key, None)
        frozen = optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={HYPERPARAMETERS: dict(hyperparameters)},
        )
        return Proposal(dict(hyperparameters), trial.params, frozen)

    def _tell_duplicate(self, trial: optuna.Trial, value: float | None) -> None:
        state = TrialState.FAIL if value is None else TrialState.COMPLETE
        self._tell(trial, state, value)

    def _tell(self, trial: optuna.Trial, state: TrialState, value: float | None) -> FrozenTrial:
        optuna_state = optuna.trial.TrialState[state]
        told = value if state is TrialState.COMPLETE else None
        frozen = trial.study.tell(trial, told, state=optuna_state)
        self._n_known += 1
        if trial.study is not self._study:  # it was handed out before others were forgotten
            self._study.add_trial(frozen)
        return frozen

    def _forget_some(self) -> None:
        """Keep what is known within bounds: go on with a study of the best and latest trials.

        Trials that run now end in the study they were asked in, and are added then.
        """
        if not self._is_growing or self._n_known <= 1.25 * MOST_KNOWN:
            return
        old = self._study
        finished = [t for t in old.get_trials(deepcopy=False) if t.state.is_finished()]
        sign = -1.0 if old.direction == optuna.study.StudyDirection.MAXIMIZE else 1.0
        scored = [t for t in finished if t.state.name == "COMPLETE"]
        best = sorted(scored, key=lambda t: (sign * (t.value or 0.0), t.number))[:MOST_BEST]
        latest = finished[len(best) - MOST_KNOWN :]
        kept = {t.number: t for t in [*best, *latest]}
        self._study = optuna.create_study(
            storage=optuna.storages.InMemoryStorage(), sampler=old.sampler, pruner=old.pruner,
            direction=old.direction,
        )  # fmt: skip
        self._study.add_trials([kept[number] for number in sorted(kept)])
        self._n_known = len(kept)


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
