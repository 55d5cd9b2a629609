"""What a process is started in, and what of it does not count."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from searches import SWEEP
from waiting import PATIENCE_S

from sweep.environment.launchers import (
    PACKAGE_ROOT,
    foreign_set_aside,
    import_path,
    without_foreign,
)
from sweep.environment.sources import defaults_of, defines, unknown_name
from sweep.loading import import_object

LAUNCHED = {
    "RANK": "3", "WORLD_SIZE": "4", "SLURM_NTASKS": "4", "SLURM_PROCID": "3",
    "OMPI_COMM_WORLD_RANK": "3", "PL_TRAINER_MAX_EPOCHS": "1", "TORCHELASTIC_RUN_ID": "x",
    "MLFLOW_RUN_ID": "f" * 32, "MLFLOW_EXPERIMENT_NAME": "other",
}  # fmt: skip


def test_variables_of_launchers_are_left_out() -> None:
    """Those that say who one is among many; the user's own and the addresses of stores stay."""
    own = {"SLURM_JOB_ID": "7", "CUDA_VISIBLE_DEVICES": "2", "MLFLOW_TRACKING_URI": "http://x"}
    assert without_foreign(LAUNCHED | own) == own


def test_they_are_back_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search in a notebook changes nothing for the next cell."""
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("PL_TRAINER_DEVICES", "8")
    with foreign_set_aside():
        assert not {"RANK", "PL_TRAINER_DEVICES"} & os.environ.keys()
    assert (os.environ["RANK"], os.environ["PL_TRAINER_DEVICES"]) == ("3", "8")


def test_a_worker_looks_into_the_standard_library_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then for sweep, then where its driver looks; never into the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), "/opt/mine", *sys.path])
    path = import_path()
    assert "" not in path
    assert str(tmp_path) not in path
    places = [path.index(entry) for entry in (os.path.dirname(os.__file__), PACKAGE_ROOT)]  # noqa: PTH120
    assert [*places, path.index("/opt/mine")] == sorted([*places, path.index("/opt/mine")])


def test_a_named_module_is_found_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its neighbours; files that are called as the standard library's modules are not."""
    (tmp_path / "mine_xyz.py").write_text("import tabnanny\nfrom beside_xyz import two\n")
    (tmp_path / "beside_xyz.py").write_text("two = 2\n")
    (tmp_path / "tabnanny.py").write_text("raise ValueError('this one is not meant')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "tabnanny", raising=False)
    assert import_object("mine_xyz:two", "--module") == 2
    assert sys.path[-1] == str(tmp_path)


STREAMS = """
import os, sys
from sweep.environment.launchers import fill_standard_streams
fill_standard_streams()
os.write(int(sys.argv[1]), b"%d" % os.open("/dev/null", os.O_RDONLY))
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_filled(closed: str) -> None:
    """What is opened next gets a number above 2, whichever of the three are closed."""
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    command = f'exec "$0" -c "$1" {writer} {closed}'
    subprocess.run(["sh", "-c", command, sys.executable, STREAMS], pass_fds=[writer], check=True)
    os.close(writer)
    with os.fdopen(reader) as said:
        assert int(said.read()) > 2


def test_a_terminal_that_is_gone_takes_what_is_written() -> None:
    """Nobody reads it, and nothing fails."""
    ours, theirs = pty.openpty()
    os.close(ours)
    done = subprocess.run(
        [*SWEEP, "spaces"], stdout=theirs, stderr=subprocess.PIPE, timeout=PATIENCE_S, check=False
    )
    os.close(theirs)
    assert (done.returncode, done.stderr) == (0, b"")


def test_no_home_is_no_obstacle() -> None:
    """A user id without an entry in the user database and without HOME, as in some containers."""
    unshare = [shutil.which("unshare") or "unshare", "--user", "--map-user=54321"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces here")
    program = (
        "import sweep.environment.launchers as s; s.ensure_home(); from pathlib import Path;"
        "print(Path.home())"
    )
    env = {k: v for k, v in os.environ.items() if k != "HOME"}
    done = subprocess.run(
        [*unshare, sys.executable, "-c", program], env=env, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.stdout.strip(), done.stderr) == ("/nonexistent", "")


def test_what_a_source_file_defines_is_read_without_running_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Methods of a class and of its bases, the nearest first; a function has none."""
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(
        "class A:\n    def __init__(self, lr=0.1, *, width=8, act=print): ...\n"
        "class B:\n    def __init__(self, lr=0.2): ...\n"
        "    def train_dataloader(self): ...\n"
        "class C(A, B): ...\n"
        "def make(lr=0.3): ...\n"
        "raise SystemExit\n"
    )
    assert defines("own.py:C", "train_dataloader")
    assert not defines("own.py:make", "train_dataloader")
    assert defaults_of("own.py:C") == {"lr": 0.1, "width": 8}
    assert defaults_of("own.py:make") == {"lr": 0.3}
    assert defaults_of("own.py:D") == {}
    assert unknown_name("own.py:Make") == ": module own.py has no 'Make' (did you mean make?)"
    assert unknown_name("none.py:Make") == " cannot be imported: there is no file none.py"
    assert unknown_name("own:C") is None
