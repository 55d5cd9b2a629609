"""The Optuna storage as sweep keeps it: a plain Optuna study, written by the driver alone.

Samplers work on a copy in memory (`sweep.proposals`); this is the record that lasts. A trial is
written when it is handed out, before a word of it is taken, and again when it has its final
state: two short visits instead of one commit for each parameter.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from sweep.errors import NotFoundError, StoreError, must_be_one_of
from sweep.storage import close_storage, open_storage, rows_of
from sweep.trial import DatasetInfo, Direction, TrainerName, TrialState

HYPERPARAMETERS = "sweep:hyperparameters"
RESULT = "sweep:result"
SETTLED = "sweep:settled"
DATA = "sweep:data"
CARRIED = "sweep:carried"
START_EPOCH = "sweep:start_epoch"
TRAINER = "sweep:trainer"
CONFIG = "sweep:config"
SPACE = "sweep:space"


@dataclass(frozen=True)
class LedgerTrial:
    """A trial as the storage has it."""

    number: int
    state: TrialState
    value: float | None
    params: Mapping[str, Any]
    hyperparameters: Mapping[str, Any]
    """Resolved hyperparameters; lists are tuples."""
    result: Mapping[str, Any]
    """best_epoch, n_epochs, checkpoint, metrics, seconds, failure; empty while it runs."""
    curve: Mapping[int, float]
    """Objective by epoch."""
    start_epoch: int
    """Population epoch that it first started in."""
    trainer: TrainerName | None
    """The path that it was begun in, where that is known."""
    frozen: FrozenTrial


@dataclass(frozen=True)
class StudySummary:
    """One line of `sweep list`."""

    name: str
    direction: Direction
    n_by_state: Mapping[str, int]
    best_value: float | None
    best_number: int | None
    config: Mapping[str, Any]


class Ledger:
    """One study in an Optuna storage. Only the driver may write; anyone may read."""

    def __init__(self, storage: BaseStorage, name: str) -> None:
        self._storage, self.name = storage, name
        try:
            self._study_id = storage.get_study_id_from_name(name)
        except KeyError:
            known = sorted(s.study_name for s in storage.get_all_studies())
            hint = must_be_one_of("study", name, known) if known else f"no study {name!r}"
            raise NotFoundError(f"{hint}: `sweep list` shows the studies there are") from None
        self._rows = rows_of(storage)
        self._ids: dict[int, int] = {}
        self.confirm: Callable[[], object] = lambda: None
        """Called before a trial is opened: raises where this driver is the owner no more."""
        # Two threads that read and then write in one SQLite transaction each would make one of
        # them fail at once, whatever the timeout.
        self._writing = threading.Lock()

    @property
    def direction(self) -> Direction:
        """Whether the study maximizes or minimizes."""
        (direction,) = self._storage.get_study_directions(self._study_id)
        return "maximize" if direction == StudyDirection.MAXIMIZE else "minimize"

    @property
    def config(self) -> dict[str, Any]:
        """The configuration that the study was made with; empty for a foreign study."""
        attrs = self._storage.get_study_user_attrs(self._study_id)
        return dict(json.loads(attrs.get(CONFIG, "{}")))

    @property
    def space_text(self) -> str:
        """The search-space file that the study was made with."""
        return str(self._storage.get_study_user_attrs(self._study_id).get(SPACE, ""))

    def describe(self, config: Mapping[str, Any], space_text: str) -> None:
        """Keep the configuration and the search space with the study."""
        set_attr = self._storage.set_study_user_attr
        set_attr(self._study_id, CONFIG, json.dumps(dict(config)))
        set_attr(self._study_id, SPACE, space_text)

    def is_bound(self, *, by_unfinished: bool) -> bool:
        """Whether a trial has a score, or is not finished and may have one: settings are fixed."""
        trials = [t for t in self.trials() if t.state is not TrialState.FAIL]
        is_scored = any(t.value is not None or t.curve for t in trials)
        return is_scored or (by_unfinished and any(not t.state.is_finished for t in trials))

    def start_over(self, direction: Direction) -> None:
        """Forget settings and space; failed trials stay, without what is a sampler's or pruner's.

        Optuna refuses a parameter whose choices changed, and samplers learn nothing from a trial
        that failed.
        """
        trials = sorted(
            self._storage.get_all_trials(self._study_id), key=lambda trial: trial.number
        )
        attrs = self._storage.get_study_user_attrs(self._study_id)
        self._storage.delete_study(self._study_id)
        self._study_id = _new_study(self._storage, self.name, direction)
        for key in attrs.keys() - {CONFIG, SPACE, DATA}:
            self._storage.set_study_user_attr(self._study_id, key, attrs[key])
        for trial in trials:
            trial.user_attrs.setdefault(HYPERPARAMETERS, trial.params)
            if trial.state.is_finished():
                trial.params, trial.distributions, trial.system_attrs = {}, {}, {}
            self._storage.create_new_trial(self._study_id, template_trial=trial)

    @property
    def is_settled(self) -> bool:
        """Whether the last driver came to its end and delivered everything."""
        attrs = self._storage.get_study_user_attrs(self._study_id)
        return bool(attrs.get(SETTLED, True))

    def settle(self, is_settled: bool) -> None:
        """Note that a driver begins (False), or that all it did is delivered (True)."""
        with self._writing:
            self._storage.set_study_user_attr(self._study_id, SETTLED, is_settled)

    @property
    def data_arguments(self) -> dict[str, Any]:
        """What the data decides of MLPClassifier: in_features, n_classes, mean and std."""
        attrs = self._storage.get_study_user_attrs(self._study_id)
        return dict(json.loads(attrs.get(DATA, "{}")))

    def note_data(self, info: DatasetInfo) -> None:
        """Keep what the data decides of a model."""
        with self._writing:
            content = {
                "in_features": math.prod(info.feature_shape), "n_classes": info.n_classes,
                "input_mean": info.mean, "input_std": info.std,
            }  # fmt: skip
            if content != self.data_arguments:
                self._storage.set_study_user_attr(self._study_id, DATA, json.dumps(content))

    def trials(self) -> list[LedgerTrial]:
        """All trials, by number."""
        frozen = self._storage.get_all_trials(self._study_id, deepcopy=False)
        self._ids |= {t.number: t._trial_id for t in frozen}
        return [_from_frozen(t) for t in sorted(frozen, key=lambda t: t.number)]

    def open_trial(
        self,
        number: int,
        frozen: FrozenTrial,
        trainer: TrainerName | None = None,
        start_epoch: int = 0,
    ) -> None:
        """Record a RUNNING trial, the path and the population epoch that it is to begin in.

        Raises StoreError where its number is not the next one, StudyLockedError where `confirm`
        does.
        """
        self.confirm()
        if trainer is not None:
            frozen.set_user_attr(TRAINER, trainer)
        if start_epoch:
            frozen.set_user_attr(START_EPOCH, start_epoch)
        with self._writing:
            trial_id, got = self._rows.open(self._study_id, frozen)
            if got != number:
                raise StoreError(
                    f"study {self.name!r} has another writer: trial {number} became {got}. "
                    "Let one `sweep run` at a time own a study"
                )
            self._ids[number] = trial_id

    def reopen_trial(self, number: int) -> None:
        """Set an interrupted (WAITING) trial RUNNING again; a RUNNING one stays as it is."""
        with self._writing:
            self._storage.set_trial_state_values(
                self._ids[number], optuna.trial.TrialState.RUNNING
            )

    def interrupt_trial(self, number: int) -> None:
        """Set a RUNNING trial, whose driver is gone, WAITING for the next one."""
        self._storage.set_trial_state_values(self._ids[number], optuna.trial.TrialState.WAITING)

    def carried(self) -> list[dict[str, Any]]:
        """Trials of an older study that this one started with (see `sweep.warmstart`)."""
        attrs = self._storage.get_study_user_attrs(self._study_id)
        return list(json.loads(attrs.get(CARRIED, "[]")))

    def carry(self, trials: Sequence[Mapping[str, Any]]) -> None:
        """Keep trials of an older study to start with."""
        self._storage.set_study_user_attr(self._study_id, CARRIED, json.dumps(list(trials)))

    def note_start_epoch(self, number: int, start_epoch: int) -> None:
        """Keep the population epoch that a trial first started in (0 where none is kept)."""
        with self._writing:
            self._storage.set_trial_user_attr(self._ids[number], START_EPOCH, start_epoch)

    def close_trial(
        self,
        number: int,
        state: TrialState,
        value: float | None,
        curve: Mapping[int, float],
        result: Mapping[str, Any],
        system_attrs: Mapping[str, Any],
    ) -> None:
        """Record a trial's curve, result and final state (WAITING: interrupted, to go on)."""
        with self._writing:
            self._rows.close(
                self._ids[number], optuna.trial.TrialState[state], value, curve,
                {RESULT: dict(result)}, system_attrs,
            )  # fmt: skip

    def summary(self) -> StudySummary:
        """Counts, best trial and configuration."""
        return summarise(self.name, self.direction, self.config, self.trials())

    def close(self) -> None:
        """Let go of the connection."""
        close_storage(self._storage, settle=True)


