"""Replaces a study of an Optuna storage by another of the same name, safe against kills.

Optuna can neither rename a study nor change its direction. So the new study is created under
another name first, then again in place of the old one; the copy is deleted last. After a kill in
between, `finish_replacing` completes this at the next opening for writing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

COPY = ":copy"
"""Suffix of a copy's name, and its last attribute. Names of sweep's studies have no colon."""


def replace_study(
    storage: BaseStorage,
    name: str,
    direction: StudyDirection,
    attrs: Mapping[str, Any],
    trials: Sequence[FrozenTrial],
) -> None:
    """Give the study `name` another direction, and these attributes and trials."""
    _make(storage, f"{name}{COPY}", direction, {**attrs, COPY: "whole"}, trials)
    finish_replacing(storage, name)


def finish_replacing(storage: BaseStorage, name: str) -> None:
    """Replace the study by its copy, if there is one.

    An incomplete copy is deleted: its study still exists.
    """
    try:
        copy = storage.get_study_id_from_name(f"{name}{COPY}")
    except KeyError:
        return
    attrs = dict(storage.get_study_user_attrs(copy))
    if attrs.pop(COPY, None) is not None:
        with contextlib.suppress(KeyError):
            storage.delete_study(storage.get_study_id_from_name(name))
        (direction,) = storage.get_study_directions(copy)
        trials = sorted(storage.get_all_trials(copy), key=lambda trial: trial.number)
        _make(storage, name, direction, attrs, trials)
    storage.delete_study(copy)


def _make(
    storage: BaseStorage,
    name: str,
    direction: StudyDirection,
    attrs: Mapping[str, Any],
    trials: Sequence[FrozenTrial],
) -> None:
    study = storage.create_new_study([direction], name)
    for trial in trials:
        storage.create_new_trial(study, template_trial=trial)
    for key, value in attrs.items():
        storage.set_study_user_attr(study, key, value)
