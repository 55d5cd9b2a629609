"""What takes time to make and is made once a user: files in the platform's cache folder.

Each begins with a checksum of the rest and is the user's own (0600). One that is damaged, or
that somebody else put there, counts as missing; all of them may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from sweep.errors import DiskError
from sweep.trial_files import replace_file


def default_cache_dir() -> Path:
    """The platform's cache folder of this user, e.g. ~/.cache/sweep."""
    import platformdirs

    return platformdirs.user_cache_path("sweep")


def cache_file(folder: str, *made_by: object) -> Path | None:
    """Where the cache has, or is to have, what depends on all of `made_by`.

    None where nobody knows the user's folders.
    """
    digest = hashlib.blake2b(repr(made_by).encode(), digest_size=16).hexdigest()
    try:
        return default_cache_dir() / folder / digest
    except RuntimeError:  # platformdirs: no home directory
        return None


def keep(file: Path | None, content: bytes) -> None:
    """Write `content` to `file`, where there is one that can be written."""
    if file is None:
        return
    with contextlib.suppress(OSError, DiskError):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(file, _checksum(content) + content, mode=0o600)


def kept(file: Path | None) -> bytes | None:
    """What `keep` wrote there; None where that is missing, damaged or somebody else's."""
    if file is None:
        return None
    try:
        # Not through a link, and not for a pipe's writer: what is looked at is what is read.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with os.fdopen(os.open(file, flags), "rb") as opened:
            if os.fstat(opened.fileno()).st_uid != os.geteuid():
                return None
            content = opened.read()
    except OSError:
        return None
    n = len(_checksum(b""))
    return content[n:] if content[:n] == _checksum(content[n:]) else None


def _checksum(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()