def open_study(url: str, name: str) -> Ledger:
    """An existing study. Raises NotFoundError or StoreError."""
    with _closed_on_errors(open_storage(url)) as storage:
        return Ledger(storage, name)


def create_study(url: str, name: str, direction: Direction) -> tuple[Ledger, bool]:
    """The study called `name`, and whether it is new. Raises StoreError.

    A study of ours without a trial is an attempt that came to nothing (its tracking server was
    away, say): it is made anew, so that its settings bind nobody.
    """
    with _closed_on_errors(open_storage(url, create=True)) as storage:
        try:
            study_id = storage.get_study_id_from_name(name)
            is_new = False
            attrs = storage.get_study_user_attrs(study_id)
            is_ours = CONFIG in attrs and CARRIED not in attrs
            if is_ours and not storage.get_all_trials(study_id, deepcopy=False):
                storage.delete_study(study_id)
                raise KeyError(name)
        except KeyError:
            _new_study(storage, name, direction)
            is_new = True
        return Ledger(storage, name), is_new


def _new_study(storage: BaseStorage, name: str, direction: Direction) -> int:
    is_up = direction == "maximize"
    return storage.create_new_study(
        [StudyDirection.MAXIMIZE if is_up else StudyDirection.MINIMIZE], name
    )


def list_studies(url: str) -> list[StudySummary]:
    """All studies of a storage, by name; none where the storage does not exist yet."""
    try:
        storage = open_storage(url)
    except NotFoundError:
        return []
    try:
        names = sorted(study.study_name for study in storage.get_all_studies())
        return [Ledger(storage, name).summary() for name in names]
    finally:
        close_storage(storage)


