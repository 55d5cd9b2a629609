"""A trial may be judged, interrupted and resumed within an epoch, bit for bit."""

from __future__ import annotations

import dataclasses
import gc
import multiprocessing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from sweep.files.trial_files import BEST, RESUME_STATE, TrialFiles
from sweep.testing import ScriptedExchange, example_task
from sweep.training.lightning_trainer import hush_lightning
from sweep.training.plain.trainer import PlainTrainer
from sweep.trial import EPOCHS_DONE, Notice, Pulse, StopReason, Task, TrialSpec

EPOCHS, N_STEPS = 2, 20
"""80 samples in minibatches of four."""


def a_task(
    folder: Path, trainer: Mapping[str, Any], data: Mapping[str, Any], module: str = "Scheduled"
) -> Task:
    return example_task(
        folder, module=f"projects:{module}", data="projects:Loaded", metric="val_loss",
        direction="minimize", epochs=EPOCHS, population=1, log_models="none",
        checkpoint_interval_s=0.0, config={"trainer": dict(trainer), "data": dict(data)},
    )  # fmt: skip


def trained(
    task: Task, *, is_resumed: bool = False, stop_within: int | None = None,
    stop_after: int | None = None, reason: StopReason = "interrupted", **given: Any,
) -> ScriptedExchange:  # fmt: skip
    """One trial; stopped after so many pulses or reports."""
    spec = TrialSpec(0, given or {"lr": 0.03}, 11, is_resumed=is_resumed)
    exchange = ScriptedExchange(
        [spec], {} if stop_after is None else {0: stop_after}, reason,
        {} if stop_within is None else {0: stop_within},
    )  # fmt: skip
    PlainTrainer(task).train(exchange)
    assert exchange.results()[0].failure is None
    return exchange


def curve(exchange: ScriptedExchange) -> list[dict[str, float]]:
    """All metrics of each report, but times and the mean of a torn epoch."""
    left_out = ("epoch_s", "loss")
    return [{k: v for k, v in r.metrics.items() if k not in left_out} for r in exchange.epochs(0)]


def best_weights(task: Task) -> dict[str, torch.Tensor]:
    kept = TrialFiles(task.work_dir, 0).path(BEST)
    return dict(torch.load(kept, weights_only=True)["state_dict"])


