"""`sweep ui`."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import time
from typing import Any

import click

from sweep.cli.options import config_options, study_argument
from sweep.redact import HIDDEN, redacted


@click.command(short_help="Open the MLflow UI on this folder's runs.")
@study_argument
@config_options(("tracking_uri",))
@click.option("--host", default="127.0.0.1", metavar="HOST",
              help="Address to listen on. [default: 127.0.0.1, this machine only]")  # fmt: skip
@click.option("--port", type=click.IntRange(1, 65535), default=5000, metavar="PORT",
              help="Port to listen on. [default: 5000]")  # fmt: skip
@click.option("--open/--no-open", "is_opened", default=None,
              help="Open the page in a browser. [default: on a desktop's terminal]")  # fmt: skip
def ui(study: str | None, host: str, port: int, is_opened: bool | None, **flags: Any) -> None:
    """Start MLflow's own UI on the store that searches write to; Ctrl-C ends it.

    Its address leads to the trials of STUDY, best first, or to the list of all studies. If the
    store is an MLflow server, which has a UI of its own, only the address is said and opened.

    \b
    Examples:
      sweep ui digits-mlp
      sweep ui --tracking-uri sqlite:////home/me/project/mlflow.db --port 5001
    """
    from sweep.config.resolving import resolve
    from sweep.tracking.uri import resolve as absolute

    uri = resolve(flags).config.tracking_uri
    is_server = uri.startswith(("http://", "https://"))
    if not is_server:
        _see_that_it_is_free(host, port)
    path = _path(uri, study)
    if is_opened is None:
        is_opened = sys.stdout.isatty() and _has_desktop()
    if is_server:
        page = f"{redacted(uri).rstrip('/')}/{path}"
        click.echo(f"this store has a UI of its own: {page}")
        if is_opened:
            import webbrowser

            webbrowser.open(page.replace(f"{HIDDEN}@", ""))
        return
    # Not as an argument: those are everybody's to see.
    os.environ["MLFLOW_BACKEND_STORE_URI"] = absolute(uri)
    os.environ["PYTHONSAFEPATH"] = "1"  # a file mlflow.py of this folder is not the server
    command = [sys.executable, "-m", "mlflow", "ui", "--host", host, "--port", str(port)]
    page = f"http://{host}:{port}/{path}"
    click.echo(f"MLflow UI on {page} (Ctrl-C ends it)")
    sys.stdout.flush()
    if is_opened:
        _open_once_it_answers(page)
    os.execv(sys.executable, command)  # this process becomes the server


def _path(uri: str, study: str | None) -> str:
    """The page of `study`, or of all studies, without host."""
    if study is None:
        from sweep.tracking.pages import EXPERIMENTS

        return EXPERIMENTS
    from sweep.tracking import mirror

    return mirror.page_of_study(uri, study)


def _has_desktop() -> bool:
    """Whether a browser would have a screen: elsewhere it would take the terminal."""
    names = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    return sys.platform == "darwin" or any(os.environ.get(name) for name in names)


def _open_once_it_answers(page: str) -> None:
    """Start a process that opens `page` as soon as its server answers, within a minute."""
    if os.fork():
        return
    import urllib.request
    import webbrowser

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and os.getppid() > 1:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(page, timeout=5).close()
            webbrowser.open(page)
            break
        time.sleep(0.2)
    os._exit(0)


def _see_that_it_is_free(host: str, port: int) -> None:
    """Raise ConfigError if nothing can listen there: MLflow starts all the same, and exits 0."""
    from sweep.errors import ConfigError

    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"--port must be a free port of {host}, but {port} is in use: name another, e.g. "
                f"--port {port % 65535 + 1}"
            ) from error
        if error.errno == errno.EACCES:
            raise ConfigError(
                f"--port must be one that you may listen on, but got {port}: name one from 1024"
            ) from error
        raise ConfigError(
            f"--host must be an address of this machine, but got {host!r}: {error.strerror}"
        ) from error
