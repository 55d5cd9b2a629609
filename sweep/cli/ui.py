"""`sweep ui`."""

from __future__ import annotations

import errno
import os
import socket
import sys
from typing import Any

import click

from sweep.cli.options import config_options


@click.command(short_help="Open the MLflow UI on this folder's runs.")
@config_options(("tracking_uri",))
@click.option("--host", default="127.0.0.1", metavar="HOST",
              help="Address to listen on. [default: 127.0.0.1, this machine only]")  # fmt: skip
@click.option("--port", type=click.IntRange(1, 65535), default=5000, metavar="PORT",
              help="Port to listen on. [default: 5000]")  # fmt: skip
def ui(host: str, port: int, **flags: Any) -> None:
    """Start MLflow's own UI on the store that searches write to; Ctrl-C ends it.

    \b
    Examples:
      sweep ui
      sweep ui --tracking-uri sqlite:////home/me/project/mlflow.db --port 5001
    """
    from sweep.config.resolving import resolve
    from sweep.redact import redacted
    from sweep.tracking.uri import resolve as absolute

    uri = resolve(flags).config.tracking_uri
    if uri.startswith(("http://", "https://")):
        click.echo(f"this store has a UI of its own: {redacted(uri)}")
        return
    _see_that_it_is_free(host, port)
    # Not as an argument: those are everybody's to see.
    os.environ["MLFLOW_BACKEND_STORE_URI"] = absolute(uri)
    os.environ["PYTHONSAFEPATH"] = "1"  # a file mlflow.py of this folder is not the server
    command = [sys.executable, "-m", "mlflow", "ui", "--host", host, "--port", str(port)]
    page = f"http://{host}:{port}/#/experiments?workflowType=machine_learning"
    click.echo(f"MLflow UI on {page} (Ctrl-C ends it)")
    sys.stdout.flush()
    os.execv(sys.executable, command)  # this process becomes the server


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
