"""A private PostgreSQL server: its own folder, port, user and password."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from waiting import PATIENCE_S

USER, PASSWORD = "searcher", "hunter2-s3cret"


def missing() -> str:
    """What a server or its clients lack here; empty where all is there."""
    if binaries() is None:
        return "no PostgreSQL server here (Debian: apt-get install postgresql)"
    if importlib.util.find_spec("psycopg") is None:
        return "no PostgreSQL driver here (pip install 'sweep[postgres]')"
    return ""


def binaries() -> Path | None:
    """The folder with initdb and postgres; Debian keeps it off the PATH."""
    on_path = shutil.which("initdb")
    if on_path:
        return Path(on_path).resolve().parent
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: float(p.parts[-3])
    )
    return found[-1].parent if found else None


class Postgres:
    """A server that can be stopped and started again; it demands a password."""

    def __init__(self, folder: Path) -> None:
        found = binaries()
        assert found is not None
        self._bin, self._data = found, folder / "data"
        self._folder = folder
        # PostgreSQL refuses to run as root.
        self._as_user: dict[str, Any] = {}
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._as_user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        self._names = itertools.count()
        secret = folder / "password"
        secret.write_text(PASSWORD)
        if self._as_user:
            shutil.chown(folder, "nobody")
            shutil.chown(secret, "nobody")
        subprocess.run(
            [
                self._bin / "initdb", "-D", self._data, "-U", USER, "-A", "scram-sha-256",
                "--pwfile", secret, "--no-sync", "-E", "UTF8", "--locale", "C",
            ],
            cwd=folder, check=True, capture_output=True, **self._as_user,
        )  # fmt: skip
        secret.unlink()

    def address(self, database: str = "postgres", password: str = PASSWORD) -> str:
        """The address of one of its databases."""
        return f"postgresql://{USER}:{password}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """The address of a fresh database."""
        name = f"fresh{next(self._names)}"
        self.query("postgres", f"CREATE DATABASE {name}")
        return self.address(name)

    def query(self, database: str, sql: str) -> list[tuple[object, ...]]:
        """The rows of a statement."""
        import psycopg

        with psycopg.connect(self.address(database), autocommit=True) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    def start(self) -> None:
        """Start it and wait until it answers."""
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    self._bin / "postgres", "-D", self._data, "-k", self._folder,
                    "-p", str(self.port), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off",
                ],
                cwd=self._folder, stdout=log, stderr=log, **self._as_user,
            )  # fmt: skip
        deadline = time.monotonic() + PATIENCE_S
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "server.log").read_text()
            assert time.monotonic() < deadline, "PostgreSQL does not answer"
            time.sleep(0.05)

    def stop(self) -> None:
        """End it: connections are cut, as when its machine is switched off in good order."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.send_signal(signal.SIGQUIT)
                self._process.wait(20)
            self._process = None

    def _answers(self) -> bool:
        import psycopg

        with contextlib.suppress(psycopg.OperationalError):
            self.query("postgres", "SELECT 1")
            return True
        return False


@contextlib.contextmanager
def running() -> Iterator[Postgres]:
    """A server that ends with the block; nothing is left of it."""
    # Not in pytest's folders: those are closed to the user that PostgreSQL runs as.
    with tempfile.TemporaryDirectory(prefix="sweep-postgres-") as folder:
        server = Postgres(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()
