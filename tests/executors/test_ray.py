"""Workers on a Ray cluster: the executors' contract, nodes that come and go, its faults."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_nodes import COUNTED, Nodes
from searches import environment, inline, start_sweep, sweep
from waiting import wait_until

pytest.importorskip("ray", reason="Ray is not installed: pip install 'sweep[ray]'")

from sweep.executors.ray import RayExecutor
from sweep.ledger.study import open_study
from sweep.protocols import Executor
from sweep.testing import ExecutorContract

SEARCH = ("run", "--module", "counted.py:Counted", "--vary", "lr=1e-3..0.3:log", "--study", "s",
          "--trials", "4", "--epochs", "5", "--population", "3", "--metric", "val_loss",
          "--checkpoint-interval", "0.2", "--executor", "ray", "--ray-address")  # fmt: skip


def can_hide(folder: Path) -> bool:
    """Whether a process may have mounts of its own."""
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "none", str(folder)]
    return (
        bool(shutil.which("unshare"))
        and not subprocess.run(command, capture_output=True, check=False).returncode
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """A driver's folder, of which the nodes see no results."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "mlruns").mkdir()
    (folder / "counted.py").write_text(COUNTED)
    shutil.copyfile(empty_store, folder / "mlflow.db")
    return folder


@pytest.fixture(scope="module")
def one_node(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A cluster with one node; a test that kills it adds another."""
    results = home / "mlruns"
    nodes = Nodes(tmp_path_factory.mktemp("ray"), 1, results if can_hide(results) else None)
    yield nodes
    nodes.close()


@pytest.fixture(autouse=True)
def its_address(one_node: Nodes, request: pytest.FixtureRequest) -> None:
    """For the contract's class; epochs are counted from here."""
    one_node.forget()
    if request.instance is not None:
        request.instance.address = one_node.address


class TestRayExecutor(ExecutorContract):
    """The contract, with an actor on a node."""

    address: str

    def make_executor(self) -> Executor:
        return RayExecutor(1, self.address)


@pytest.mark.usefixtures("ready_store")
def test_a_killed_driver_leaves_no_worker(one_node: Nodes, tmp_path: Path) -> None:
    """Actor and worker end with it, also in the midst of an epoch."""
    (tmp_path / "counted.py").write_text(COUNTED)
    driver = start_sweep(tmp_path, *SEARCH, one_node.address)
    wait_until(one_node.epochs)
    assert one_node.workers()
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    wait_until(lambda: not one_node.workers())


def test_nodes_join_and_leave_a_search(one_node: Nodes, home: Path) -> None:
    """The only node dies in the midst of trials, which end on a new one; no disk is shared."""
    nodes = one_node
    driver = start_sweep(home, *SEARCH, nodes.address)
    wait_until(lambda: any(epoch == "2" for _, _, epoch in nodes.epochs()))
    nodes.tell("add")
    nodes.tell("kill")
    out, err = driver.communicate()
    assert driver.returncode == 0, err
    assert 'notice="trial 0 is tried again: its machine left the cluster"' in out
    trials = open_study(f"sqlite:///{home}/mlruns/optuna.db", "s").trials()
    assert [(t.number, str(t.state)) for t in trials] == [(n, "COMPLETE") for n in range(4)]
    assert all([r.epoch for r in t.reports] == [1, 2, 3, 4, 5] for t in trials)
    doctor = inline(home, "doctor", "s")
    assert doctor.stdout == "s: 0 disagreements, 0 left\n"  # all files are there
    trained = [(lr, epoch) for _, lr, epoch in nodes.epochs() if epoch != "0"]  # 0 is tried first
    assert {node for node, _, epoch in nodes.epochs() if epoch != "0"} == {"0", "1"}
    assert len(trained) - len(set(trained)) <= 3 * 2  # of three trials, two epochs at most each
    wait_until(lambda: not nodes.workers())


def test_an_address_without_a_cluster_is_one_line(tmp_path: Path) -> None:
    """Said within seconds, before anything is made."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    done = sweep(tmp_path, "run", "--executor", "ray", "--ray-address", address)
    assert done.returncode == 2
    assert done.stderr.startswith(f"sweep: --executor ray: no cluster at --ray-address {address} ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "mlruns").exists()


def test_without_ray_it_is_said_how_to_get_it(tmp_path: Path) -> None:
    """One sentence with the command."""
    program = (
        "import sys; sys.modules['ray'] = None; sys.argv[1:] = ['run', '--executor', 'ray']; "
        "from sweep.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment(), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "sweep: --executor ray needs Ray: pip install 'sweep[ray]'\n"
    assert not list(tmp_path.iterdir())
