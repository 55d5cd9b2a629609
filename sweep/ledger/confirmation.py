"""A study's confirmation, as the ledger keeps it: in the study's tags, which MLflow has, too."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Mapping

from sweep.appraisal import Confirmation, Finalist, Interval

CONFIRMED = "sweep.confirmed"
"""Tag: the confirmation, as JSON."""
TEST_OPENED = "sweep.test_opened"
"""Tag: when the winner was tested, in UTC."""


def tags_of(found: Confirmation) -> dict[str, str]:
    """The tags that keep it."""
    tags = {CONFIRMED: json.dumps(dataclasses.asdict(found))}
    if found.test:
        tags[TEST_OPENED] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return tags


def confirmation_in(tags: Mapping[str, str]) -> Confirmation | None:
    """The confirmation among a study's tags; None if it was never confirmed."""
    try:
        values = json.loads(tags[CONFIRMED])
        reference = values["reference"]
        return Confirmation(**values | {
            "finalists": tuple(Finalist(**one) for one in values["finalists"]),
            "value": Interval(**values["value"]),
            "reference": Finalist(**reference) if reference else None,
            "gain": Interval(**values["gain"]) if values["gain"] else None,
            "test": {k: Interval(**v) for k, v in values["test"].items()},
            "reference_test": {k: Interval(**v) for k, v in values["reference_test"].items()},
        })  # fmt: skip
    except (KeyError, TypeError, ValueError):
        return None
