"""Searches for tests: scripted ones that take milliseconds, and real commands."""

from __future__ import annotations

import contextlib
import importlib
import io
import math
import os
import runpy
import shutil
import sqlite3
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from waiting import PATIENCE_S

from sweep.cli.main import main
from sweep.config.settings import RunConfig
from sweep.ledger.study import Ledger, create_study
from sweep.ledger.trials import LedgerTrial
from sweep.search.driver import Driver
from sweep.search.proposals import Proposals
from sweep.search.study import first_configurations
from sweep.space import Space, parse_space
from sweep.testing import RecordingListener, Script, ScriptedTrainer
from sweep.trial import TrialSpec

FREE_SPACE = """# Endless.
parameters:
  optimizer: {choices: [SGD, Adam]}
  lr: {float: [1e-4, 0.1], log: true}
  hidden: {widths: [16, 64], layers: [1, 2]}
"""
SIX_SPACE = """# Six configurations.
parameters:
  optimizer: {choices: [SGD, Adam, RMSprop]}
  lr: {choices: [0.1, 0.01]}
fixed:
  hidden: [32]
"""


def score(spec: TrialSpec) -> float:
    """A smooth score in (0, 1), best at lr = 0.01."""
    return math.exp(-abs(math.log(spec.hyperparameters["lr"] / 0.01)))


def rising(spec: TrialSpec) -> list[dict[str, float]]:
    """Three epochs that rise to `score`."""
    return [{"train_loss": 1.0, "val_acc": score(spec) * share} for share in (0.5, 0.8, 1.0)]


@dataclass
class Search:
    """What a scripted search left behind."""

    config: RunConfig
    driver: Driver
    ledger: Ledger
    listener: RecordingListener

    @property
    def trials(self) -> list[LedgerTrial]:
        self.driver.settle()
        return self.ledger.trials()

    def states(self) -> list[str]:
        return [str(trial.state) for trial in self.trials]

    def leave(self) -> None:
        """Record what is decided, and let go of the stores."""
        self.driver.settle()
        self.ledger.close()


class ScriptedStudy:
    """A study in one folder whose trials are scripted; each call of `run` continues it."""

    def __init__(self, folder: Path, space: str = FREE_SPACE) -> None:
        self.folder = folder
        self.space: Space = parse_space(space, "scripted")

    def config(self, **settings: Any) -> RunConfig:
        given: dict[str, Any] = {
            "study": "scripted", "epochs": 3, "baseline": False,
            "storage": f"sqlite:///{self.folder}/optuna.db", "work_dir": f"{self.folder}/work",
        }  # fmt: skip
        return RunConfig(**(given | settings))

    def prepare(self, config: RunConfig, listener: RecordingListener | None = None) -> Search:
        ledger, _ = create_study(config.storage, config.study_name, config.resolved_direction)
        listener = listener or RecordingListener()
        driver = Driver(config, ledger, Proposals(self.space, config), [listener])
        driver.plan(ledger.trials(), first_configurations(config, self.space))
        return Search(config, driver, ledger, listener)

    def run(self, script: Script = rising, *, n_slots: int = 1, **settings: Any) -> Search:
        search = self.prepare(self.config(**settings))
        ScriptedTrainer(script, n_slots).train(search.driver.exchange)
        search.leave()
        return search


INLINE: dict[str, Any] = {"executor": "inline", "population": 1, "threads": 1}
"""Settings of a search in this process, which takes milliseconds a trial."""

Call = Callable[..., tuple[int, str, list[str]]]
"""Runs a command in this process: exit code, output, lines of error."""


@dataclass(frozen=True)
class Finished:
    """A finished search in a folder."""

    folder: Path

    def copy(self, to: Path) -> None:
        """A copy that stands alone: stores name their files by absolute paths."""
        shutil.copytree(self.folder, to, dirs_exist_ok=True)
        rewrite(to / "mlflow.db", "experiments", "artifact_location", self.folder, to)
        rewrite(to / "mlflow.db", "runs", "artifact_uri", self.folder, to)
        rewrite(to / "mlflow.db", "logged_models", "artifact_location", self.folder, to)
        rewrite(
            to / "mlruns" / "optuna.db", "trial_user_attributes", "value_json", self.folder, to
        )