@contextlib.contextmanager
def _closed_on_errors(storage: BaseStorage) -> Iterator[BaseStorage]:
    try:
        yield storage
    except BaseException:
        close_storage(storage)
        raise


def best_trial(trials: Sequence[LedgerTrial], direction: Direction) -> LedgerTrial | None:
    """The completed trial with the best value; the earliest of equals; None where none is."""
    done = [t for t in trials if t.state is TrialState.COMPLETE and t.value is not None]
    sign = -1.0 if direction == "maximize" else 1.0
    return min(done, key=lambda t: (sign * (t.value or 0.0), t.number), default=None)


def summarise(
    name: str, direction: Direction, config: Mapping[str, Any], trials: Sequence[LedgerTrial]
) -> StudySummary:
    """Counts by state and the best trial."""
    counts = {str(s): sum(t.state is s for t in trials) for s in TrialState}
    best = best_trial(trials, direction)
    value, number = (best.value, best.number) if best else (None, None)
    return StudySummary(name, direction, counts, value, number, config)


def tuples(value: Any) -> Any:
    """`value` with every list, as JSON gives it back, made a tuple."""
    if isinstance(value, list | tuple):
        return tuple(tuples(item) for item in value)
    return value


def _from_frozen(trial: FrozenTrial) -> LedgerTrial:
    hyperparameters = trial.user_attrs.get(HYPERPARAMETERS, trial.params)
    return LedgerTrial(
        number=trial.number,
        state=TrialState(trial.state.name),
        value=trial.value if trial.values is not None else None,
        params=trial.params,
        hyperparameters={k: tuples(v) for k, v in hyperparameters.items()},
        result=trial.user_attrs.get(RESULT, {}),
        curve=trial.intermediate_values,
        start_epoch=trial.user_attrs.get(START_EPOCH, 0),
        trainer=trial.user_attrs.get(TRAINER),
        frozen=trial,
    )
