"""A trial may change its engine: each writes the resume file that Lightning would write."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sweep.files.trial_files import BEST, RESUME_STATE, TrialFiles
from sweep.testing import ScriptedExchange, example_task
from sweep.training import make_trainer
from sweep.trial import Notice, Task, TrialSpec, derive_seed

N_EPOCHS, N_BEGUN = 4, 2
POPULATION = {"plain": 1, "fused": 64}
OPTIMIZERS: list[dict[str, Any]] = [
    {"optimizer": "SGD", "lr": 0.05},
    {"optimizer": "SGD", "lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3},
    {"optimizer": "Adam", "weight_decay": 1e-3},
    {"optimizer": "AdamW", "beta1": 0.8},
    {"optimizer": "NAdam", "weight_decay": 1e-3},
    {"optimizer": "RMSprop", "lr": 1e-3, "alpha": 0.9},
    {"optimizer": "RMSprop", "lr": 1e-3, "momentum": 0.5},
    {"optimizer": "RMSprop", "lr": 1e-3, "momentum": 0.5, "centered": True},
]
SCHEDULES = ("constant", "cosine", "step", "one_cycle")
SPECS = [
    TrialSpec(
        number,
        {
            "hidden": ((12, 6), (), (20,), (5, 9, 4))[number % 4], "lr": 5e-3, **optimizer,
            "schedule": SCHEDULES[number % 4], "dropout": 0.3 * (number % 2),
            "clip_norm": None if number % 3 else 0.3, "batch_size": 256 if number % 5 else 300,
        },
        derive_seed(0, "init", number),
        start_epoch=number % 3,
    )
    for number, optimizer in enumerate(OPTIMIZERS)
]  # fmt: skip


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def trained(task: Task, engine: str, specs: list[TrialSpec], **stops: Any) -> ScriptedExchange:
    exchange = ScriptedExchange(specs, stops.get("after", {}), "interrupted")
    make_trainer(dataclasses.replace(task, population=POPULATION[engine])).train(exchange)
    return exchange


def begun(task: Task, engine: str) -> list[TrialSpec]:
    """All trials, interrupted after their second epoch."""
    trained(task, engine, SPECS, after={spec.number: N_BEGUN for spec in SPECS})
    return [dataclasses.replace(spec, is_resumed=True) for spec in SPECS]


def load(task: Task, number: int, name: str) -> Any:
    return torch.load(TrialFiles(task.work_dir, number).path(name), weights_only=True)


@pytest.mark.parametrize(("was", "now"), [("plain", "fused"), ("fused", "plain")])
def test_a_trial_goes_on_in_another_engine(tmp_path: Path, was: str, now: str) -> None:
    """Every optimizer, schedule, dropout and clipping: the curve and the best weights are those of
    a trial that never changed (float64), its old epochs are told as replays."""
    task = example_task(tmp_path, epochs=N_EPOCHS, precision="64-true")
    rest = trained(task, now, begun(task, was))
    whole_task = dataclasses.replace(task, work_dir=str(tmp_path / "whole"))
    whole = trained(whole_task, was, SPECS)
    assert not [r for r in rest.reports if isinstance(r, Notice)]
    for spec in SPECS:
        number = spec.number
        told = [(r.epoch, r.is_replay) for r in rest.epochs(number)]
        assert told == [(epoch, epoch <= N_BEGUN) for epoch in range(1, N_EPOCHS + 1)]
        for metric in ("train_loss", "val_loss", "val_acc"):
            expected = pytest.approx(whole.curve(number, metric), rel=1e-7)
            assert rest.curve(number, metric) == expected, spec
        ours, theirs = rest.results()[number], whole.results()[number]
        assert (ours.outcome, ours.best_epoch) == (theirs.outcome, theirs.best_epoch)
        assert ours.notes["sweep.trainer"] == now
        right = load(whole_task, number, BEST)
        kept = load(task, number, BEST)
        assert kept["global_step"] == right["global_step"]
        for name, value in kept["state_dict"].items():
            # torch keeps NAdam's product of momenta in float32.
            near = 1e-5 if spec.hyperparameters["optimizer"] == "NAdam" else 1e-7
            torch.testing.assert_close(value, right["state_dict"][name], rtol=near, atol=1e-8)


def test_both_engines_write_one_format(tmp_path: Path) -> None:
    """Numbers to rounding; what Lightning has beside them, its defaults fill in."""
    files = {}
    for engine in POPULATION:
        task = example_task(tmp_path / engine, epochs=N_EPOCHS, precision="64-true")
        files[engine] = [load(task, s.number, RESUME_STATE) for s in begun(task, engine)]
    for ours, theirs in zip(files["fused"], files["plain"], strict=True):
        assert_within(ours, theirs, "")


TIMES = {"history"}  # with the time of each epoch


def assert_within(ours: Any, theirs: Any, at: str) -> None:
    """Whatever the fused file has is in Lightning's, with the same value."""
    if isinstance(ours, dict):
        for name in ours.keys() - TIMES:
            # torch's SGD counts no steps and RMSprop has only the buffers that it needs.
            is_unused = ".state." in at and name in ("step", "momentum_buffer", "grad_avg")
            if not (is_unused and name not in theirs):
                assert_within(ours[name], theirs[name], f"{at}.{name}")
    elif isinstance(ours, torch.Tensor):
        torch.testing.assert_close(
            ours.double(), theirs.double(), rtol=1e-6, atol=1e-12, msg=lambda text: at + text
        )
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs), at
        for index, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_within(*pair, f"{at}.{index}")
    elif isinstance(ours, float):
        assert ours == pytest.approx(theirs, rel=1e-9), at
    else:
        assert ours == theirs, at


def test_what_is_left_of_a_larger_population_is_fused(tmp_path: Path) -> None:
    """A population of 1 is the plain engine only where it was asked for."""
    for was_larger, engine in ((True, "fused"), (False, "plain")):
        exchange = ScriptedExchange(SPECS[:1])
        task = example_task(tmp_path, epochs=1, population=1, was_larger=was_larger)
        make_trainer(task).train(exchange)
        assert exchange.results()[0].notes["sweep.trainer"] == engine
