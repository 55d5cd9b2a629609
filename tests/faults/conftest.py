"""A store and a server for the tests of what goes wrong with MLflow."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow_proxy import Proxy, proxy_of
from mlflow_servers import Server


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """A store with no study in a folder of its own."""
    return Path(shutil.copyfile(empty_store, tmp_path_factory.mktemp("store") / "store.db"))


@pytest.fixture(scope="module")
def server(store: Path) -> Iterator[Server]:
    """One server for the module; a test that kills it starts it again."""
    server = Server(store.parent)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    """A proxy before the server that refuses nothing yet."""
    with proxy_of(server.address) as proxy:
        yield proxy
