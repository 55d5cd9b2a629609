"""Records as lines of text and back: JSON with a checksum, one record a line.

A line is `CRC32 JSON\\n`, the checksum in eight hex digits over the JSON's bytes. JSON as Python
writes it keeps NaN and infinity; tuples and records are objects with the key "@" that says what
they are, so that what comes back equals what went in.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Mapping
from typing import Any

from sweep.redact import redacted
from sweep.trial import (
    CheckpointDropped,
    DatasetInfo,
    EpochReport,
    Failure,
    Notice,
    Record,
    StudyFinished,
    StudyInfo,
    TrialFinished,
    TrialStarted,
    TrialState,
    WorkerReady,
)

Entry = Record | StudyInfo
"""What a line may hold. A StudyInfo says that a driver opened the study at this place."""

_CLASSES: dict[str, Any] = {
    cls.__name__: cls
    for cls in (
        CheckpointDropped, DatasetInfo, EpochReport, Failure, Notice, StudyFinished, StudyInfo,
        TrialFinished, TrialStarted, WorkerReady,
    )
}  # fmt: skip
_SEPARATORS = (",", ":")


class DamagedLineError(ValueError):
    """A line that is not what was written."""


def to_line(entry: Entry | Mapping[str, Any]) -> bytes:
    """One line that holds `entry`; credentials of URIs in its texts are left out."""
    text = json.dumps(_plain(entry), separators=_SEPARATORS, default=_number_or_text)
    return b"%08x %s\n" % (zlib.crc32(text.encode()), text.encode())


def from_line(line: bytes) -> Any:
    """What `to_line` was given. Raises DamagedLineError for anything else."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        raise DamagedLineError("the checksum is wrong")
    try:
        return json.loads(text, object_hook=_revived)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        # The checksum is right: another version of sweep wrote it.
        raise DamagedLineError(f"it cannot be read: {error}") from error


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"@": type(value).__name__, **fields}
    if isinstance(value, Mapping):
        if "@" in value or not all(type(key) is str for key in value):
            return {"@": "mapping", "items": [[_plain(k), _plain(v)] for k, v in value.items()]}
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return {"@": "tuple", "items": [_plain(item) for item in value]}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return redacted(str(value)) if "@" in value else str(value)
    return value


def _revived(fields: dict[str, Any]) -> Any:
    kind = fields.pop("@", None)
    if kind is None:
        return fields
    if kind == "tuple":
        return tuple(fields["items"])
    if kind == "mapping":
        return dict(fields["items"])
    if kind == "TrialFinished":
        fields["state"] = TrialState(fields["state"])
    return _CLASSES[kind](**fields)


def _number_or_text(value: Any) -> Any:
    """A NumPy or torch scalar as a number; anything else as MLflow would show it."""
    item = getattr(value, "item", None)
    return item() if callable(item) else str(value)
