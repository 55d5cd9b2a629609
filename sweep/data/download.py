"""Downloads from several mirrors."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sweep.errors import DataError, DiskError


def download(path: Path, md5: str, mirrors: Sequence[str], timeout_s: float) -> str:
    """Fetch `path` from the first working mirror, and return that mirror.

    The write is atomic: pooch verifies the MD5 of a temporary file, then renames it. On a terminal
    a progress bar shows on standard error.

    Args:
        path: The file; mirrors have it under the same name.
        md5: Of the published file, in hexadecimal.
        mirrors: URLs with a final slash, in the order to try.
        timeout_s: Seconds without an answer after which the next mirror is tried.

    Raises:
        DataError: No mirror delivers it; the message gives each one's reason.
        DiskError: The folder cannot be written.
    """
    import pooch

    pooch.get_logger().setLevel("WARNING")  # it announces each download on standard error
    # pooch leaves the connection of a failed download open: each response is closed here.
    with ExitStack() as responses:

        def close_later(response: Any, **_: object) -> None:
            responses.callback(response.close)

        get = pooch.HTTPDownloader(
            progressbar=sys.stderr.isatty(),
            chunk_size=2**16,
            timeout=timeout_s,
            hooks={"response": close_later},
        )
        return _first(get, path, md5, mirrors)


def _first(get: Any, path: Path, md5: str, mirrors: Sequence[str]) -> str:
    import pooch
    from requests.exceptions import RequestException

    reasons = []
    for mirror in mirrors:
        try:
            pooch.retrieve(mirror + path.name, f"md5:{md5}", path.name, path.parent, None, get)
        except (RequestException, ValueError) as error:
            reasons.append(f"{mirror} ({_reason(error)})")
        except OSError as error:  # a RequestException is one too, and was caught above
            cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
            if cause.errno is None:  # not a system call's: requests found no TLS certificates
                reasons.append(f"{mirror} ({cause})")
                continue
            raise DiskError(f"{path.parent} cannot be written: {cause.strerror}") from error
        else:
            return mirror
    damaged = "; the copy in the cache is damaged" if path.exists() else ""
    raise DataError(
        f"{path.name} could not be downloaded from {' or '.join(reasons)}{damaged}. "
        "Use --data digits, which needs no download, or --data-dir for a folder with the files"
    )


def _reason(error: Exception) -> str:
    from requests import exceptions

    if isinstance(error, exceptions.HTTPError) and error.response is not None:
        return f"HTTP {error.response.status_code}"
    if isinstance(error, exceptions.Timeout):
        return "no answer in time"
    if isinstance(error, exceptions.ChunkedEncodingError):
        return "the connection was cut"
    if isinstance(error, exceptions.ConnectionError):
        return "no connection"
    if isinstance(error, exceptions.RequestException):
        return type(error).__name__
    return "wrong checksum"
