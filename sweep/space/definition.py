"""Space: parameters, fixed values and first configurations of a search."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.config.file import show
from sweep.errors import ConfigError, SpaceError, must_be_one_of
from sweep.hyperparameters import OPTIMIZERS
from sweep.space.parameters import (
    Ask,
    Dimension,
    Parameter,
    Scalar,
    among,
    complaint,
    is_active,
    same,
)
from sweep.space.rules import ABSENT_MEANS
from sweep.trial import HyperValue, derive_seed

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial


PROBE_ATTEMPTS = 20
"""Draws in search of another value of a parameter."""


@dataclass(frozen=True, slots=True)
class Space:
    """A search space, from `load_space` or `parse_space`."""

    name: str
    path: Path | None
    """The file it was read from, or None."""
    text: str = field(repr=False)
    """The file's text, to be stored with the study."""
    parameters: tuple[Parameter, ...]
    """Each one comes after those its `when:` depends on."""
    fixed: Mapping[str, HyperValue]
    """Values of every configuration."""
    first: tuple[Mapping[str, HyperValue], ...]
    """Configurations to try first, resolved and complete."""
    has_defaults_first: bool = False
    """Trial 0 has the defaults of the user's constructors: the baseline."""

    @property
    def names(self) -> tuple[str, ...]:
        """Hyperparameters of any configuration."""
        given = [p.name for p in self.parameters] + [name for c in self.first for name in c]
        return tuple(dict.fromkeys([*given, *self.fixed]))

    def suggest(self, trial: BaseTrial) -> dict[str, HyperValue]:
        """A configuration, by asking an Optuna trial for each value.

        Lists are tuples; inactive parameters are absent; fixed values are included.
        """
        return self._configuration(lambda dimension: dimension.ask(trial))

    def resolve(self, params: Mapping[str, Scalar]) -> dict[str, HyperValue]:
        """The configuration of Optuna's flat parameters. Raises KeyError for a missing one."""
        return self._configuration(lambda dimension: params[dimension.name])

    def draw(self, seed: int, params: Mapping[str, Scalar] | None = None) -> dict[str, HyperValue]:
        """A random configuration with `params`; needs no Optuna."""
        rng, given = random.Random(seed), params or {}

        def ask(dimension: Dimension) -> Scalar:
            drawn = dimension.draw(rng)  # always: later draws must not depend on `params`
            return given.get(dimension.name, drawn)

        return self._configuration(ask)

    def _configuration(self, ask: Ask) -> dict[str, HyperValue]:
        values = dict(self.fixed)
        varied: dict[str, HyperValue] = {}
        for parameter in self.parameters:
            if is_active(parameter, values | varied):
                varied[parameter.name] = parameter.decode(ask)
        return varied | values

    def probes(self, seed: int) -> tuple[tuple[str, Mapping[str, HyperValue]], ...]:
        """A configuration, and for each of its parameters one with another value of it alone.

        The first item is ("", the configuration), each other one (name, a configuration).
        """
        base = dict(self.first[0]) if self.first else self.draw(derive_seed(seed, "probe"))
        found: list[tuple[str, Mapping[str, HyperValue]]] = [("", base)]
        for parameter in self.parameters:
            name = parameter.name
            for attempt in range(PROBE_ATTEMPTS if name in base else 0):
                other = self.draw(derive_seed(seed, "probe", name, attempt)).get(name, base[name])
                if not same(other, base[name]):
                    found.append((name, {**base, name: other}))
                    break
        return tuple(found)

    def params_for(
        self,
        hyperparameters: Mapping[str, HyperValue],
        defaults: Mapping[str, HyperValue] | None = None,
    ) -> dict[str, Scalar] | None:
        """The inverse of `suggest`: Optuna's flat parameters, for `study.enqueue_trial`.

        None if the configuration is outside the space. Fixed values may be missing. A missing
        active parameter has its value in `defaults`, else in ABSENT_MEANS (no momentum is
        momentum 0).
        """
        takes_null = {p.name for p in self.parameters if p.encode(None) is not None}
        given = {
            name: value
            for name, value in hyperparameters.items()
            if value is not None or name in takes_null
        }
        optimizer = OPTIMIZERS.get(str(hyperparameters.get("optimizer")))
        of_optimizer = optimizer.defaults if optimizer else {}
        absent = {**ABSENT_MEANS, **of_optimizer, **(defaults or {})}
        params, problems = self._place(given, absent)
        return None if problems else params

    def completed(self, given: Mapping[str, HyperValue], seed: int) -> dict[str, HyperValue]:
        """A configuration with the `given` values; the others are drawn at random.

        Raises ConfigError with a sentence for each value outside the space, and for a value that
        no configuration found has together with the others.
        """
        faults, params = self._foreign(given), dict[str, Scalar]()
        for parameter in (p for p in self.parameters if p.name in given):
            encoded = parameter.encode(given[parameter.name])
            if encoded is None:
                faults[parameter.name] = complaint(parameter, given[parameter.name])
            params |= encoded or {}
        found: dict[str, HyperValue] = {}
        for attempt in range(0 if faults else PROBE_ATTEMPTS):
            found = self.draw(derive_seed(seed, "completed", attempt), params)
            if given.keys() <= found.keys():
                return found
        idle = [p for p in self.parameters if found and p.name in given.keys() - found.keys()]
        raise ConfigError([*faults.values(), *(_inactive(p, given[p.name]) for p in idle)])

    def problems_of(self, configuration: Mapping[str, HyperValue]) -> dict[str, str]:
        """Why a configuration, complete but for fixed values, is outside: a sentence by name."""
        return self._place(configuration, {})[1]

    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's distribution of each dimension."""
        return {d.name: d.distribution() for p in self.parameters for d in p.dimensions()}

    def check_grid(self, n_max: int = 100_000) -> None:
        """Raises SpaceError if a parameter is continuous, or for more than n_max points."""
        dimensions = [d for p in self.parameters for d in p.dimensions()]
        faults = [
            f"{self.name}: a grid needs a step or choices for {d.name}, but it is {d.expected()}"
            for d in dimensions
            if d.n_values() is None
        ]
        n_points = math.prod(d.n_values() or 1 for d in dimensions)
        if not faults and n_points > n_max:
            faults = [f"{self.name}: a grid must have at most {n_max} points, but got {n_points}"]
        if faults:
            raise SpaceError(faults)

    def n_configurations(self) -> int | None:
        """How many different configurations there are; None: some parameter is continuous."""
        if any(parameter.n_values() is None for parameter in self.parameters):
            return None
        return _count(self.parameters, dict(self.fixed))

    def _place(
        self, given: Mapping[str, HyperValue], absent: Mapping[str, HyperValue]
    ) -> tuple[dict[str, Scalar], dict[str, str]]:
        """Flat parameters of `given`, and its problems by name; walks parents first."""
        params: dict[str, Scalar] = {}
        problems = self._foreign(given)
        values, unknown = dict(self.fixed), set[str]()
        for parameter in self.parameters:
            name = parameter.name
            if not unknown.isdisjoint(parameter.when):
                unknown.add(name)
            elif not is_active(parameter, values):
                if name in given:
                    problems[name] = _inactive(parameter, given[name])
            elif name not in given and name not in absent:
                problems[name] = f"{name} is missing: {parameter.expected()}"
                unknown.add(name)
            else:
                value = given[name] if name in given else absent[name]
                encoded = parameter.encode(value)
                if encoded is None:
                    problems[name] = complaint(parameter, value)
                    unknown.add(name)
                else:
                    values[name] = value
                    params |= encoded
        return params, problems

    def _foreign(self, given: Mapping[str, HyperValue]) -> dict[str, str]:
        """Unknown names, and values other than the fixed ones, with a sentence each."""
        names = [*(parameter.name for parameter in self.parameters), *self.fixed]
        problems = {}
        for name, value in given.items():
            if name not in names:
                problems[name] = must_be_one_of("a hyperparameter of this space", name, names)
            elif name in self.fixed and not same(self.fixed[name], value):
                fixed = f"{show(self.fixed[name])} (fixed)"
                problems[name] = f"{name} must be {fixed}, but got {show(value)}"
        return problems


def sample(space: Space, n: int, seed: int = 0) -> list[dict[str, HyperValue]]:
    """`n` random configurations; needs no Optuna."""
    return [space.draw(derive_seed(seed, "sample", i)) for i in range(n)]


def _inactive(parameter: Parameter, value: HyperValue) -> str:
    rules = " and ".join(
        f"{name} is {' or '.join(map(show, values))}" for name, values in parameter.when.items()
    )
    return f"{parameter.name} must be left out unless {rules}, but got {show(value)}"


def _count(parameters: Sequence[Parameter], values: dict[str, HyperValue]) -> int:
    """Number of configurations of `parameters`, given the `values` decided before them."""
    if not parameters:
        return 1
    parameter, rest = parameters[0], parameters[1:]
    if not is_active(parameter, values):
        return _count(rest, values)
    n = parameter.n_values() or 0
    named: list[HyperValue] = []
    for value in (v for p in rest for v in p.when.get(parameter.name, ())):
        if not among(value, named):
            named.append(value)
    total = sum(_count(rest, {**values, parameter.name: value}) for value in named)
    # All values that no condition names lead to the same rest, so they are counted once.
    return total + ((n - len(named)) * _count(rest, values) if n > len(named) else 0)