def rewrite(database: Path, table: str, column: str, old: Path, new: Path) -> None:
    """Put another path in place of `old` wherever the column has it."""
    query(database, f"UPDATE {table} SET {column} = replace({column}, '{old}', '{new}')")


def query(database: Path, statement: str, *values: Any) -> list[Any]:
    """Rows of one statement, which is committed."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        rows = connection.execute(statement, values).fetchall()
        connection.commit()
    return rows


TESTS = Path(__file__).resolve().parent
SWEEP = [sys.executable, "-c", "from sweep.cli import main; main()"]


def environment(**changes: str) -> dict[str, str]:
    """The environment without what would change a search's settings."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SWEEP_", "MLFLOW_"))}
    return kept | {"COLUMNS": "200", "OMP_NUM_THREADS": "1"} | changes


def sweep(
    folder: Path, *arguments: str | Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the real command line in `folder`."""
    return subprocess.run(
        [*SWEEP, *map(str, arguments)],
        cwd=folder,
        env=environment(**(env or {})),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


UNSAID = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)
"""Warnings that Python does not print unless it is asked to."""


@contextlib.contextmanager
def as_if_alone(folder: Path, **changes: str) -> Iterator[None]:
    """This process is in `folder`, with the environment and the modules of a fresh one.

    Afterwards none of the folder's modules is loaded: the next test's may have the same names.
    """
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("default")  # a warning is said and fails nothing
        for kind in UNSAID:
            warnings.simplefilter("ignore", kind)
        for name in os.environ.keys() - (kept := environment(**changes)).keys():
            patch.delenv(name)
        for name, value in kept.items():
            patch.setenv(name, value)
        patch.chdir(folder)
        patch.setattr(sys, "path", [*sys.path])
        importlib.invalidate_caches()
        try:
            yield
        finally:
            for name, module in [*sys.modules.items()]:
                if str(getattr(module, "__file__", None)).startswith(f"{folder.resolve()}/"):
                    del sys.modules[name]


HERE = {"SWEEP_EXECUTOR": "inline", "SWEEP_THREADS": "1"}
"""Environment of a search that trains in its own process, beside other tests."""


def in_this_process(
    folder: Path, env: dict[str, str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run `sweep` in this process, where its libraries are loaded already."""
    out, err = io.StringIO(), io.StringIO()
    with (
        as_if_alone(folder, **env),
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["sweep", *arguments])
        try:
            main()
        except SystemExit as left:
            code = int(left.code or 0)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def inline(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `sweep` in this process, which also trains: for what workers do not matter to."""
    return in_this_process(folder, HERE, *map(str, arguments))


def script(folder: Path, name: str, *arguments: str) -> str:
    """What a program of the folder prints, run in this process as its main one."""
    out = io.StringIO()
    with (
        as_if_alone(folder, **HERE),
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
    ):
        patch.setattr(sys, "argv", [name, *arguments])
        patch.syspath_prepend(folder)
        runpy.run_path(name, run_name="__main__")
    return out.getvalue()


def start_sweep(
    folder: Path, *arguments: str, env: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start the real command line in `folder`, in a process group of its own."""
    return subprocess.Popen(
        [*SWEEP, *arguments],
        cwd=folder,
        env=environment(**(env or {})),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def python(folder: Path, *arguments: str) -> str:
    """What a Python program prints, run in `folder`; it must succeed."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment(), capture_output=True,
        text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def wait_for_line(process: subprocess.Popen[str], start: str) -> str:
    """The first line of standard output that begins with `start`."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(start):
            return line
    raise AssertionError(f"no line {start!r}: {process.communicate()[1]}")


def children_of(pid: int) -> list[int]:
    """Process ids of the children of `pid` (Linux)."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in path.read_text().split()]


def is_alive(pid: int) -> bool:
    """Whether a process of that id runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def mlflow_client(folder: Path) -> Any:
    """A client of the folder's own MLflow store, past the warnings of MLflow's import."""
    from sweep.tracking.uri import quiet

    with quiet():
        import mlflow

        return mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")


def stored_bytes(tracking_uri: str, study: str) -> dict[int, int]:
    """Bytes of each trial's files in MLflow."""
    from sweep.tracking import artifacts

    return {n: one.n_bytes for n, one in artifacts.stored_files(tracking_uri, study).items()}
