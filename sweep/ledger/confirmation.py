"""A study's confirmation, as the ledger keeps it: in the study's tags, which MLflow has, too."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sweep.appraisal import Confirmation, Finalist, Interval
from sweep.ledger.study import Ledger
from sweep.ledger.trials import LedgerTrial
from sweep.trial import TrialState

CONFIRMED = "sweep.confirmed"
"""Tag: the confirmation, as JSON."""
TEST_OPENED = "sweep.test_opened"
"""Tag: when winners were tested, in UTC."""


def round_name(study: str, number: int) -> str:
    """The study of a confirmation's round, from 1."""
    return f"{study}-confirm-{number}"


def study_of_round(name: str) -> str | None:
    """The study that a round confirms; None for the name of another study.

    >>> study_of_round("digits-mlp-confirm-2"), study_of_round("digits-mlp")
    ('digits-mlp', None)
    """
    found = re.fullmatch(r"(.+)-confirm-\d+", name)
    return found.group(1) if found else None


def confirmed_winner(ledger: Ledger) -> int | None:
    """The winner of a study's confirmation; None if there was none, or the study has grown."""
    found = confirmation_in(ledger.tags)
    if found is None or found.n_known != n_completed(ledger.trials()):
        return None
    return found.winner


def n_completed(trials: Sequence[LedgerTrial]) -> int:
    """Completed trials."""
    return sum(trial.state is TrialState.COMPLETE for trial in trials)


def tags_of(found: Confirmation) -> dict[str, str]:
    """The tags that keep it."""
    return {CONFIRMED: json.dumps(_without_nan(dataclasses.asdict(found)), allow_nan=False)}


def opening(tags: Mapping[str, str]) -> dict[str, str]:
    """The tag of one more opening of the test split, now, behind earlier ones in `tags`."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {TEST_OPENED: ", ".join([*filter(None, [tags.get(TEST_OPENED)]), now])}


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _finalist(values: Mapping[str, Any]) -> Finalist:
    scores = tuple(math.nan if score is None else float(score) for score in values["scores"])
    return Finalist(**{**values, "scores": scores})


def confirmation_in(tags: Mapping[str, str]) -> Confirmation | None:
    """The confirmation among a study's tags; None if it was never confirmed."""
    try:
        values = json.loads(tags[CONFIRMED])
        reference = values["reference"]
        return Confirmation(**values | {
            "finalists": tuple(_finalist(one) for one in values["finalists"]),
            "value": Interval(**values["value"]),
            "reference": _finalist(reference) if reference else None,
            "gain": Interval(**values["gain"]) if values["gain"] else None,
            "test": {k: Interval(**v) for k, v in values["test"].items()},
            "reference_test": {k: Interval(**v) for k, v in values["reference_test"].items()},
        })  # fmt: skip
    except (KeyError, TypeError, ValueError):
        return None
