"""Credentials in URIs never reach a log, a tag, an artifact or an error."""

from __future__ import annotations

import re

HIDDEN = "***"
"""Replaces user and password, or one parameter's value."""

# A password may hold a slash where there is a user's name before it, as SQLAlchemy reads it.
_USER = re.compile(r"(\b[a-z][a-z0-9+.\-]*://)(?:[^/\s:@]*:\S*|[^/\s]+)@", re.IGNORECASE)
_PARAMETER = re.compile(
    r"([?&;](?:user(?:name)?|\w*pass(?:word|wd)?|pwd|\w*token|\w*secret|\w*key)=)[^&;\s]+",
    re.IGNORECASE,
)


def redacted(text: str) -> str:
    """`text` with user and password of every URI in it replaced by ***.

    >>> redacted("cannot reach postgresql://me:secret@db/optuna?password=secret&x=1")
    'cannot reach postgresql://***@db/optuna?password=***&x=1'
    """
    hidden = _USER.sub(rf"\g<1>{HIDDEN}@", text)
    return _PARAMETER.sub(rf"\g<1>{HIDDEN}", hidden)


def is_redacted(uri: str) -> bool:
    """Whether credentials in `uri` were replaced by `redacted`."""
    return f"://{HIDDEN}@" in uri or f"={HIDDEN}" in uri
