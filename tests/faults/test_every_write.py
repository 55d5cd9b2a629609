"""Any write of a search may be its last, or fail: the harness and a sample of places."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import every_write
import pytest
from searches import query
from stores import VARIES, differences, facts, stable

from sweep.databases import sqlite

SEED = int(os.environ.get("SWEEP_WRITES_SEED", "5"))
"""Of the places that are tried here: the same ones each time, so that a change is what fails them.
Other seeds, and all places, are for `make soak`."""
WRITER = """
import os
for name in ("one", "two", "three"):
    try:
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, b"0123456789")
        os.fsync(descriptor)
        os.close(descriptor)
        os.rename(name, name.upper())
    except OSError as error:
        print(name, error.errno)
if os.path.exists("ONE"):
    os.unlink("ONE")
open(os.path.abspath("../elsewhere"), "w").write("not counted")
"""
N_PLACES = 3 * 4 + 1


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled shim."""
    if shutil.which("cc") is None or not sys.platform.startswith("linux"):
        pytest.skip("no C compiler, or not Linux")
    return every_write.build(tmp_path_factory.mktemp("shim"))


def write(shim: Path, folder: Path, fault: str, at: int) -> subprocess.CompletedProcess[str]:
    """Run WRITER in `folder` with a fault at the K-th place."""
    return run_script(shim, folder, WRITER, fault, at)


def run_script(
    shim: Path, folder: Path, script: str, fault: str, at: int
) -> subprocess.CompletedProcess[str]:
    """Run a script that names descriptors in `folder`, with a fault at the K-th place."""
    folder.mkdir()
    env = dict(os.environ) | {
        "LD_PRELOAD": str(shim), "WRITES_WHO": "descriptor", "WRITES_ROOT": str(folder),
        "WRITES_FAULT": fault, "WRITES_AT": str(at),
        "WRITES_TRACE": str(folder.parent / "trace"), "WRITES_FIRED": str(folder.parent / "fired"),
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=env, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def here(folder: Path) -> dict[str, int]:
    """Name -> size of the files in a folder."""
    return {path.name: path.stat().st_size for path in folder.iterdir()}


def test_every_write_below_the_folder_is_counted(shim: Path, tmp_path: Path) -> None:
    """Opening for writing, writing, flushing, renaming and removing are places, in order, with
    their paths; what lies outside the folder is none."""
    assert write(shim, tmp_path / "p", "count", 0).returncode == 0
    trace = (tmp_path / "trace").read_text().splitlines()
    assert len(trace) == N_PLACES
    assert [line.split()[1].removesuffix("64") for line in trace[:4]] == [
        "open", "write", "fsync", "rename",
    ]  # fmt: skip
    assert [line.split()[2] for line in trace[:4]] == ["/one", "/one", "/one", "/ONE"]
    assert not (tmp_path / "fired").exists()


@pytest.mark.parametrize(
    ("fault", "at", "left"),
    [
        ("kill", 1, {}),
        ("kill", 2, {"one": 0}),
        ("torn", 2, {"one": 5}),
        ("kill", 3, {"one": 10}),
        ("torn", 8, {"ONE": 10, "two": 10}),
        ("kill", 9, {"ONE": 10, "TWO": 10}),
    ],
)
def test_a_process_dies_at_the_place(
    shim: Path, tmp_path: Path, fault: str, at: int, left: dict[str, int]
) -> None:
    """Nothing of the K-th operation is done, or half of a torn write; the place is noted once."""
    assert write(shim, tmp_path / "p", fault, at).returncode == -signal.SIGKILL
    assert here(tmp_path / "p") == left
    assert len((tmp_path / "fired").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("fault", "at", "failed", "left"),
    [
        ("eio", 3, {"one": errno.EIO}, {"one", "TWO", "THREE"}),
        ("enospc", 3, {"two": errno.ENOSPC}, {"THREE"}),
        ("full", 6, {"two": errno.ENOSPC, "three": errno.ENOSPC}, {"two"}),
    ],
)
def test_an_operation_fails_at_the_place(
    shim: Path, tmp_path: Path, fault: str, at: int, failed: dict[str, int], left: set[str]
) -> None:
    """One operation fails, or from there on all that need room; a rename needs none."""
    done = write(shim, tmp_path / "p", fault, at)
    said = dict(line.split() for line in done.stdout.splitlines())
    assert {name: int(number) for name, number in said.items()} == failed
    assert set(here(tmp_path / "p")) == left


def test_a_place_is_faulted_in_one_process_only(shim: Path, tmp_path: Path) -> None:
    """A worker that takes the place of a killed one is left alone."""
    (tmp_path / "fired").touch()
    assert write(shim, tmp_path / "p", "kill", 2).returncode == 0


MAKER = """
import sqlite3, sys
from pathlib import Path
from sweep.databases import sqlite
from sweep.errors import DiskError
try:
    with sqlite.made_aside(Path("made.db").absolute()) as aside:
        connection = sqlite3.connect(aside)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE descriptors (n)")
        connection.executemany("INSERT INTO descriptors VALUES (?)", ((n,) for n in range(3000)))
        connection.commit()
        connection.close()
except (DiskError, sqlite3.Error) as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize(("fault", "step"), [("kill", 6), ("eio", 6), ("full", 3)])
def test_a_store_is_made_whole_or_not_at_all(
    shim: Path, tmp_path: Path, fault: str, step: int
) -> None:
    """Wherever its maker dies, or the disk refuses a write, no part of a store has its name, and
    whatever else it left is removed at the next start."""
    at, is_reached = 1, True
    while is_reached:
        folder = tmp_path / str(at) / "p"
        folder.parent.mkdir()
        done = run_script(shim, folder, MAKER, fault, at)
        is_reached = (folder.parent / "fired").exists()
        made = folder / "made.db"
        assert done.returncode == 0 or done.stderr.count("\n") == 1 or fault == "kill", done.stderr
        assert made.exists() or done.returncode
        if made.exists():
            assert query(made, "SELECT count(*), sum(n) FROM descriptors") == [(3000, 4498500)]
        sqlite.remove_asides(made)
        left = [path.name for path in folder.iterdir()]
        assert left in (["made.db"], []), (at, done.stderr)
        at += step
    assert at > 20


REPLACER = """
import os, shutil, sys
from pathlib import Path
import optuna
from every_write import Shim
from sweep.ledger.study import create_study, list_studies, open_study
from sweep.ledger.trials import HYPERPARAMETERS
from sweep.trial import TrialFinished, TrialState

def url(folder):
    return f"sqlite:///{folder.absolute()}/optuna.db"

first = Path("first")
ledger, _ = create_study(url(first), "s", "maximize")
ledger.describe({"a": 1}, "space")
lr = optuna.distributions.FloatDistribution(1e-4, 1.0)
for number in range(2):
    ledger.open_trial(number, optuna.trial.create_trial(
        state=optuna.trial.TrialState.RUNNING, params={"lr": 0.1}, distributions={"lr": lr},
        user_attrs={HYPERPARAMETERS: {"lr": 0.1}}))
    record = TrialFinished(number, TrialState.FAIL, 0, None, None, {}, 0)
    ledger.close_trial(record, [], "val_acc")
ledger.close()
at, is_reached = 1, True
while is_reached:
    project = Path(str(at), "p").absolute()
    shutil.copytree(first, project)
    if not (pid := os.fork()):
        ledger, _ = create_study(url(project), "s", "maximize")
        Shim(project, "kill", at).arm()
        ledger.start_over("minimize")
        os._exit(0)
    is_reached = os.waitpid(pid, 0)[1] != 0
    ledger, is_new = create_study(url(project), "s", "minimize")
    if ledger.direction == "maximize":
        ledger.start_over("minimize")
    trials = ledger.trials()
    assert [t.state for t in trials] == ["FAIL", "FAIL"] and not is_new, (at, trials)
    assert [(t.params, t.hyperparameters["lr"]) for t in trials] == [({}, 0.1)] * 2, (at, trials)
    assert (ledger.direction, ledger.config) == ("minimize", {}), at
    ledger.close()
    assert [study.name for study in list_studies(url(project))] == ["s"], at
    at += 9
print(at)
"""


def test_a_study_that_is_made_anew_keeps_its_failed_trials(shim: Path, tmp_path: Path) -> None:
    """Wherever a driver dies that changes the direction of a study, the next one finds the
    study's failed trials, once, and can go on."""
    env = dict(os.environ) | {"LD_PRELOAD": str(shim)}
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), env.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", REPLACER], cwd=tmp_path, env=env, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout) > 60


