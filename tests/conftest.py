"""Fixtures that several rooms share."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


@pytest.fixture
def mnist_dir() -> Path:
    """Folder with the four original MNIST files."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist"
    folder = Path(os.environ.get("SWEEP_TEST_MNIST") or beside)
    if not (folder / "train-images-idx3-ubyte.gz").is_file():
        pytest.skip("no MNIST here: name a folder with its four files in SWEEP_TEST_MNIST")
    return folder


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves a folder and says nothing on standard error."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def http_folder() -> Iterator[Callable[..., str]]:
    """Serve a folder on the loopback address: http_folder(path, handler) -> URL with a slash."""
    with ExitStack() as open_servers:

        def serve(folder: Path, handler: type[SimpleHTTPRequestHandler] = QuietHandler) -> str:
            server = ThreadingHTTPServer(
                ("127.0.0.1", 0), functools.partial(handler, directory=str(folder))
            )
            open_servers.callback(server.server_close)
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            open_servers.callback(thread.join)
            open_servers.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_address[1]}/"

        yield serve
