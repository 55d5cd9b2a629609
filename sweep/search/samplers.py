"""Samplers, one record each: the only place that lists them. Loads Optuna when one is made.

A new sampler is one entry of SAMPLERS: `--sampler`, its help and the documentation read the table.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sweep.errors import ConfigError
from sweep.loading import import_object

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


@dataclass(frozen=True)
class Sampler:
    """A sampler of Optuna's, by name."""

    meaning: str
    """One line for users."""
    make: Callable[[Any, int, int], BaseSampler]
    """(package optuna, seed of the proposal, seed of the study) -> sampler."""
    has_window: bool = False
    """Fitted anew for each proposal, so `--history` may bound the trials it sees. The others
    walk a sequence or a tree and need every trial."""
    is_sequence: bool = False
    """Proposal n is point n of a sequence, which belongs to the study's seed."""
    is_grid: bool = False
    """Needs a space with a finite number of configurations."""


SAMPLERS = {
    "tpe": Sampler(
        "tree-structured Parzen estimator",
        lambda optuna, seed, _: optuna.samplers.TPESampler(
            seed=seed, multivariate=True, group=True, constant_liar=True
        ),
        has_window=True,
    ),
    "gp": Sampler(
        "Gaussian process",
        lambda optuna, seed, _: optuna.samplers.GPSampler(
            seed=seed, warn_independent_sampling=False
        ),
        has_window=True,
    ),
    "cmaes": Sampler(
        "covariance matrix adaptation; choices are drawn at random",
        lambda optuna, seed, _: optuna.samplers.CmaEsSampler(
            seed=seed, warn_independent_sampling=False
        ),
    ),
    "qmc": Sampler(
        "scrambled Sobol sequence",
        lambda optuna, seed, study_seed: optuna.samplers.QMCSampler(
            seed=study_seed,
            scramble=True,
            warn_asynchronous_seeding=False,
            warn_independent_sampling=False,
            independent_sampler=optuna.samplers.RandomSampler(seed=seed),
        ),
        is_sequence=True,
    ),
    "random": Sampler(
        "independent draws", lambda optuna, seed, _: optuna.samplers.RandomSampler(seed=seed)
    ),
    "grid": Sampler(
        "every configuration once, in random order",
        lambda optuna, seed, _: optuna.samplers.BruteForceSampler(seed=seed),
        is_grid=True,
    ),
    "nsga2": Sampler(
        "genetic algorithm", lambda optuna, seed, _: optuna.samplers.NSGAIISampler(seed=seed)
    ),
}


def find_sampler(name: str) -> Sampler:
    """The sampler called `name`, or the user's, by `package.module:Class`.

    Raises ConfigError for a class that cannot be imported or is no sampler.
    """
    if name in SAMPLERS:
        return SAMPLERS[name]
    import optuna

    given = import_object(name, "--sampler")
    if not (inspect.isclass(given) and issubclass(given, optuna.samplers.BaseSampler)):
        raise ConfigError(f"--sampler {name!r} must be a class derived from Optuna's BaseSampler")
    make: Callable[..., BaseSampler] = given
    takes_seed = "seed" in inspect.signature(make).parameters
    return Sampler(name, lambda _, seed, __: make(seed=seed) if takes_seed else make())
