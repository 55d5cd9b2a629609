"""The address of the MLflow store, and words about it without a password."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator

from sweep.databases import sqlite
from sweep.errors import ConfigError, StoreError
from sweep.redact import is_redacted, redacted

DEFAULT_URI = "sqlite:///mlflow.db"
"""MLflow's own default: a bare `mlflow ui` in the same folder reads it."""

_MAX_LINE = 300


def resolve(uri: str) -> str:
    """The URI of the same store for any folder: relative SQLite paths made absolute.

    Raises:
        ConfigError: Its user and password were replaced by ***, as kept with a study.
        StoreError: It names a file store (MLflow >= 3.13 has none) or nothing.
    """
    if is_redacted(uri):
        raise ConfigError(
            f"MLflow at {uri}: user and password are not kept with a study. Name the address "
            "with --tracking-uri or in MLFLOW_TRACKING_URI"
        )
    scheme, colon, _ = uri.partition(":")
    if not uri.strip() or not colon or scheme == "file":
        raise StoreError(
            f"MLflow >= 3.13 has no file stores, but got {redacted(uri)!r}: "
            f"use a database such as {DEFAULT_URI}, or the http address of an MLflow server"
        )
    if scheme == "sqlite" and not uri.startswith("sqlite:///"):
        raise StoreError(
            f"an SQLite address is sqlite:///FILE with three slashes, but got {redacted(uri)!r}"
        )
    path = sqlite.path_of(uri)
    if path is None:
        return uri
    return sqlite.url_of(path, uri.partition("?")[2])


def one_line(error: object) -> str:
    """The first line of `error`, without credentials, at most 300 characters.

    >>> one_line(ValueError("no answer from https://me:secret@host:5000\\nTraceback"))
    'no answer from https://***@host:5000'
    """
    lines = [line for line in str(error).splitlines() if line.strip()]
    first = lines[0].strip() if lines else type(error).__name__
    return redacted(first)[:_MAX_LINE]


def without_credentials(error: BaseException) -> None:
    """Take credentials out of `error` and its causes: tracebacks show all of them."""
    chain: BaseException | None = error
    seen: set[int] = set()
    while chain is not None and id(chain) not in seen:
        seen.add(id(chain))
        chain.args = tuple(redacted(a) if isinstance(a, str) else a for a in chain.args)
        if isinstance(message := getattr(chain, "message", None), str):
            with contextlib.suppress(AttributeError):
                chain.message = redacted(message)  # type: ignore[attr-defined]
        chain = chain.__cause__ or chain.__context__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Load and open MLflow within: no banners, progress bars, usage statistics, warnings.

    Sets missing environment variables for good.
    """
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        # MLflow's own 7 retries keep a caller waiting for minutes where nobody answers; our
        # delivery retries by itself.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    }.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        # Of MLflow's own making: it calls what SQLAlchemy and pydantic have deprecated.
        warnings.simplefilter("ignore")
        yield
