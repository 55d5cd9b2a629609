"""One trial on several devices: two CPU processes here, as Lightning's DDP trains it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import rank_code
import torch
from searches import children_of
from torch.nn import functional

from sweep.data.tensors import Batches, Split
from sweep.files.trial_files import BEST, RESUME_STATE, TrialFiles
from sweep.testing import ScriptedExchange, example_task
from sweep.training.plain.trainer import PlainTrainer
from sweep.trial import Notice, Pulse, Task, TrialSpec

EPOCHS, SEED = 4, 11
DROPPING = {"lr": 0.05, "dropout": 0.2}


def a_task(folder: Path, n_devices: int = 2, **changes: Any) -> Task:
    folder.joinpath("example").mkdir()
    values: dict[str, Any] = {
        "module": "rank_code:Shared", "data": "rank_code:Rows", "metric": "val_loss",
        "direction": "minimize", "epochs": EPOCHS, "population": 1, "devices": str(n_devices),
        "strategy": "ddp", "log_models": "none", "checkpoint_interval_s": 0.0,
    }  # fmt: skip
    return example_task(folder, **values | changes)


def trained(
    task: Task, *trials: Mapping[str, Any], is_resumed: bool = False, **orders: Any
) -> ScriptedExchange:
    """Train these trials; afterwards no process of them is left."""
    before = children_of(os.getpid())
    specs = [TrialSpec(n, values, SEED, is_resumed=is_resumed) for n, values in enumerate(trials)]
    exchange = ScriptedExchange(specs, **orders)
    PlainTrainer(task).train(exchange)
    assert children_of(os.getpid()) == before
    return exchange


def curve(exchange: ScriptedExchange, number: int = 0) -> list[float]:
    """The objective by epoch."""
    return exchange.curve(number, "val_loss")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, ScriptedExchange]:
    """A trial on two devices, and one that is pruned after its second epoch."""
    task = a_task(tmp_path_factory.mktemp("both"), log_models="all")
    return task, trained(task, {"lr": 0.05}, DROPPING, stop_after={1: 2})


def test_two_devices_are_one_with_the_doubled_batch(
    both: tuple[Task, ScriptedExchange], tmp_path: Path
) -> None:
    """The same curve within 1e-3, also of a metric that the module does not reduce."""
    alone = trained(a_task(tmp_path, 1), {"lr": 0.05, "batch_size": 16, "order": SEED})
    for name in ("train_loss", "val_loss"):
        curves = [one.curve(0, name) for one in (both[1], alone)]
        assert curves[0] == pytest.approx(curves[1], abs=1e-3)
        assert len(set(curves[0])) == EPOCHS
    assert both[1].results()[0].notes["sweep.trainer"] == "plain, 2 devices"


def test_a_pruned_trial_stops_on_all_devices(both: tuple[Task, ScriptedExchange]) -> None:
    """Its ranks are gone (`trained`), and it keeps its best checkpoint."""
    result = both[1].results()[1]
    assert (result.outcome, result.n_epochs, result.has_checkpoint) == ("stopped", 2, True)
    assert not (TrialFiles(both[0].work_dir, 1).folder / "ranks").exists()


def test_the_checkpoint_is_one_devices(both: tuple[Task, ScriptedExchange]) -> None:
    """It loads as any other, and has the weights of the best epoch."""
    task, exchange = both
    result = exchange.results()[0]
    model = rank_code.Shared.load_from_checkpoint(
        TrialFiles(task.work_dir, 0).path(BEST), map_location="cpu", weights_only=True
    ).eval()
    x, y = rank_code.Rows().sets[1][:]
    with torch.no_grad():
        loss = functional.mse_loss(model(x), y).item()
    assert loss == pytest.approx(curve(exchange)[result.best_epoch - 1], rel=1e-4)
    assert result.has_model


def test_an_interrupted_trial_goes_on_exactly(
    both: tuple[Task, ScriptedExchange], tmp_path: Path
) -> None:
    """From within an epoch, with each rank's dropout, to the very curve of one go; also where one
    rank comes later than the other."""
    task, late = a_task(tmp_path), DROPPING | {"misdeed": "late"}
    begun = trained(task, late, reason="interrupted", stop_within={0: 3})
    assert len([r for r in begun.reports if isinstance(r, Pulse)]) == 3
    assert begun.results()[0].outcome == "stopped"
    kept = torch.load(TrialFiles(task.work_dir, 0).path(RESUME_STATE), weights_only=True)
    assert len(kept["sweep"]["ranks"]) == 2
    assert kept["sweep"]["places"]
    rest = trained(task, late, is_resumed=True)
    assert curve(rest)[:2] == curve(both[1], 1)
    assert rest.results()[0].outcome == "finished"


def test_what_goes_wrong_in_one_rank_is_the_trials_failure(tmp_path: Path) -> None:
    """Within seconds: an error of rank 1 is told as it is; its death costs no epoch."""
    task = a_task(tmp_path)
    wrong = [DROPPING | {"misdeed": how, "nap_s": 0.01} for how in ("raise", "die")]
    began_s = time.monotonic()
    exchange = trained(task, *wrong)
    assert time.monotonic() - began_s < 120
    raised, died = (exchange.results()[n].failure for n in range(2))
    assert raised is not None
    assert (raised.kind, "only in rank 1" in raised.message) == ("exception", True)
    assert died is not None
    assert (died.kind, died.is_transient) == ("killed", True)
    assert died.message == "rank 1 of the trial was ended by SIGKILL (out of memory?)"
    assert not TrialFiles(task.work_dir, 0).path(RESUME_STATE).exists()
    assert TrialFiles(task.work_dir, 1).path(RESUME_STATE).exists()


def test_what_one_rank_cannot_load_or_save_leaves_no_other_waiting(tmp_path: Path) -> None:
    """If it cannot load the resume file, all start over, which is said; if it cannot save its
    state, that is the trial's failure."""
    task, hooks = a_task(tmp_path), DROPPING | {"misdeed": "hooks", "at": 1}
    trained(task, hooks, reason="interrupted", stop_within={0: 3})
    again = trained(task, hooks, is_resumed=True)
    notices = [report.message for report in again.reports if isinstance(report, Notice)]
    (said,) = [text for text in notices if "cannot be used" in text]
    assert said.startswith("trial 0 starts from its beginning")
    assert said.endswith("cannot be loaded in rank 1")
    failure = again.results()[0].failure
    assert failure is not None
    assert "cannot be saved in rank 1" in failure.message


@pytest.mark.parametrize("seed", [None, 3])
def test_resident_samples_are_shared_out(seed: int | None) -> None:
    """Two devices see what one sees in a minibatch of the doubled size; shares are equal."""
    split = Split(torch.arange(10.0).unsqueeze(1), torch.arange(10))
    whole = [y.tolist() for _, y in Batches(split, 4, seed)]
    parts = [Batches(split, 2, seed) for _ in range(2)]
    for rank, part in enumerate(parts):
        part.part = rank, 2
        assert len(part) == 3
    seen = [[y.tolist() for _, y in part] for part in parts]
    assert [sorted([*a, *b]) for a, b in zip(*seen, strict=True)] == [sorted(b) for b in whole]
