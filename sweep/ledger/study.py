"""The Optuna storage as sweep keeps it: a plain Optuna study, written by the driver alone.

Samplers work on a copy in memory (`search.proposals`); this is the record that lasts. A trial is
written when it is handed out, before its first report is taken, and again when it ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

from sweep.errors import ConfigError, NotFoundError, StoreError, must_be_one_of
from sweep.ledger.orders import OrderBook
from sweep.ledger.replacing import finish_replacing, replace_study
from sweep.ledger.storage import close_storage, open_storage
from sweep.ledger.trials import (
    FIXED_PARAMS,
    HYPERPARAMETERS,
    REPORTS,
    RESULT,
    SETTINGS,
    START_EPOCH,
    LedgerTrial,
    StudySummary,
    best_trial,
    from_frozen,
    report_attrs,
    result_of,
)
from sweep.redact import redacted
from sweep.trial import DatasetInfo, Direction, EpochReport, TrialFinished, TrialState

SETTLED = "sweep:settled"
DATA = "sweep:data"
CARRIED = "sweep:carried"
CONFIG = "sweep:config"
SPACE = "sweep:space"
TAGS = "sweep:tags"
"""User attributes of a study; their values are JSON."""
ABOUT = "about"
"""A sentence for people who look at the study in optuna-dashboard."""


class Ledger:
    """One study in an Optuna storage. One thread at a time may write, in the driver's process.

    Args:
        storage: Any storage of Optuna's.
        name: Of the study.
        confirm: Called before a trial is opened; raises if this driver lost its lock.

    Raises NotFoundError if there is no study of that name, or if it has several objectives.
    """

    def __init__(
        self, storage: BaseStorage, name: str, confirm: Callable[[], object] = lambda: None
    ) -> None:
        self._storage, self.name, self.confirm = storage, name, confirm
        try:
            self._study_id = storage.get_study_id_from_name(name)
        except KeyError:
            known = _names(storage)
            hint = must_be_one_of("study", name, known) if known else f"no study {name!r}"
            raise NotFoundError(f"{hint}: `sweep list` shows the studies there are") from None
        n_objectives = len(storage.get_study_directions(self._study_id))
        if n_objectives != 1:
            raise NotFoundError(
                f"study {name!r} is another program's: it has {n_objectives} objectives, but a "
                "sweep has one. Name another with --study"
            )
        self._ids: dict[int, int] = {}
        """Trial number -> id in the storage."""

    def _kept(self, key: str, default: Any) -> Any:
        """A study attribute. Raises StoreError if another program damaged it."""
        text = self._storage.get_study_user_attrs(self._study_id).get(key)
        if text is None:
            return default
        try:
            value = json.loads(text)
        except (TypeError, ValueError):
            value = None
        if not isinstance(value, type(default)):
            raise StoreError(
                f"study {self.name!r}: its attribute {key} was changed by another program and "
                "cannot be read. Put it back, or start a search of another name with --study"
            )
        return value

    def _keep(self, key: str, value: Any) -> None:
        self._storage.set_study_user_attr(self._study_id, key, json.dumps(value))

    @property
    def direction(self) -> Direction:
        """Whether the study maximizes or minimizes."""
        (direction,) = self._storage.get_study_directions(self._study_id)
        return cast(Direction, direction.name.lower())

    @property
    def config(self) -> dict[str, Any]:
        """The study's configuration; empty for another program's study."""
        return dict(self._kept(CONFIG, {}))

    @property
    def space_text(self) -> str:
        """Text of the study's search-space file."""
        return str(self._kept(SPACE, ""))

    @property
    def is_settled(self) -> bool:
        """Whether the last search ended regularly and delivered all records."""
        return bool(self._kept(SETTLED, True))

    def settle(self, is_settled: bool) -> None:
        """Note the start of a search (False), or its regular end (True)."""
        self._keep(SETTLED, is_settled)

    @property
    def dataset(self) -> DatasetInfo | None:
        """The data as a worker described it; None: no worker has loaded it yet."""
        values = self._kept(DATA, {})
        if not values:
            return None
        return DatasetInfo(**{**values, "feature_shape": tuple(values["feature_shape"])})

    def note_data(self, info: DatasetInfo) -> None:
        """Keep the description of the data."""
        if info != self.dataset:
            self._keep(DATA, dataclasses.asdict(info))

    @property
    def data_arguments(self) -> dict[str, Any]:
        """The data's arguments of MLPClassifier: in_features, n_classes, mean and std."""
        info = self.dataset
        if info is None:
            return {}
        return {
            "in_features": math.prod(info.feature_shape), "n_classes": info.n_classes,
            "input_mean": info.mean, "input_std": info.std,
        }  # fmt: skip

    @property
    def tags(self) -> dict[str, str]:
        """Git commit, versions and device of the study's last search."""
        return dict(self._kept(TAGS, {}))

    def note_tags(self, tags: Mapping[str, str]) -> None:
        """Add or change tags."""
        before = self.tags
        if before != (now := {**before, **tags}):
            self._keep(TAGS, now)

    @property
    def orders(self) -> OrderBook:
        """What users asked of the study's search from elsewhere."""
        return OrderBook(self._storage, self._study_id)

    def raise_total(self, n_trials: int) -> None:
        """Keep a larger number of trials that the study is to have in all."""
        config = self.config
        if n_trials > config.get("trials", 0):
            self._keep(CONFIG, {**config, "trials": n_trials})

    def carried(self) -> list[dict[str, Any]]:
        """Trials of an older study that teach the sampler (see `sweep.search.warmstart`)."""
        return list(self._kept(CARRIED, []))

    def carry(self, trials: Sequence[Mapping[str, Any]]) -> None:
        """Keep trials of an older study."""
        self._keep(CARRIED, list(trials))

    def describe(self, config: Mapping[str, Any], space_text: str) -> None:
        """Keep the configuration and the search space; name the objective."""
        self._keep(CONFIG, dict(config))
        self._keep(SPACE, space_text)
        where = redacted(str(config.get("tracking_uri", "")))
        about = (
            f"made by sweep: `sweep show {self.name}`; MLflow experiment {self.name} at {where}"
        )
        self._storage.set_study_user_attr(self._study_id, ABOUT, about)
        if metric := config.get("metric"):  # dashboards show it in place of "Objective 0"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                optuna.Study(self.name, self._storage).set_metric_names([str(metric)])

    def is_bound(self, *, by_unfinished: bool) -> bool:
        """Whether the settings are fixed: a trial has a score or, unfinished, may have one."""
        trials = [t for t in self.trials() if t.state is not TrialState.FAIL]
        is_scored = any(t.value is not None or t.curve for t in trials)
        return is_scored or (by_unfinished and any(not t.state.is_finished for t in trials))

    def start_over(self, direction: Direction) -> None:
        """Forget settings and space; keep failed trials, without the attributes of samplers.

        Optuna refuses a parameter with other choices, so failed trials lose their parameters;
        samplers learn nothing from them anyway.
        """
        trials = sorted(self._storage.get_all_trials(self._study_id), key=lambda t: t.number)
        attrs, before = self._storage.get_study_user_attrs(self._study_id), self.config
        kept = {key: attrs[key] for key in attrs.keys() - {CONFIG, SPACE, DATA}}
        for trial in trials:
            trial.user_attrs.setdefault(HYPERPARAMETERS, trial.params)
            if trial.state.is_finished():
                trial.user_attrs.setdefault(SETTINGS, before)
                trial.params, trial.distributions = {}, {}
                system, curves = trial.system_attrs, f"{REPORTS}:"
                trial.system_attrs = {k: v for k, v in system.items() if k.startswith(curves)}
        replace_study(self._storage, self.name, StudyDirection[direction.upper()], kept, trials)
        self._study_id = self._storage.get_study_id_from_name(self.name)

    def trials(self) -> list[LedgerTrial]:
        """All trials, by number."""
        frozen = self._storage.get_all_trials(self._study_id, deepcopy=False)
        return [from_frozen(t) for t in sorted(frozen, key=lambda t: t.number)]

    @property
    def n_trials(self) -> int:
        """Number of trials in any state."""
        return self._storage.get_n_trials(self._study_id)

    def trial(self, number: int) -> LedgerTrial:
        """One trial. Raises NotFoundError."""
        try:
            return from_frozen(self._storage.get_trial(self._id_of(number)))
        except KeyError:
            n_trials = self.n_trials
            held = f"trials 0 to {n_trials - 1}" if n_trials else "no trials yet"
            raise NotFoundError(f"study {self.name!r} has {held}, but not {number}") from None

    def enqueue(self, params: Mapping[str, Any]) -> int:
        """Queue a trial with Optuna's parameters, as `enqueue_trial` does; its number."""
        waiting = create_trial(
            state=OptunaState.WAITING, system_attrs={FIXED_PARAMS: dict(params)}
        )
        trial_id = self._storage.create_new_trial(self._study_id, template_trial=waiting)
        return self._storage.get_trial_number_from_id(trial_id)

    def trials_from(self, first: int) -> list[LedgerTrial]:
        """Trials from number `first` on."""
        found: list[LedgerTrial] = []
        while self.has_trial(number := first + len(found)):
            found.append(self.trial(number))
        return found

    def has_trial(self, number: int) -> bool:
        """Whether trial `number` exists."""
        with contextlib.suppress(KeyError):
            self._id_of(number)
            return True
        return False

    def open_trial(self, number: int, frozen: FrozenTrial) -> None:
        """Record a RUNNING trial.

        A trial that another program queued under this number a moment ago moves behind it. Raises
        StoreError for any other trial of this number, and what `confirm` raises.
        """
        self.confirm()
        with self._told_of_others(number):
            if not self.has_trial(number):
                trial_id = self._storage.create_new_trial(self._study_id, template_trial=frozen)
                is_taken = self._id_of(number) != trial_id
            else:
                is_taken = not self._move_behind(number, frozen.params)
                if not is_taken:
                    self.take_queued(number, frozen)
            if is_taken:
                raise StoreError(
                    f"study {self.name!r} has another writer: it added trial {number}. Run the "
                    "same command again: it takes that in. Let one `sweep run` at a time own a "
                    "study"
                )

    def _move_behind(self, number: int, params: Mapping[str, Any]) -> bool:
        """Queue trial `number` again behind all others, and `params` in its place.

        False if another program did not queue it, but runs it.
        """
        trial_id = self._id_of(number)
        trial = self._storage.get_trial(trial_id)
        if is_queued := from_frozen(trial).queued is not None:
            self._storage.create_new_trial(self._study_id, template_trial=trial)
            self._storage.set_trial_system_attr(trial_id, FIXED_PARAMS, dict(params))
        return is_queued

    def take_queued(self, number: int, frozen: FrozenTrial) -> None:
        """Set another program's queued trial RUNNING, with all parameters of `frozen`.

        Its hyperparameters are written last: without them it still counts as queued.
        """
        self.confirm()
        with self._told_of_others(number):
            trial_id = self._id_of(number)
            known = self._storage.get_trial(trial_id).params
            for name, distribution in frozen.distributions.items():
                if name not in known:
                    value = distribution.to_internal_repr(frozen.params[name])
                    self._storage.set_trial_param(trial_id, name, value, distribution)
            for key, attr in frozen.user_attrs.items():
                self._storage.set_trial_user_attr(trial_id, key, attr)
            self._storage.set_trial_state_values(trial_id, OptunaState.RUNNING)

    def set_state(self, number: int, state: TrialState) -> None:
        """Set an unfinished trial RUNNING or WAITING."""
        with self._told_of_others(number):
            self._storage.set_trial_state_values(self._id_of(number), OptunaState[state])

    def note_start_epoch(self, number: int, start_epoch: int) -> None:
        """Keep the epoch of the population at the trial's first start (0 by default)."""
        self._storage.set_trial_user_attr(self._id_of(number), START_EPOCH, start_epoch)

    def close_trial(
        self, record: TrialFinished, reports: Sequence[EpochReport], metric: str,
        name: str = "", system_attrs: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Record a trial's curves, result and final state (WAITING: interrupted).

        The values of `metric` become Optuna's intermediate values. Epochs recorded earlier and
        missing in `reports` stay. The state is written last: after a kill the trial is still
        RUNNING, and the next driver closes it again.
        """
        storage = self._storage
        with self._told_of_others(record.number):
            trial_id = self._id_of(record.number)
            written = storage.get_trial(trial_id).intermediate_values
            for report in reports:
                point = report.metrics.get(metric)
                if point is not None and written.get(report.epoch) != point:
                    storage.set_trial_intermediate_value(trial_id, report.epoch, point)
            for key, attr in {**(system_attrs or {}), **report_attrs(reports)}.items():
                storage.set_trial_system_attr(trial_id, key, attr)
            result = result_of(record, name, [report.metrics for report in reports])
            storage.set_trial_user_attr(trial_id, RESULT, result)
            is_scored = record.state.is_scored and record.value is not None
            values = [cast(float, record.value)] if is_scored else None
            storage.set_trial_state_values(trial_id, OptunaState[record.state], values)

    def _id_of(self, number: int) -> int:
        """The id of a trial in the storage. Raises KeyError if there is no such trial."""
        if number not in self._ids:
            by_number = self._storage.get_trial_id_from_study_id_trial_number
            self._ids[number] = by_number(self._study_id, number)
        return self._ids[number]

    @contextlib.contextmanager
    def _told_of_others(self, number: int) -> Iterator[None]:
        """Turn Optuna's errors over another program's changes into StoreErrors."""
        try:
            yield
        except (UpdateFinishedTrialError, KeyError, ValueError) as error:
            why = "was finished" if isinstance(error, UpdateFinishedTrialError) else "was changed"
            raise StoreError(
                f"study {self.name!r}: trial {number} {why} by another program while the search "
                f"ran ({str(error).strip()}). Run the same command again to go on"
            ) from error

    def summary(self) -> StudySummary:
        """Counts by state, best trial and configuration."""
        trials, direction = self.trials(), self.direction
        counts = Counter(t.state for t in trials)
        best = best_trial(trials, direction)
        value, number = (best.value, best.number) if best else (None, None)
        by_state = {str(state): counts[state] for state in TrialState}
        return StudySummary(self.name, direction, by_state, value, number, self.config)

    def close(self) -> None:
        """Close the connection."""
        close_storage(self._storage, settle=True)


def open_study(url: str, name: str) -> Ledger:
    """An existing study. Raises NotFoundError or StoreError."""
    with _closed_on_errors(open_storage(url)) as storage:
        return Ledger(storage, name)


def create_study(
    url: str, name: str, direction: Direction, confirm: Callable[[], object] = lambda: None
) -> tuple[Ledger, bool]:
    """The study called `name`, and whether it is new. Raises StoreError.

    An earlier attempt without trials is replaced, so that its settings bind nobody. Raises
    ConfigError for another program's study in the other direction or with trials of its own.
    """
    with _closed_on_errors(open_storage(url, create=True)) as storage:
        finish_replacing(storage, name)
        is_new = True
        with contextlib.suppress(KeyError):
            study_id = storage.get_study_id_from_name(name)
            if _came_to_nothing(storage, study_id):
                storage.delete_study(study_id)
            else:
                is_new = False
        if is_new:
            storage.create_new_study([StudyDirection[direction.upper()]], name)
        ledger = Ledger(storage, name, confirm)
        if not is_new and not ledger.config:
            _see_that_it_can_be_taken(ledger, direction)
        return ledger, is_new


def _came_to_nothing(storage: BaseStorage, study_id: int) -> bool:
    """Whether a study of sweep's has no trials, neither its own nor carried ones.

    Its search was refused, or its tracking server was away.
    """
    attrs = storage.get_study_user_attrs(study_id)
    is_ours = CONFIG in attrs and CARRIED not in attrs
    return is_ours and not storage.get_all_trials(study_id, deepcopy=False)


def _names(storage: BaseStorage) -> list[str]:
    """Names of the studies with one objective, without attempts, sorted."""
    studies = storage.get_all_studies()
    names = sorted(s.study_name for s in studies if len(s.directions) == 1)
    return [n for n in names if not _came_to_nothing(storage, storage.get_study_id_from_name(n))]


def _see_that_it_can_be_taken(ledger: Ledger, direction: Direction) -> None:
    """Raise ConfigError unless another program's study is empty or holds queued trials only."""
    trials, what = ledger.trials(), ""
    if ledger.direction != direction:
        what = f"it is to {ledger.direction}, but this search is to {direction}"
    elif all(t.is_foreign for t in trials) and not all(t.queued for t in trials):
        what = f"none of its {len(trials)} trials is sweep's"
    if what:
        raise ConfigError(
            f"study {ledger.name!r} was made by another program and {what}: name another with "
            "--study"
        )


def list_studies(url: str) -> list[StudySummary]:
    """The studies of a storage, by name, without attempts; none if there is no storage yet."""
    try:
        storage = open_storage(url)
    except NotFoundError:
        return []
    try:
        return [Ledger(storage, name).summary() for name in _names(storage)]
    finally:
        close_storage(storage)


@contextlib.contextmanager
def _closed_on_errors(storage: BaseStorage) -> Iterator[BaseStorage]:
    try:
        yield storage
    except BaseException:
        close_storage(storage)
        raise
