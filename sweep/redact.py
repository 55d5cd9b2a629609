"""Credentials in URIs never reach a log, a tag, an artifact or an error."""

from __future__ import annotations

import re

_PASSWORD = re.compile(r"(?P<head>\b[a-z][a-z0-9+.\-]*://)(?P<who>[^/\s@]+)@", re.IGNORECASE)


def redacted(text: str) -> str:
    """`text` with user and password of every URI in it replaced by ***.

    >>> redacted("cannot reach postgresql://me:secret@db/optuna")
    'cannot reach postgresql://***@db/optuna'
    """
    return _PASSWORD.sub(r"\g<head>***@", text)
