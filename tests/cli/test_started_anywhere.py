"""A search in a folder and an environment that are full of traps is the search elsewhere."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from searches import INLINE, SWEEP, environment, mlflow_client
from waiting import PATIENCE_S

import sweep as library

TRAPS = ("sweep", "random", "json", "torch", "socket", "typing", "lightning", "tabnanny", "mlflow")
LAUNCHED = {
    "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "search", "SLURM_PROCID": "3", "SLURM_LOCALID": "3",
    "SLURM_NODEID": "0", "SLURM_JOB_ID": "123", "RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "4",
    "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "none",
    "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "PL_TRAINER_MAX_EPOCHS": "1",
    "PL_TRAINER_DEVICES": "8", "PL_TRAINER_FAST_DEV_RUN": "True", "PL_GLOBAL_SEED": "7",
    "MLFLOW_RUN_ID": "f" * 32, "MLFLOW_EXPERIMENT_NAME": "other", "MLFLOW_EXPERIMENT_ID": "77",
    "MLFLOW_TRUNCATE_LONG_VALUES": "false",
}  # fmt: skip
OWN = """
import tabnanny
from beside import HIDDEN
from sweep import MLPClassifier

class Own(MLPClassifier):
    def __init__(self, lr):
        super().__init__(64, 10, hidden=HIDDEN, lr=lr)
"""
COMMAND = (
    "run", "--module", "own:Own", "--space", "own.yaml", "--trials", "2", "--epochs", "2",
    "--study", "s", "--threads", "1",
)  # fmt: skip


def write_own(folder: Path) -> None:
    """A module of the user's, with a neighbour."""
    (folder / "own.py").write_text(OWN)
    (folder / "beside.py").write_text("HIDDEN = (8,)\n")
    (folder / "own.yaml").write_text("# Own.\nparameters:\n  lr: {float: [0.01, 0.2]}\n")


def values_of(folder: Path) -> list[object]:
    """Learning rates and scores, by trial."""
    storage = f"sqlite:///{folder}/mlruns/optuna.db"
    trials = optuna.load_study(study_name="s", storage=storage).trials
    return [(t.params, t.value, t.state.name) for t in trials]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """The values of that search where nothing is in its way."""
    folder = tmp_path_factory.mktemp("clean")
    write_own(folder)
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as environment:
        environment.delenv("MLFLOW_TRACKING_URI", raising=False)
        environment.setattr(sys, "path", [*sys.path])
        library.run(
            module="own:Own", space="own.yaml", trials=2, epochs=2, study="s", **INLINE
        )  # fmt: skip
    return values_of(folder)


@pytest.mark.usefixtures("ready_store")
def test_files_of_the_folder_and_variables_of_launchers_do_not_count(
    tmp_path: Path, expected: list[object]
) -> None:
    """No file is run but the one that is named, and the one that it imports; one process trains
    all epochs, and MLflow has the study's own runs."""
    write_own(tmp_path)
    for name in TRAPS:
        (tmp_path / f"{name}.py").write_text(f"open({name + '.ran'!r}, 'w')\n")
    said = subprocess.run(
        [sys.executable, "-P", *SWEEP[1:], *COMMAND], cwd=tmp_path, env=environment(**LAUNCHED),
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert (said.returncode, said.stderr) == (0, "")
    assert [path.name for path in tmp_path.glob("*.ran")] == []
    assert values_of(tmp_path) == expected
    client = mlflow_client(tmp_path)
    assert {e.name for e in client.search_experiments()} == {"Default", "s"}
    runs = client.search_runs([client.get_experiment_by_name("s").experiment_id])
    assert [r.info.status for r in runs] == ["FINISHED"] * 3


@pytest.mark.usefixtures("ready_store")
def test_a_search_needs_no_standard_streams(tmp_path: Path, expected: list[object]) -> None:
    """All three closed, as some daemons start programs: a worker trains, nobody is told."""
    write_own(tmp_path)
    command = 'exec "$@" <&- >&- 2>&-'
    done = subprocess.run(
        ["sh", "-c", command, "sh", *SWEEP, *COMMAND], cwd=tmp_path, env=environment(),
        timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert values_of(tmp_path) == expected
    listed = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *SWEEP, "list"], cwd=tmp_path, env=environment(),
        stderr=subprocess.PIPE, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert (listed.returncode, listed.stderr) == (0, b"")
