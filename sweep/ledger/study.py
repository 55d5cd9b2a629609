"""The Optuna storage as sweep keeps it: a plain Optuna study, written by the driver alone.

Samplers work on a copy in memory (`search.proposals`); this is the record that lasts. A trial is
written when it is handed out, before its first report is taken, and again when it ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from sweep.errors import ConfigError, NotFoundError, StoreError, must_be_one_of
from sweep.ledger.replacing import finish_replacing, replace_study
from sweep.ledger.storage import close_storage, open_storage
from sweep.ledger.trials import (
    HYPERPARAMETERS,
    REPORTS,
    RESULT,
    SETTINGS,
    START_EPOCH,
    LedgerTrial,
    StudySummary,
    from_frozen,
    report_attrs,
    summarise,
)
from sweep.redact import redacted
from sweep.trial import DatasetInfo, Direction, EpochReport, TrialState

SETTLED = "sweep:settled"
DATA = "sweep:data"
CARRIED = "sweep:carried"
CONFIG = "sweep:config"
SPACE = "sweep:space"
TAGS = "sweep:tags"
ABOUT = "about"
_DIRECTIONS = {"maximize": StudyDirection.MAXIMIZE, "minimize": StudyDirection.MINIMIZE}


class Ledger:
    """One study in an Optuna storage. Only the driver may write; anyone may read.

    Raises NotFoundError where there is none of that name, or one of several objectives.
    """

    def __init__(self, storage: BaseStorage, name: str) -> None:
        self._storage, self.name = storage, name
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
        self._without_curve: set[int] = set()
        """Trials opened by this process and not closed since: no curve of theirs is stored."""
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
        return dict(self._kept(CONFIG, {}))

    def _kept(self, key: str, default: Any) -> Any:
        """A study's attribute that holds JSON. Raises StoreError where something changed it."""
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

    @property
    def space_text(self) -> str:
        """The search-space file that the study was made with."""
        return str(self._storage.get_study_user_attrs(self._study_id).get(SPACE, ""))

    def describe(self, config: Mapping[str, Any], space_text: str) -> None:
        """Keep the configuration and the search space with the study; name its objective.

        ABOUT is for people who look at the study in optuna-dashboard.
        """
        set_attr = self._storage.set_study_user_attr
        set_attr(self._study_id, CONFIG, json.dumps(dict(config)))
        set_attr(self._study_id, SPACE, space_text)
        where = redacted(str(config.get("tracking_uri", "")))
        about = (
            f"made by sweep: `sweep show {self.name}`; MLflow experiment {self.name} at {where}"
        )
        set_attr(self._study_id, ABOUT, about)
        if metric := config.get("metric"):  # dashboards show it in place of "Objective 0"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                optuna.Study(self.name, self._storage).set_metric_names([str(metric)])

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
        replace_study(self._storage, self.name, _DIRECTIONS[direction], kept, trials)
        self._study_id = self._storage.get_study_id_from_name(self.name)

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
    def dataset(self) -> DatasetInfo | None:
        """The data that trials read, as the last worker named them; None: no worker did yet."""
        values = self._kept(DATA, {})
        if "name" not in values:
            return None  # a study of sweep before 0.2
        return DatasetInfo(**{**values, "feature_shape": tuple(values["feature_shape"])})

    @property
    def data_arguments(self) -> dict[str, Any]:
        """What the data decides of MLPClassifier: in_features, n_classes, mean and std."""
        info = self.dataset
        if info is None:
            return dict(self._kept(DATA, {}))
        return {
            "in_features": math.prod(info.feature_shape), "n_classes": info.n_classes,
            "input_mean": info.mean, "input_std": info.std,
        }  # fmt: skip

    def note_data(self, info: DatasetInfo) -> None:
        """Keep the description of the data."""
        with self._writing:
            if info != self.dataset:
                text = json.dumps(dataclasses.asdict(info))
                self._storage.set_study_user_attr(self._study_id, DATA, text)

    @property
    def tags(self) -> dict[str, str]:
        """Git commit, versions and device that the study's last search ran on."""
        return dict(self._kept(TAGS, {}))

    def note_tags(self, tags: Mapping[str, str]) -> None:
        """Keep git commit, versions, device."""
        if tags != self.tags:
            with self._writing:
                self._storage.set_study_user_attr(self._study_id, TAGS, json.dumps(dict(tags)))

    def trials(self) -> list[LedgerTrial]:
        """All trials, by number."""
        frozen = self._storage.get_all_trials(self._study_id, deepcopy=False)
        return [from_frozen(t) for t in sorted(frozen, key=lambda t: t.number)]

    def open_trial(self, number: int, frozen: FrozenTrial, start_epoch: int = 0) -> None:
        """Record a RUNNING trial and the population epoch that it is to begin in.

        Raises StoreError where its number is not the next one, StudyLockedError where `confirm`
        does.
        """
        self.confirm()
        if start_epoch:
            frozen.set_user_attr(START_EPOCH, start_epoch)
        with self._writing, self._told_of_others(number):
            trial_id = self._storage.create_new_trial(self._study_id, template_trial=frozen)
            if self._id_of(number) != trial_id:
                got = self._storage.get_trial_number_from_id(trial_id)
                raise StoreError(
                    f"study {self.name!r} has another writer: trial {number} became {got}. "
                    "Run the same command again: it takes in what another program added. Let one "
                    "`sweep run` at a time own a study"
                )
            self._without_curve.add(number)

    def take_queued(self, number: int, frozen: FrozenTrial) -> None:
        """Set a trial RUNNING that another program queued, with all parameters of `frozen`.

        Its hyperparameters come last: without them it counts as queued, whatever else it has.
        """
        self.confirm()
        with self._writing, self._told_of_others(number):
            trial_id = self._id_of(number)
            known = self._storage.get_trial(trial_id).params
            for name, distribution in frozen.distributions.items():
                if name not in known:
                    value = distribution.to_internal_repr(frozen.params[name])
                    self._storage.set_trial_param(trial_id, name, value, distribution)
            for key, attr in frozen.user_attrs.items():
                self._storage.set_trial_user_attr(trial_id, key, attr)
            self._storage.set_trial_state_values(trial_id, optuna.trial.TrialState.RUNNING)

    def _id_of(self, number: int) -> int:
        """The id of a trial in the storage. Raises KeyError where it is gone."""
        if number not in self._ids:
            by_number = self._storage.get_trial_id_from_study_id_trial_number
            self._ids[number] = by_number(self._study_id, number)
        return self._ids[number]

    @contextlib.contextmanager
    def _told_of_others(self, number: int) -> Iterator[None]:
        """Turn what Optuna raises where another program changed the study into a StoreError."""
        try:
            yield
        except (UpdateFinishedTrialError, KeyError, ValueError) as error:
            why = "was finished" if isinstance(error, UpdateFinishedTrialError) else "was changed"
            raise StoreError(
                f"study {self.name!r}: trial {number} {why} by another program while the search "
                f"ran ({str(error).strip()}). Run the same command again to go on"
            ) from error

    def reopen_trial(self, number: int) -> None:
        """Set an interrupted (WAITING) trial RUNNING again; a RUNNING one stays as it is."""
        running = optuna.trial.TrialState.RUNNING
        with self._writing, self._told_of_others(number):
            self._storage.set_trial_state_values(self._id_of(number), running)

    def interrupt_trial(self, number: int) -> None:
        """Set a RUNNING trial, whose driver is gone, WAITING for the next one."""
        waiting = optuna.trial.TrialState.WAITING
        self._storage.set_trial_state_values(self._id_of(number), waiting)

    def carried(self) -> list[dict[str, Any]]:
        """Trials of an older study that this one started with (see `sweep.search.warmstart`)."""
        return list(self._kept(CARRIED, []))

    def carry(self, trials: Sequence[Mapping[str, Any]]) -> None:
        """Keep trials of an older study to start with."""
        self._storage.set_study_user_attr(self._study_id, CARRIED, json.dumps(list(trials)))

    def note_start_epoch(self, number: int, start_epoch: int) -> None:
        """Keep the population epoch that a trial first started in (0 where none is kept)."""
        with self._writing:
            self._storage.set_trial_user_attr(self._id_of(number), START_EPOCH, start_epoch)

    def close_trial(
        self,
        number: int,
        state: TrialState,
        value: float | None,
        reports: Sequence[EpochReport],
        metric: str,
        result: Mapping[str, Any],
        system_attrs: Mapping[str, Any],
    ) -> None:
        """Record a trial's curves, result and final state (WAITING: interrupted, to go on).

        `metric` is the objective: its curve becomes the trial's intermediate values. Epochs that
        were recorded before and are not among `reports` stay. The state is written last: a driver
        that is killed before leaves the trial RUNNING, and the next one closes it again.
        """
        storage = self._storage
        with self._writing, self._told_of_others(number):
            trial_id = self._id_of(number)
            is_new = number in self._without_curve
            self._without_curve.discard(number)
            written = {} if is_new else storage.get_trial(trial_id).intermediate_values
            for report in reports:
                if written.get(report.epoch) != (point := report.metrics[metric]):
                    storage.set_trial_intermediate_value(trial_id, report.epoch, point)
            for key, attr in {**system_attrs, **report_attrs(reports)}.items():
                storage.set_trial_system_attr(trial_id, key, attr)
            storage.set_trial_user_attr(trial_id, RESULT, dict(result))
            values = None if value is None else [value]
            storage.set_trial_state_values(trial_id, optuna.trial.TrialState[state], values)

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

    An attempt that came to nothing is made anew, so that its settings bind nobody.
    """
    with _closed_on_errors(open_storage(url, create=True)) as storage:
        finish_replacing(storage, name)
        try:
            study_id = storage.get_study_id_from_name(name)
            is_new = False
            if _came_to_nothing(storage, study_id):
                storage.delete_study(study_id)
                raise KeyError(name)
        except KeyError:
            _new_study(storage, name, direction)
            is_new = True
        ledger = Ledger(storage, name)
        if not is_new and not ledger.config:
            _see_that_it_can_be_taken(ledger, direction)
        return ledger, is_new


def _came_to_nothing(storage: BaseStorage, study_id: int) -> bool:
    """Whether it is a study of ours without a trial, its own or carried: the search was refused
    or its tracking server was away, say."""
    attrs = storage.get_study_user_attrs(study_id)
    is_ours = CONFIG in attrs and CARRIED not in attrs
    return is_ours and not storage.get_all_trials(study_id, deepcopy=False)


def _names(storage: BaseStorage) -> list[str]:
    """Studies that are more than an attempt, by name."""
    studies = storage.get_all_studies()
    # Others' studies of several objectives are none that sweep could go on with.
    names = sorted(s.study_name for s in studies if len(s.directions) == 1)
    return [n for n in names if not _came_to_nothing(storage, storage.get_study_id_from_name(n))]


def _see_that_it_can_be_taken(ledger: Ledger, direction: Direction) -> None:
    """Refuse another program's study of the same name that is more than an empty one."""
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


def _new_study(storage: BaseStorage, name: str, direction: Direction) -> int:
    return storage.create_new_study([_DIRECTIONS[direction]], name)


def list_studies(url: str) -> list[StudySummary]:
    """Studies of a storage, by name, without attempts that came to nothing; none where the
    storage does not exist yet."""
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
