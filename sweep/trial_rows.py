"""A trial's rows in Optuna's tables, in one transaction when it opens and one when it closes.

Optuna's storage takes one value at a time, each in a transaction with two or three queries: on a
server, as many round trips for each epoch of a trial. Its own table models take a list. They are
not among what Optuna promises to keep, so where they are others than those that are known here,
everything goes through the storage's methods (`OneByOne`).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol, final

from optuna.distributions import (
    BaseDistribution,
    check_distribution_compatibility,
    distribution_to_json,
    json_to_distribution,
)
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import select
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from sweep.table_rows import insert_rows, replace_rows

models: Any = None
with contextlib.suppress(ImportError):
    from optuna.storages._rdb import models

KNOWN_SCHEMA = 12
"""Of Optuna's tables: what is written here is what RDBStorage writes there."""
KNOWN_METHODS = (
    ("StudyModel", "find_or_raise_by_id"),
    ("TrialModel", "find_or_raise_by_id"),
    ("TrialModel", "count_past_trials"),
    ("TrialValueModel", "value_to_stored_repr"),
    ("TrialIntermediateValueModel", "intermediate_value_to_stored_repr"),
)
"""Of its table models."""
MOST_TRIES, MOST_PAUSE_S = 5, 2.0
"""How often Optuna tries to open a trial where transactions meet (a deadlock, a locked file), and
how long it waits at most in between."""


class TrialRows(Protocol):
    """Writes trials of a storage."""

    def open(self, study_id: int, trial: FrozenTrial) -> tuple[int, int]:
        """Record a RUNNING trial, which has no value and no curve yet: its id and its number.

        Raises ValueError for a distribution that is another kind than the study has under that
        name.
        """

    def close(
        self, trial_id: int, state: TrialState, value: float | None, curve: Mapping[int, float],
        user_attrs: Mapping[str, Any], system_attrs: Mapping[str, Any],
    ) -> None:  # fmt: skip
        """Record what became of it; what it has already and is not in `curve` (value by step) or
        attributes stays. Raises UpdateFinishedTrialError where it has a final state."""


def rows_of(storage: BaseStorage, engine: Engine) -> TrialRows:
    """The faster way where Optuna's tables are those that are known here."""
    is_known = getattr(models, "SCHEMA_VERSION", None) == KNOWN_SCHEMA and all(
        hasattr(getattr(models, name, None), method) for name, method in KNOWN_METHODS
    )
    return AtOnce(storage, engine) if is_known else OneByOne(storage)


@final
class OneByOne:
    """By the storage's public methods."""

    def __init__(self, storage: BaseStorage) -> None:
        self._storage = storage

    def open(self, study_id: int, trial: FrozenTrial) -> tuple[int, int]:
        """See `TrialRows`."""
        trial_id = self._storage.create_new_trial(study_id, template_trial=trial)
        return trial_id, self._storage.get_trial_number_from_id(trial_id)

    def close(
        self, trial_id: int, state: TrialState, value: float | None, curve: Mapping[int, float],
        user_attrs: Mapping[str, Any], system_attrs: Mapping[str, Any],
    ) -> None:  # fmt: skip
        """See `TrialRows`."""
        for step, metric in curve.items():
            self._storage.set_trial_intermediate_value(trial_id, step, metric)
        for key, attr in system_attrs.items():
            self._storage.set_trial_system_attr(trial_id, key, attr)
        for key, attr in user_attrs.items():
            self._storage.set_trial_user_attr(trial_id, key, attr)
        values = None if value is None else [value]
        self._storage.set_trial_state_values(trial_id, state, values)


