"""A password in an address is nowhere: not in what is said, not in a file, not in a database."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from postgres import PASSWORD, Postgres
from searches import SWEEP, Call, environment, in_this_process, sweep
from waiting import wait_until

from sweep.config.resolving import resolve
from sweep.errors import ConfigError
from sweep.redact import is_redacted, redacted

USER = "heimlich"
LEAKY = """
import os
from sweep import MLPClassifier

class Model(MLPClassifier):
    def __init__(self, mode):
        super().__init__(64, 10, hidden=(8,))
        self.mode = mode

    def training_step(self, batch, batch_idx):
        if self.mode == "raise" and self.current_epoch == 1:
            addresses = os.environ["SWEEP_STORAGE"], os.environ["MLFLOW_TRACKING_URI"]
            raise ConnectionError(f"no answer from {addresses}")
        return super().training_step(batch, batch_idx)
"""
SPACE = """# Half of it fails.
parameters:
  mode: {choices: [fine, raise]}
"""
SEARCH = ("run", "--study", "leaky", "--module", "leaky:Model", "--space", "leaky.yaml")


@dataclass
class Story:
    """What a search with passwords in both addresses said and left."""

    folders: tuple[Path, Path]
    databases: tuple[str, str]
    said: dict[str, subprocess.CompletedProcess[str]] = field(default_factory=dict)
    arguments: str = ""
    """Command lines of all processes of `sweep ui`."""


@contextlib.contextmanager
def ui(folder: Path, url: str) -> Iterator[tuple[str, str]]:
    """`sweep ui` on a database: (its address, the arguments that its processes show)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = environment(
        MLFLOW_TRACKING_URI=url, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false", MLFLOW_WORKERS="1"
    )
    with (folder / "ui.log").open("w") as log:
        server = subprocess.Popen(
            [*SWEEP, "ui", "--port", str(port)], cwd=folder, env=env, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    try:
        wait_until(lambda: server.poll() is not None or answers(port))
        assert server.poll() is None, (folder / "ui.log").read_text()
        lines = [p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline") if is_of(p, server)]
        yield f"127.0.0.1:{port}", b" ".join(lines).decode()
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answers(port: int) -> bool:
    """Whether an MLflow server answers there."""
    with contextlib.suppress(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
        return True
    return False


def is_of(command_line: Path, leader: subprocess.Popen[bytes]) -> bool:
    """Whether a process of /proc belongs to the session of `leader`."""
    with contextlib.suppress(OSError):
        return os.getsid(int(command_line.parent.name)) == leader.pid
    return False


@pytest.fixture(scope="module")
def story(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """A real search against PostgreSQL and an MLflow server on it, and what goes wrong with it."""
    here, there = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("there")
    (here / "leaky.py").write_text(LEAKY)
    (here / "leaky.yaml").write_text(SPACE)
    storage, runs = postgres.new_database(), postgres.new_database()
    story = Story((here, there), (storage, runs))
    with ui(there, runs) as (address, story.arguments):
        tracking = f"http://{USER}:{PASSWORD}@{address}"
        env = {"SWEEP_STORAGE": storage, "MLFLOW_TRACKING_URI": tracking}

        def ask(name: str, *command: str, **changes: str) -> None:
            story.said[name] = in_this_process(here, env | changes, *command)

        searched = sweep(here, *SEARCH, "--sampler", "grid", "--epochs", "2", "-v", env=env)
        story.said["run"] = searched
        ask("settings", "run", "--study", "leaky", "--print-config")
        ask("one", "show", "leaky", "0", "--format", "json")
        ask("doctor", "doctor", "leaky", "--fix", "--debug")
        wrong = {
            "SWEEP_STORAGE": storage.replace(PASSWORD, f"not-{PASSWORD}"),
            "MLFLOW_TRACKING_URI": runs.replace(PASSWORD, f"not-{PASSWORD}"),
        }
        ask("wrong storage", *SEARCH, "--debug", SWEEP_STORAGE=wrong["SWEEP_STORAGE"])
        tracking = wrong["MLFLOW_TRACKING_URI"]
        ask("wrong store", "doctor", "leaky", "--debug", MLFLOW_TRACKING_URI=tracking)
    ask("no server", "doctor", "leaky", "--debug")
    postgres.stop()
    try:
        ask("no database", "list", "--debug")
    finally:
        postgres.start()
    return story


def test_the_variants_went_as_they_should(story: Story) -> None:
    """The search ran and one of its trials failed; what cannot be reached is exit code 4."""
    codes = {name: done.returncode for name, done in story.said.items()}
    expected = {"run": 0, "settings": 0, "one": 0, "doctor": 0}
    expected |= dict.fromkeys(("wrong storage", "wrong store", "no server", "no database"), 4)
    assert codes == expected, story.said
    assert "no answer from ('postgresql://***@127.0.0.1:" in story.said["run"].stdout
    assert "no answer from ('postgresql://***@127.0.0.1:" in story.said["one"].stdout
    assert "password authentication failed" in story.said["wrong storage"].stderr
    assert "Traceback" in story.said["no database"].stderr


def leaks(content: bytes) -> bool:
    """Whether a password is in it, in itself or as HTTP's basic authentication has it."""
    basic = base64.b64encode(f"{USER}:{PASSWORD}".encode())
    return any(word in content for word in (PASSWORD.encode(), basic))


def test_no_command_says_a_password(story: Story) -> None:
    """Neither output nor error, nor a traceback that was asked for, nor a process list."""
    assert "mlflow" in story.arguments
    assert not leaks(story.arguments.encode())
    for name, done in story.said.items():
        assert not leaks(
            (done.stdout + done.stderr).encode(),
        ), name


def test_no_file_has_a_password(story: Story) -> None:
    """Nothing in the work folder, the logs, the artifacts."""
    files = [f for folder in story.folders for f in folder.rglob("*") if f.is_file()]
    names = {f.name for f in files}
    assert {"sweep.log", "verdict.json", "traceback.txt", "config.yaml"} <= names
    assert [f for f in files if leaks(f.read_bytes())] == []


def test_no_database_has_a_password(story: Story, postgres: Postgres) -> None:
    """No row of any table of Optuna or MLflow."""
    n_rows = 0
    for url in story.databases:
        name = url.rpartition("/")[2]
        tables = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
        for (table,) in postgres.query(name, tables):
            rows = postgres.query(name, f'SELECT t::text FROM "{table}" t')
            n_rows += len(rows)
            assert not leaks(str(rows).encode()), table
    assert n_rows > 50


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://me:hunter2@hunter2@db/optuna",
        "postgresql://me:hunter2/hunter2@db/optuna",
        "postgresql://me:first@hunter2/x@127.0.0.1:5/optuna",
        "https://me:first@hunter2/x@host",
        "postgresql://me:first:hunter2@db/optuna",
        "postgresql://me:hunter2",
        "postgresql://me:hunter2/optuna",
        "postgresql://me:first@db:hunter2/optuna",
        "postgresql://db:5432/optuna?user=me&password=first@hunter2",
        "postgresql://me:first@db/optuna?password=x@hunter2",
        "postgresql://me:hunter2 hunter2@db/optuna",
        "postgresql://me:{hunter2}@db/optuna",
        "postgresql//me:hunter2@db/optuna",
        "me:hunter2@db",
        "https://me:hunter2#hunter2@db",
        "https://me:hunter2?hunter2@db:5000/path",
    ],
)
def test_a_password_that_an_address_cannot_hold_is_not_repeated(call: Call, address: str) -> None:
    """It is refused before a library takes half of it for a host and says so."""
    for flag in ("--storage", "--tracking-uri"):
        code, out, errors = call("run", flag, address, "--debug")
        assert code == 2
        assert "hunter2" not in out + "".join(errors)
        assert errors[-1].startswith(f"sweep: {flag} must be an address whose user and password")


@pytest.mark.parametrize(
    "address",
    [
        "nosuch://me:hunter2@db/optuna",
    ],
)
def test_an_address_that_leads_nowhere_is_said_without_its_password(
    call: Call, address: str
) -> None:
    """Neither the settings nor an error nor its traceback have it."""
    code, out, errors = call("list", "--storage", address, "--debug")
    assert code == 4
    assert "hunter2" not in out + "".join(errors)
    code, out, errors = call("run", "--storage", address, "--print-config")
    assert "hunter2" not in out + "".join(errors)


@pytest.mark.usefixtures("ready_store")
@pytest.mark.parametrize("executor", ["inline", "process"])
def test_what_data_of_ones_own_says_is_said_without_passwords(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: str
) -> None:
    """An error outside of any trial, with its traceback, from this process and from a worker."""
    (tmp_path / f"{executor}_data.py").write_text(
        "def load():\n    raise ConnectionError('no answer from ' + 'https://me:hunter2@host')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    data = f"{executor}_data:load"
    code, out, errors = call("run", "--debug", "--data", data, "--executor", executor)
    assert code != 0
    assert "no answer from https://***@host" in errors[-1]
    assert any(line.startswith("Traceback") for line in errors)
    assert "hunter2" not in out + "".join(errors)
    for file in (tmp_path / "mlruns").rglob("*"):
        assert file.is_dir() or b"hunter2" not in file.read_bytes(), file


def test_addresses_without_trouble_are_taken() -> None:
    """Percent-encoded passwords, files with @ in their names, servers with paths."""
    for address in (
        "postgresql+psycopg://me:p%40ss%2F@db:5432/optuna?connect_timeout=3",
        "postgresql:///optuna?host=/run/postgresql",
        "sqlite:////home/me@work/optuna.db",
        "https://me:secret@host/path/a%40b",
        "https://host/path",
        "https://me:secret@[::1]:5000/path",
        "postgresql://me:@db/optuna",
        "postgresql://me@db/optuna",
        "postgresql://:token@db/optuna",
    ):
        assert resolve({"storage": address}, env={}).config.storage == address
    with pytest.raises(ConfigError, match="must be a word"):
        resolve({"storage": " "}, env={})


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:x@h/a and https://you:y@h", "http://***@h/a and https://***@h"),
        ("postgresql://me:a/b@h/db", "postgresql://***@h/db"),
        ("postgresql://me:a@b@h/db", "postgresql://***@h/db"),
        ("postgresql://token@h/db", "postgresql://***@h/db"),
        ("postgresql://h/db?user=me&password=x&sslmode=off", "postgresql://h/db?user=***&password=***&sslmode=off"),
        ("https://h/?access_token=x", "https://h/?access_token=***"),
        ("sqlite:////home/me@work/a.db", "sqlite:////home/me@work/a.db"),
        ("http://host:5000/#/experiments/1", "http://host:5000/#/experiments/1"),
        ("mail me@work, see http://host", "mail me@work, see http://host"),
    ],
)  # fmt: skip
def test_only_credentials_are_hidden(text: str, shown: str) -> None:
    """User, password and secret parameters go; paths, hosts and the rest stay."""
    assert redacted(text) == shown
    assert redacted(shown) == shown
    assert is_redacted(shown) == (shown != text)
