"""Fixtures that several rooms share."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import postgres as servers
import pytest
from searches import INLINE, Call, Finished

import sweep as library
from sweep.cli.main import main
from sweep.databases import sqlite
from sweep.tracking.uri import quiet


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing of the user's cache is used, nothing is left there; xdist's workers share one."""
    base = tmp_path_factory.getbasetemp()
    home = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache-home"
    home.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home))
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)  # a second of each process
        yield


@pytest.fixture(autouse=True)
def no_default_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """MLflow's default store, which a test may set for the whole process, is its own again."""
    address = os.environ.get("MLFLOW_TRACKING_URI")
    yield
    if (mlflow := sys.modules.get("mlflow")) is not None:
        mlflow.set_tracking_uri(None)
    if address is not None:
        os.environ["MLFLOW_TRACKING_URI"] = address


@pytest.fixture
def mnist_dir() -> Path:
    """Folder with the four original MNIST files."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist"
    folder = Path(os.environ.get("SWEEP_TEST_MNIST") or beside)
    if not (folder / "train-images-idx3-ubyte.gz").is_file():
        pytest.skip("no MNIST here: name a folder with its four files in SWEEP_TEST_MNIST")
    return folder


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """Run `sweep` in this process, in an empty folder: (exit code, output, lines of error)."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "SWEEP_DATA_DIR", "SWEEP_STORAGE"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: object) -> tuple[int, str, list[str]]:
        monkeypatch.setattr(sys, "argv", ["sweep", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        said = capsys.readouterr()
        return int(caught.value.code or 0), said.out, said.err.splitlines()

    return run


@pytest.fixture(scope="session")
def postgres() -> Iterator[servers.Postgres]:
    """One PostgreSQL server for all tests; who stops it starts it again."""
    if why := servers.missing():
        pytest.skip(why)
    with servers.running() as server:
        yield server


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with MLflow's tables and no study, made once: its migrations take seconds."""
    folder = tmp_path_factory.mktemp("store")
    with contextlib.chdir(folder), quiet():
        from sweep.tracking.store import opened

        with opened("sqlite:///mlflow.db", create=True):
            pass
        sqlite.settle("sqlite:///mlflow.db")
    return folder / "mlflow.db"


@pytest.fixture
def ready_store(empty_store: Path, tmp_path: Path) -> None:
    """A copy of it in the test's folder, for tests that are not about making it."""
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Finished:
    """A finished search of six trials, made once; `Finished.copy` gives a folder of one's own."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copyfile(empty_store, folder / "mlflow.db")
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as environment:
        environment.delenv("MLFLOW_TRACKING_URI", raising=False)
        library.run(study="six", trials=6, epochs=3, space="mlp_small", sampler="random", **INLINE)
    return Finished(folder)


@pytest.fixture
def six(finished: Finished, call: Call, tmp_path: Path) -> Path:
    """A copy of the finished search `six`, which is the current folder."""
    finished.copy(tmp_path)
    return tmp_path


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