def test_stores_are_compared_by_what_two_searches_share(six: Path) -> None:
    """A doubled point, a changed parameter, a missing file and a stray one are seen; times and
    ids are not compared."""
    expected = facts(six)
    assert differences(facts(six), expected) == []
    run, point = query(
        six / "mlflow.db",
        "SELECT run_uuid, value FROM metrics WHERE key = 'best_val_acc' LIMIT 1",
    )[0]
    query(
        six / "mlflow.db",
        "INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan) "
        "SELECT key, value, timestamp + 1, run_uuid, step, is_nan FROM metrics "
        "WHERE run_uuid = ? AND key = 'best_val_acc'",
        run,
    )
    query(six / "mlflow.db", "UPDATE params SET value = '0.5' WHERE run_uuid = ?", run)
    gone = next((six / "mlruns" / ".sweep" / "six" / "trials").rglob("best.ckpt"))
    gone.unlink()
    (six / "mlruns" / ".half").touch()
    said = "\n".join(differences(facts(six), expected))
    assert f"[{point!r}, {point!r}] instead of [{point!r}]" in said
    assert "'0.5' instead of" in said
    assert f"missing: file: {gone.relative_to(six)}" in said
    assert "too much: file: mlruns/.half" in said


def test_what_varies_is_only_there() -> None:
    """Of a fact that two searches do not share, only that it is there is compared."""
    expected = stable({"time": 1, "points": [1.0, 5]}, {"time": 2, "points": [1.0, 7]})
    assert expected == {"time": VARIES, "points": [1.0, VARIES]}
    assert differences({"time": 3, "points": [1.0, 9]}, expected) == []
    assert differences({"points": [1.0, 9, 9]}, expected) == [
        "missing: time",
        f"points: [1.0, 9, 9] instead of {[1.0, VARIES]!r}",
    ]


@pytest.mark.usefixtures("shim")
def test_a_search_that_dies_at_any_write_ends_whole() -> None:
    """Wherever a search is killed, or a write of its fails, the same command ends with the stores
    and files of an undisturbed one (all places: make soak)."""
    print(f"seed {SEED} (SWEEP_WRITES_SEED repeats it)")
    done = subprocess.run(
        [sys.executable, every_write.__file__, "--sample", "4", "--seed", str(SEED), "--jobs",
         "2"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 places" in done.stdout
