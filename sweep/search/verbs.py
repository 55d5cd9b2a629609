"""What a user may ask of a search from elsewhere: stop, prune, enqueue, extend.

Each verb is checked here, then left in the study's storage: for the search that runs (see
`sweep.search.steering`), else for the next one.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweep.config.parsers import pairs
from sweep.config.settings import RunConfig
from sweep.databases import sqlite
from sweep.databases.postgres import is_postgres
from sweep.errors import ConfigError
from sweep.ledger.locks import Owner, owned_study, owner_of
from sweep.ledger.study import Ledger
from sweep.ledger.trials import LedgerTrial
from sweep.space import Space, canonical_key, parse_space, run_name, values_of
from sweep.trial import TrialState, derive_seed


@dataclass(frozen=True)
class Steered:
    """The answer to a verb."""

    message: str
    """One line: what happens now, or what the next search will do."""
    is_running: bool
    """Whether a process runs the study."""
    trial: int | None = None
    """enqueue: number of the queued trial."""

    def __str__(self) -> str:
        """The line."""
        return self.message


def stop(ledger: Ledger, config: RunConfig) -> Steered:
    """Ask the study's search to stop as after Ctrl-C."""
    owner = _owner(ledger, config)
    if owner is None:
        return Steered(f"nobody runs {ledger.name}: there is nothing to stop", is_running=False)
    ledger.orders.give("stop")
    return Steered(
        f"{ledger.name}: asked {owner} to stop; it saves at each trial's next report, and the "
        "same `sweep run` goes on",
        is_running=True,
    )


def prune(ledger: Ledger, config: RunConfig, number: int) -> Steered:
    """Ask the study's search to end an unfinished trial as PRUNED.

    Raises NotFoundError for an unknown trial, ConfigError for one that has ended.
    """
    owner, trial = _owner(ledger, config), ledger.trial(number)
    if trial.state.is_finished:
        raise ConfigError(f"trial {number} of {ledger.name} has ended: it is {trial.state}")
    if trial.is_foreign and trial.queued is None:
        raise ConfigError(f"trial {number} of {ledger.name} is another program's: end it there")
    ledger.orders.give("prune", number)
    is_begun = trial.state is TrialState.RUNNING
    when = "at its next report" if owner and is_begun else "at its first report once it goes on"
    who = f"asked {owner} to end" if owner else f"{_nobody(ledger)} ends"
    return Steered(f"{who} trial {number} as PRUNED, {when}", owner is not None)


def extend(ledger: Ledger, config: RunConfig, n_trials: int) -> Steered:
    """Raise the study's total, for the search that runs and for later ones.

    Raises ConfigError unless `n_trials` is more than the present total.
    """
    owner = _owner(ledger, config)
    asked = [order.number for order in ledger.orders.kept() if order.verb == "extend"]
    before = max([config.trials, *asked])
    if n_trials <= before:
        raise ConfigError(
            f"--trials must be more than the {before} that {ledger.name} is to have in all, but "
            f"got {n_trials}: `sweep stop {ledger.name}` ends a search early"
        )
    said = f"{n_trials} trials in all, {n_trials - before} more than before"
    if owner is not None:
        ledger.orders.give("extend", n_trials)
        return Steered(f"asked {owner} to go on to {said}", is_running=True)
    with owned_study(Path(config.work_dir), config.study_name, config.storage):
        ledger.raise_total(n_trials)
    return Steered(f"{_nobody(ledger)} goes on to {said}", is_running=False)


def enqueue(
    ledger: Ledger, config: RunConfig, values: Mapping[str, Any] | Sequence[str]
) -> Steered:
    """Queue a configuration with `values`, to be trained next; other values are drawn at random.

    Args:
        ledger: The study.
        config: Its settings.
        values: Hyperparameters, by name or as NAME=VALUE each.

    Raises ConfigError with all values outside the study's space, or for a configuration that the
    study has already.
    """
    owner, given = _owner(ledger, config), values_of(pairs("a hyperparameter", values))
    space = parse_space(ledger.space_text, config.space_name, is_mlp=config.is_mlp)
    trials = ledger.trials()
    found = space.completed(given, derive_seed(config.seed, "enqueued", len(trials)))
    params = space.params_for(found)
    if params is None:
        raise ConfigError(space.problems_of(found).values())
    known = {canonical_key(_configuration(space, trial)): trial for trial in trials}
    if (same := known.get(canonical_key(found))) is not None:
        raise ConfigError(
            f"trial {same.number} of {ledger.name} has this configuration: it is {same.state}"
        )
    number = ledger.enqueue(params)
    who = f"asked {owner} to train" if owner else f"{_nobody(ledger)} trains"
    line = f"{who} trial {number} next: {run_name(number, found)}"
    if number >= config.trials:
        room = f"`sweep extend {shlex.quote(ledger.name)} --trials {number + 1}`"
        line += f"; all {config.trials} trials of the study are taken: {room} makes room for it"
    return Steered(line, owner is not None, number)


def _configuration(space: Space, trial: LedgerTrial) -> Mapping[str, Any]:
    """A trial's hyperparameters; as far as they are known, if it is queued."""
    with contextlib.suppress(KeyError):
        return space.resolve(trial.queued) if trial.queued else trial.hyperparameters
    return {}


def _owner(ledger: Ledger, config: RunConfig) -> Owner | None:
    """Who runs the study. Raises ConfigError for another program's study."""
    if not ledger.config:
        raise ConfigError(f"study {ledger.name!r} is another program's: sweep never ran it")
    owner = owner_of(Path(config.work_dir), config.study_name, config.storage)
    has_lock = sqlite.path_of(config.storage) is not None or is_postgres(config.storage)
    if owner is None and not has_lock:
        return Owner("whoever runs it")  # no lock says who, or whether anybody does
    return owner


def _nobody(ledger: Ledger) -> str:
    return f"nobody runs {ledger.name}: the next `sweep run --study {shlex.quote(ledger.name)}`"
