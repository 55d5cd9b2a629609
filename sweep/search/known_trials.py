"""The trials that samplers and pruners look at: an Optuna storage in memory.

Optuna's own in-memory storage numbers trials in the order of their creation. Here a trial has its
number in the study, whenever it is added, and a duplicate proposal can be removed. Samplers and
pruners seed and sort by these numbers, so a continued search sees what an uninterrupted one sees.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial


class KnownTrials(BaseStorage):
    """One study; a trial's id is its number. For one thread.

    Args:
        name: The study's name. Hyperband puts a trial into a bracket by a checksum of name and
            number.
        parameters: Names of the space's parameters, in its order.
    """

    def __init__(self, name: str, parameters: Sequence[str]) -> None:
        self._name = name
        self._places = {parameter: place for place, parameter in enumerate(parameters)}
        self._directions: list[StudyDirection] = []
        self._system_attrs: dict[str, Any] = {}
        self._trials: dict[int, FrozenTrial] = {}
        self.next_number = 0
        """Number of the next created trial."""
        self.window: Container[int] | None = None
        """Numbers of the finished trials that samplers see; None: all."""
        self.before: int | None = None
        """Of other trials than `own`, those with smaller numbers are seen; None: all."""
        self.own = -1

    def add(self, number: int, trial: FrozenTrial) -> None:
        """Add a copy of `trial` as trial `number`."""
        self._trials[number] = FrozenTrial(
            number=number, trial_id=number, state=trial.state, value=None,
            values=trial.values, datetime_start=None, datetime_complete=None,
            params=self._sorted(trial.params), distributions=self._sorted(trial.distributions),
            user_attrs={}, system_attrs=dict(trial.system_attrs),
            intermediate_values=dict(trial.intermediate_values),
        )  # fmt: skip

    def forget(self, number: int) -> None:
        """Remove trial `number`."""
        del self._trials[number]

    def finished(self) -> list[FrozenTrial]:
        """The finished trials, by number."""
        return [t for _, t in sorted(self._trials.items()) if t.state.is_finished()]

    # Optuna's BaseStorage, which documents these methods. The id of the only study is 0.

    def create_new_study(
        self, directions: Sequence[StudyDirection], study_name: str | None = None
    ) -> int:
        self._directions = list(directions)
        return 0

    def delete_study(self, study_id: int) -> None:
        self._trials.clear()
        self._system_attrs.clear()

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        pass  # nobody reads them

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._system_attrs[key] = value

    def get_study_id_from_name(self, study_name: str) -> int:
        return 0

    def get_study_name_from_id(self, study_id: int) -> str:
        return self._name

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self._directions

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return {}

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return dict(self._system_attrs)

    def get_all_studies(self) -> list[Any]:
        return []

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        self.add(self.next_number, template_trial or create_trial(state=TrialState.RUNNING))
        return self.next_number

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:  # fmt: skip
        trial = self._replace(trial_id)
        value = distribution.to_external_repr(param_value_internal)
        trial.params = self._sorted({**trial.params, param_name: value})
        trial.distributions = self._sorted({**trial.distributions, param_name: distribution})

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        trial = self._replace(trial_id)
        trial.state = state
        if values is not None:
            trial.values = list(values)
        return True

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        trial = self._replace(trial_id)
        trial.intermediate_values = {**trial.intermediate_values, step: intermediate_value}

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        trial = self._replace(trial_id)
        trial.user_attrs = {**trial.user_attrs, key: value}

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        trial = self._replace(trial_id)
        trial.system_attrs = {**trial.system_attrs, key: value}

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self._trials[trial_id]

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        found = [
            trial
            for number, trial in sorted(self._trials.items())
            if (states is None or trial.state in states) and self._is_seen(number, trial)
        ]
        return copy.deepcopy(found) if deepcopy else found

    def _is_seen(self, number: int, trial: FrozenTrial) -> bool:
        if self.before is not None and number >= self.before and number != self.own:
            return False
        is_bound = self.window is not None and trial.state.is_finished()
        return not is_bound or number in (self.window or ())

    def _replace(self, trial_id: int) -> FrozenTrial:
        """Put a copy in the trial's place, to be changed: readers keep the old one."""
        self._trials[trial_id] = copy.copy(self._trials[trial_id])
        return self._trials[trial_id]

    def _sorted(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """In the order of the space: the grid relies on it, databases change it."""
        return dict(sorted(values.items(), key=lambda item: self._places.get(item[0], 0)))