CASES: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]] = {
    "shuffled": ({}, {}, {}),
    "validated often": ({"val_check_interval": 5}, {}, {}),
    "a stream": ({}, {"kind": "stream"}, {}),
    "a stream, validated often": ({"val_check_interval": 7}, {"kind": "stream"}, {}),
    "drawn in its loaders": ({}, {"kind": "drawn"}, {}),
    "a stream, drawn in its loaders": ({}, {"kind": "drawn stream"}, {}),
    "a part of a stream": ({"limit_train_batches": 15}, {"kind": "stream"}, {}),
    "a loader with a state": ({}, {"kind": "stateful"}, {}),
    "validated at each step": ({"val_check_interval": 1}, {}, {}),
    "validated as it accumulates": (
        {"val_check_interval": 2, "accumulate_grad_batches": 2}, {}, {},
    ),
    "own generator": ({}, {"kind": "own generator"}, {}),
    "worker processes": ({}, {"kind": "workers"}, {}),
    "two loaders": ({}, {"kind": "two"}, {}),
    "accumulated": ({"accumulate_grad_batches": 3}, {}, {}),
    "by hand": ({}, {}, {"by_hand": True}),
    "made anew each epoch": ({"reload_dataloaders_every_n_epochs": 1}, {}, {}),
    "a part of the data": ({"limit_train_batches": 0.8}, {}, {}),
    "steps, not epochs": (
        {"max_steps": 33, "val_check_interval": 8, "check_val_every_n_epoch": None}, {}, {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_trial_goes_on_within_an_epoch(tmp_path: Path, case: str) -> None:
    """Interrupted in both epochs and resumed, it gives the same curve and weights, bit for bit."""
    hush_lightning()
    trainer, data, given = CASES[case]
    whole_task = a_task(tmp_path / "whole", trainer, data)
    whole = trained(whole_task, **given)
    task = a_task(tmp_path / "parts", trainer, data)
    stops = (2, 7) if case in ("accumulated", "validated as it accumulates") else (4, 22)
    first = trained(task, stop_within=stops[0], **given)
    assert first.results()[0].outcome == "stopped"
    second = trained(task, is_resumed=True, stop_within=stops[1], **given)
    assert second.results()[0].outcome == "stopped"
    assert len(first.epochs(0)) < len(second.epochs(0)) < len(whole.epochs(0))
    rest = trained(task, is_resumed=True, **given)
    assert curve(rest) == curve(whole)
    assert "within an epoch" in " ".join(n.message for n in rest.reports if isinstance(n, Notice))
    ours, theirs = best_weights(task), best_weights(whole_task)
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_each_validation_within_an_epoch_is_a_report(tmp_path: Path) -> None:
    """Four validations an epoch are four reports, which say how much of it is done."""
    task = a_task(tmp_path, {"val_check_interval": 0.25}, {})
    exchange = trained(task)
    reports = exchange.epochs(0)
    assert [r.epoch for r in reports] == list(range(1, 9))
    assert [r.epochs_done for r in reports] == [i / 4 for i in range(1, 9)]
    assert all("val_loss" in r.metrics for r in reports)
    result = exchange.results()[0]
    values = [r.metrics["val_loss"] for r in reports]
    assert result.best_epoch == 1 + values.index(min(values))
    assert result.n_epochs == 8
    kept = torch.load(TrialFiles(task.work_dir, 0).path(BEST), weights_only=True)
    assert kept["global_step"] == 5 * result.best_epoch
    assert kept["epoch"] == (result.best_epoch - 1) // 4


def test_a_trial_is_pruned_within_an_epoch(tmp_path: Path) -> None:
    """It ends at that validation: no step and no report comes after it."""
    exchange = trained(
        a_task(tmp_path, {"val_check_interval": 5}, {}), stop_after=2, reason="pruned"
    )
    result = exchange.results()[0]
    assert (result.outcome, result.n_epochs) == ("stopped", 2)
    assert [r.metrics[EPOCHS_DONE] for r in exchange.epochs(0)] == [0.25, 0.5]


def test_a_late_trial_ends_between_two_steps(tmp_path: Path) -> None:
    """A time limit holds within an epoch; what was trained since the last report is dropped."""
    exchange = trained(a_task(tmp_path, {}, {}), stop_within=3, reason="timeout")
    result = exchange.results()[0]
    assert (result.outcome, result.n_epochs, result.best_epoch) == ("stopped", 0, None)
    assert sum(isinstance(r, Pulse) for r in exchange.reports) == 3


def test_without_a_validation_within_it_an_epoch_is_one_report(tmp_path: Path) -> None:
    """As ever: epochs count from 1, and nothing is said of parts."""
    reports = trained(a_task(tmp_path, {}, {})).epochs(0)
    assert [(r.epoch, r.epochs_done) for r in reports] == [(1, 1), (2, 2)]
    assert not any(EPOCHS_DONE in r.metrics for r in reports)


def test_a_resume_file_of_an_epochs_end_has_no_place(tmp_path: Path) -> None:
    """Interrupted at an epoch's end, the next epoch draws its own order."""
    task = a_task(tmp_path, {}, {})
    trained(task, stop_after=1)
    kept = torch.load(TrialFiles(task.work_dir, 0).path(RESUME_STATE), weights_only=True)
    assert kept["sweep"]["places"] == []
    assert curve(trained(task, is_resumed=True)) == curve(
        trained(dataclasses.replace(task, work_dir=task.work_dir + "/whole"))
    )


@pytest.mark.parametrize("kind", ["persistent", "combined"])
def test_a_loader_is_used_by_one_trial_after_the_other(tmp_path: Path, kind: str) -> None:
    """A DataModule that is kept, and with it its loader, trains each of them to its end."""
    task = a_task(tmp_path, {}, {"kind": kind})
    specs = [TrialSpec(number, {"lr": 0.03}, 11) for number in range(3)]
    exchange = ScriptedExchange(specs)
    PlainTrainer(task).train(exchange)
    assert [r.failure for r in exchange.results().values()] == [None] * 3
    assert [len(exchange.epochs(number)) for number in range(3)] == [EPOCHS] * 3


def test_loader_processes_leave_with_their_trial(tmp_path: Path) -> None:
    """An epoch that was left leaves none to the garbage collector, which would wait for each."""
    gc.disable()
    try:
        trained(a_task(tmp_path, {}, {"kind": "workers"}), stop_within=4)
        assert multiprocessing.active_children() == []
    finally:
        gc.enable()


def test_a_module_may_look_at_its_training_data(tmp_path: Path) -> None:
    """A loop over the loader in a hook leaves the Trainer's own as it is."""
    looking = trained(a_task(tmp_path / "looking", {"val_check_interval": 5}, {}, "Looking"))
    assert [r.epochs_done for r in looking.epochs(0)] == [i / 4 for i in range(1, 9)]


def test_a_module_that_collects_in_an_epoch_starts_over(tmp_path: Path) -> None:
    """What it collected is lost with the process: it trains from its beginning, and does not
    fail."""
    task = a_task(tmp_path, {}, {}, "Collecting")
    whole = trained(dataclasses.replace(task, work_dir=task.work_dir + "/whole"))
    trained(task, stop_within=4)
    rest = trained(task, is_resumed=True)
    assert curve(rest)[-EPOCHS:] == curve(whole)
    assert "from its beginning" in " ".join(
        n.message for n in rest.reports if isinstance(n, Notice)
    )


def test_a_wish_to_stop_that_is_not_granted_ends_no_reports(tmp_path: Path) -> None:
    """Validations are reported until `min_epochs` is met."""
    trainer = {"val_check_interval": 5, "min_epochs": 2}
    exchange = trained(a_task(tmp_path, trainer, {}, "Stopping"))
    assert [r.epochs_done for r in exchange.epochs(0)] == [i / 4 for i in range(1, 9)]


def test_a_trial_of_steps_goes_on_after_an_epoch(tmp_path: Path) -> None:
    """With `max_steps` an interruption at an epoch's end adds no epoch."""
    trainer = {"max_steps": 33}
    whole_task = a_task(tmp_path / "whole", trainer, {})
    task = a_task(tmp_path / "parts", trainer, {})
    whole = trained(whole_task)
    trained(task, stop_after=1)
    assert curve(trained(task, is_resumed=True)) == curve(whole)
