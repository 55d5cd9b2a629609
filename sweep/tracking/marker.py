"""What a study's folder says of its place in MLflow: that it was opened there, and with what.

`tracking.json` lets a search go on while MLflow is away, and lets records that an earlier process
left be delivered without asking the study again.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from sweep.errors import ConfigError, StoreError
from sweep.redact import redacted
from sweep.tracking.codec import DamagedLineError, from_line, to_line
from sweep.tracking.spool import write_aside
from sweep.tracking.uri import resolve
from sweep.trial import StudyInfo

MARKER = "tracking.json"

_log = logging.getLogger("sweep.tracking")


@dataclass(frozen=True, slots=True)
class Marker:
    """A study that was opened in MLflow."""

    store: str
    """The store's address, without credentials."""
    study: StudyInfo
    """As it was opened last, with the data set that workers named since."""

    def is_of(self, tracking_uri: str) -> bool:
        """Whether that store is meant."""
        return self.store == shown(tracking_uri)


def read_marker(study_dir: Path | None) -> Marker | None:
    """The folder's marker; None where there is none that can be read."""
    if study_dir is None:
        return None
    try:
        values = from_line((study_dir / MARKER).read_bytes())
        if isinstance(values["study"], StudyInfo):
            return Marker(str(values["store"]), values["study"])
    except (OSError, DamagedLineError, KeyError, TypeError):
        pass
    return None


def write_marker(study_dir: Path, marker: Marker) -> None:
    """Keep `marker`; what goes wrong is only logged, as nothing but comfort hangs on it."""
    try:
        line = to_line({"store": marker.store, "study": marker.study})
        write_aside(study_dir / MARKER, line, is_durable=True)
    except OSError as error:
        _log.warning("%s cannot be written: %s", study_dir / MARKER, error)


def shown(tracking_uri: str) -> str:
    """The address of a store as it may be written down."""
    try:
        return redacted(resolve(tracking_uri))
    except (ConfigError, StoreError):
        return redacted(tracking_uri)
