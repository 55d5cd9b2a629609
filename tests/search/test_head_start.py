"""The start of a search: workers load first, and nothing is recorded before one is ready."""

from __future__ import annotations

import gc
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from searches import SIX_SPACE, Call, ScriptedStudy, rising

from sweep.loading import libraries_set_aside
from sweep.testing import DATASET, ScriptedTrainer
from sweep.trial import (
    EpochReport,
    Orders,
    TrialResult,
    TrialSpec,
    WorkerReady,
)
from sweep.trial import TrialStarted as Started


@pytest.fixture
def study(tmp_path: Path) -> ScriptedStudy:
    """A study with an endless space."""
    return ScriptedStudy(tmp_path)


def ready(n_slots: int = 2) -> WorkerReady:
    """A worker's first words."""
    return WorkerReady(DATASET, "cpu", n_slots, 0)


def numbers(orders: Orders) -> list[int]:
    """Of the trials to start."""
    return [spec.number for spec in orders.start]


def test_the_first_trials_wait_for_a_worker(study: ScriptedStudy) -> None:
    """Recorded and told when they are handed out; no more than are wanted."""
    search = study.prepare(study.config(trials=3))
    assert not search.trials
    assert not search.listener.records
    orders = search.driver.exchange([ready()], 2)
    assert (numbers(orders), orders.is_last) == ([0, 1], False)
    assert search.states() == ["RUNNING"] * 2
    first, *others = search.listener.records
    assert isinstance(first, WorkerReady)
    assert [r.number for r in others if isinstance(r, Started)] == [0, 1]
    reports = [EpochReport(0, 1, {"val_acc": 0.5}, 0), TrialResult(0, "finished", 1)]
    orders = search.driver.exchange(reports, 1)
    assert (numbers(orders), orders.is_last) == ([2], True)


def test_a_stop_before_the_first_worker_leaves_nothing(study: ScriptedStudy) -> None:
    """No trial was begun, so none is recorded, told or proposed."""
    search = study.prepare(study.config(trials=2))
    search.driver.request_stop("interrupted")
    orders = search.driver.exchange([ready()], 2)
    assert (orders.start, orders.is_last) == ((), True)
    assert [type(r) for r in search.listener.records] == [WorkerReady]
    assert not search.trials


def test_interrupted_trials_come_before_new_ones(study: ScriptedStudy) -> None:
    """Under their numbers and with their configurations."""
    first = study.prepare(study.config(trials=4))
    before = first.driver.exchange([ready()], 2).start
    first.leave()  # the driver is gone
    again = study.prepare(study.config(trials=4))
    started: list[TrialSpec] = []
    ScriptedTrainer(lambda spec: started.append(spec) or rising(spec), 4).train(
        again.driver.exchange
    )
    assert [t.number for t in started] == [0, 1, 2, 3]
    assert [t.hyperparameters for t in started[:2]] == [t.hyperparameters for t in before]
    assert again.states() == ["COMPLETE"] * 4


def test_a_space_that_ends_early(tmp_path: Path) -> None:
    """Six configurations are all there are: the search ends with them."""
    study = ScriptedStudy(tmp_path, SIX_SPACE)
    search = study.prepare(study.config(trials=10))
    ScriptedTrainer(rising, 4).train(search.driver.exchange)
    assert search.states() == ["COMPLETE"] * 6
    assert search.driver.reason == "exhausted"


def test_the_epoch_in_which_a_trial_begins_is_kept(study: ScriptedStudy) -> None:
    """The ledger has it before another report is taken."""
    search = study.prepare(study.config(trials=3))
    exchange = search.driver.exchange
    exchange([ready()], 1)
    exchange([EpochReport(0, 3, {"val_acc": 0.5}, 0), TrialResult(0, "finished", 3)], 1)
    assert search.trials[1].start_epoch == 0
    exchange([EpochReport(1, 1, {"val_acc": 0.5}, 0, start_epoch=8)], 0)
    assert search.trials[1].start_epoch == 8


@pytest.mark.filterwarnings("ignore")
def test_a_worker_that_cannot_load_binds_nobody(tmp_path: Path, call: Call) -> None:
    """A wrong module is said by the worker, when all else stands ready; then another is taken."""
    Path("space.yaml").write_text("parameters:\n  lr: {float: [0.001, 0.1]}\n")
    (tmp_path / "mine.py").write_text("")
    wrong = ("--study", "one", "--space", "space.yaml", "--trials", 1, "--epochs", 1)
    code, _, errors = call("run", *wrong, "--module", "mine:Modell")
    assert (code, len(errors)) == (2, 1), errors
    right = ("--trials", 1, "--epochs", 2, "--executor", "inline")
    code, out, errors = call("run", *wrong[:4], *right)
    assert (code, errors) == (0, []), (out, errors)
    folder = tmp_path / "mlruns" / ".sweep" / "one"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_workers_load_before_optuna_does(tmp_path: Path) -> None:
    """A new search has its workers started by the time that Optuna is imported."""
    program = (
        "import sys, sweep.api as api\n"
        "from sweep.search.tasks import begin_loading\n"
        "resolved, _ = api.prepare({'study': 'new', 'executor': 'inline'}, None)\n"
        "begin_loading(resolved.config)\n"
        "print([name for name in ('optuna', 'sqlalchemy', 'mlflow') if name in sys.modules])\n"
    )
    command = [sys.executable, "-c", program]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_the_collector_gets_back_what_it_had() -> None:
    """Set aside within, and as before after; what somebody else set aside stays."""
    assert gc.get_freeze_count() == 0
    with libraries_set_aside():
        assert gc.get_freeze_count() > 0
        with libraries_set_aside():
            pass
        assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() == 0
