"""Which MLflow store is meant, and how to speak of it without giving away a password."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping

from sweep.databases import sqlite
from sweep.errors import ConfigError, StoreError
from sweep.redact import is_redacted, redacted

DEFAULT_URI = "sqlite:///mlflow.db"
"""MLflow's own default: a bare `mlflow ui` in the same folder reads it."""

_MAX_LINE = 300


def default_tracking_uri(env: Mapping[str, str]) -> str:
    """MLFLOW_TRACKING_URI of `env` where it is set, else `sqlite:///mlflow.db`."""
    return env.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def resolve(uri: str) -> str:
    """The URI that names the same store from any folder: relative SQLite paths made absolute.

    Raises:
        ConfigError: It is what a study keeps of an address with user and password.
        StoreError: It names a file store, which MLflow >= 3.13 no longer writes, or nothing.
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
    """The first line of what `error` says, without credentials, at most 300 characters.

    >>> one_line(ValueError("no answer from https://me:secret@host:5000\\nTraceback"))
    'no answer from https://***@host:5000'
    """
    lines = [line for line in str(error).splitlines() if line.strip()]
    first = lines[0].strip() if lines else type(error).__name__
    return redacted(first)[:_MAX_LINE]


def without_credentials(error: BaseException) -> None:
    """Take credentials out of what `error` and its causes say: tracebacks show all of them."""
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

    Environment variables that are not set yet are set, and stay so.
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
