"""Per-user cache for expensive artifacts (compiled kernel, exported graphs, empty stores).

Each file begins with a checksum of the rest and is the user's own (0600). A damaged file, or one
of another user, counts as missing; all of them may be deleted at any time. Nothing is written
through a link of another user.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from pathlib import Path

from sweep.errors import DiskError
from sweep.files.trial_files import replace_file


def default_cache_dir() -> Path:
    """The platform's cache folder of this user, e.g. ~/.cache/sweep."""
    import platformdirs

    return platformdirs.user_cache_path("sweep")


def cache_file(folder: str, *made_by: object) -> Path | None:
    """The cache's file for an artifact made from `made_by`; None for a user without a home."""
    digest = hashlib.blake2b(repr(made_by).encode(), digest_size=16).hexdigest()
    try:
        return default_cache_dir() / folder / digest
    except RuntimeError:  # platformdirs: no home directory
        return None


def keep(file: Path | None, content: bytes) -> None:
    """Write `content` to `file`; does nothing for None or a read-only folder."""
    if file is None or any(_is_foreign_link(folder) for folder in file.parents):
        return
    with contextlib.suppress(OSError, DiskError):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(file, _checksum(content) + content, mode=0o600)


def _is_foreign_link(folder: Path) -> bool:
    """Whether somebody but the user and root made `folder` a link."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISLNK(found.st_mode) and found.st_uid not in (0, os.geteuid())


def kept(file: Path | None) -> bytes | None:
    """The content from `keep`; None if it is missing, damaged or another user's."""
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