@final
class AtOnce:
    """By Optuna's table models, with the checks that its storage makes."""

    def __init__(self, storage: BaseStorage, engine: Engine) -> None:
        self._storage, self._engine = storage, engine
        self._seen: dict[tuple[int, str], str] = {}
        """(study, parameter) -> its distribution as the study has it."""

    def open(self, study_id: int, trial: FrozenTrial) -> tuple[int, int]:
        """See `TrialRows`."""
        for n_tries in itertools.count(1):
            try:
                return self._open(study_id, trial)
            except OperationalError:
                if n_tries == MOST_TRIES:
                    raise
            time.sleep(random.uniform(0.0, MOST_PAUSE_S))
        raise AssertionError

    def _open(self, study_id: int, trial: FrozenTrial) -> tuple[int, int]:
        seen = {}
        with Session(self._engine) as session, session.begin():
            models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
            row = models.TrialModel(
                study_id=study_id, number=None, state=TrialState.RUNNING,
                datetime_start=trial.datetime_start,
            )  # fmt: skip
            session.add(row)
            session.flush()
            params = []
            for name, distribution in trial.distributions.items():
                value = distribution.to_internal_repr(trial.params[name])
                text = distribution_to_json(distribution)
                seen[study_id, name] = self._checked(session, study_id, name, distribution, text)
                params.append({"trial_id": row.trial_id, "param_name": name, "param_value": value,
                               "distribution_json": text})  # fmt: skip
            insert_rows(session, models.TrialParamModel.__table__, params)
            user, system = models.TrialUserAttributeModel, models.TrialSystemAttributeModel
            for model, attrs in ((user, trial.user_attrs), (system, trial.system_attrs)):
                insert_rows(session, model.__table__, _attributes(row.trial_id, attrs))
            row.number = row.count_past_trials(session)
            found = row.trial_id, row.number
        self._seen |= seen
        return found

    def close(
        self, trial_id: int, state: TrialState, value: float | None, curve: Mapping[int, float],
        user_attrs: Mapping[str, Any], system_attrs: Mapping[str, Any],
    ) -> None:  # fmt: skip
        """See `TrialRows`."""
        with Session(self._engine) as session, session.begin():
            row = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
            self._storage.check_trial_is_updatable(trial_id, row.state)
            points = [_step(trial_id, *point) for point in curve.items()]
            _replace(session, models.TrialIntermediateValueModel, "step", points)
            user, system = models.TrialUserAttributeModel, models.TrialSystemAttributeModel
            for model, attrs in ((user, user_attrs), (system, system_attrs)):
                _replace(session, model, "key", _attributes(trial_id, attrs))
            if value is not None:
                values = models.TrialValueModel
                stored, kind = values.value_to_stored_repr(value)
                score = {"trial_id": trial_id, "objective": 0, "value": stored,
                         "value_type": kind}  # fmt: skip
                _replace(session, values, "objective", [score])
            row.state = state
            if state.is_finished():
                row.datetime_complete = datetime.now()

    def _checked(
        self, session: Session, study_id: int, name: str, distribution: BaseDistribution,
        text: str,
    ) -> str:  # fmt: skip
        """The distribution that the study has under that name, this one where it has none."""
        before = self._seen.get((study_id, name))
        if before is None:
            params = models.TrialParamModel
            before = session.execute(
                select(params.distribution_json)
                .join(models.TrialModel)
                .where(models.TrialModel.study_id == study_id, params.param_name == name)
                .limit(1)
            ).scalar()
        if before is not None and before != text:
            check_distribution_compatibility(json_to_distribution(before), distribution)
        return before or text


def _attributes(trial_id: int, attrs: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"trial_id": trial_id, "key": key, "value_json": json.dumps(attr)}
        for key, attr in attrs.items()
    ]


def _step(trial_id: int, step: int, metric: float) -> dict[str, Any]:
    stored, kind = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(metric)
    return {"trial_id": trial_id, "step": step, "intermediate_value": stored,
            "intermediate_value_type": kind}  # fmt: skip


def _replace(session: Session, model: Any, key: str, rows: list[dict[str, Any]]) -> None:
    replace_rows(session, model.__table__, "trial_id", key, rows)
