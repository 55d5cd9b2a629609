"""`sweep ui`."""

from __future__ import annotations

import os
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
    from sweep.config.settings import resolve
    from sweep.redact import redacted
    from sweep.tracking.uri import resolve as absolute

    uri = resolve(flags).config.tracking_uri
    if uri.startswith(("http://", "https://")):
        click.echo(f"this store has a UI of its own: {redacted(uri)}")
        return
    # Not as an argument: those are everybody's to see.
    os.environ["MLFLOW_BACKEND_STORE_URI"] = absolute(uri)
    os.environ["PYTHONSAFEPATH"] = "1"  # a file mlflow.py of this folder is not the server
    command = [sys.executable, "-m", "mlflow", "ui", "--host", host, "--port", str(port)]
    page = f"http://{host}:{port}/#/experiments?workflowType=machine_learning"
    click.echo(f"MLflow UI on {page} (Ctrl-C ends it)")
    sys.stdout.flush()
    os.execv(sys.executable, command)  # this process becomes the server
