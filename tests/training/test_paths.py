"""A trial goes on in the path that it was begun in, whichever a worker trains new trials in."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sweep.files.trial_folder import resume_point, trial_folder
from sweep.testing import ScriptedExchange, example_task
from sweep.training import make_trainer
from sweep.trial import Task, TrainerName, TrialSpec, WorkerReady, derive_seed

N_EPOCHS, N_BEGUN = 4, 2
POPULATION: dict[TrainerName, int] = {"plain": 1, "fused": 3}


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def spec(number: int, trainer: TrainerName | None = None) -> TrialSpec:
    values = {"hidden": (16, 8), "optimizer": "Adam", "lr": 3e-3, "dropout": 0.1}
    return TrialSpec(number, values, derive_seed(0, "init", number), trainer=trainer)


def begun(task: Task, trainer: TrainerName) -> list[TrialSpec]:
    """Trials 0 and 1, interrupted after their second epoch."""
    stops = dict.fromkeys(range(N_BEGUN), 2)
    first = ScriptedExchange([spec(n) for n in range(N_BEGUN)], stops, "interrupted")
    make_trainer(dataclasses.replace(task, population=POPULATION[trainer])).train(first)
    kept = [resume_point(trial_folder(task.work_dir, n)) for n in range(N_BEGUN)]
    return [
        dataclasses.replace(spec(n, trainer), start_epoch=0, resume_from=str(kept[n]))
        for n in range(N_BEGUN)
    ]


@pytest.mark.parametrize(("was", "now"), [("plain", "fused"), ("fused", "plain")])
def test_a_trial_of_the_other_path_goes_on(
    tmp_path: Path, was: TrainerName, now: TrainerName
) -> None:
    """Its curve is that of a trial that never changed, each epoch once; so are its neighbours'."""
    task = example_task(tmp_path, epochs=N_EPOCHS)
    old = begun(task, was)
    task = dataclasses.replace(task, population=POPULATION[now])
    unbegun = spec(2, was)  # handed out, but killed before its first checkpoint
    exchange = ScriptedExchange([*old, unbegun, spec(3, now), spec(4), spec(5)])
    make_trainer(task).train(exchange)

    (ready,) = [r for r in exchange.reports if isinstance(r, WorkerReady)]
    assert ready.trainer == now
    results = exchange.results()
    assert {n: (r.outcome, r.n_epochs) for n, r in results.items()} == dict.fromkeys(
        range(6), ("finished", N_EPOCHS)
    )
    paths = [results[n].notes["sweep.trainer"] for n in range(6)]
    assert paths == [was, was, was, now, now, now]
    for number in range(6):
        told = [(r.epoch, r.is_replay) for r in exchange.epochs(number)]
        n_old = 2 if number < N_BEGUN else 0
        assert told == [(epoch, epoch <= n_old) for epoch in range(1, N_EPOCHS + 1)]

    whole = ScriptedExchange([spec(n) for n in range(6)])
    whole_task = dataclasses.replace(task, work_dir=str(tmp_path / "whole"), population=1)
    make_trainer(whole_task).train(whole)
    for number in range(6):
        rel = 0.0 if paths[number] == "plain" else 1e-4
        expected = pytest.approx(whole.curve(number, "val_loss"), rel=rel)
        assert exchange.curve(number, "val_loss") == expected


def test_a_trial_of_the_other_path_can_be_stopped(tmp_path: Path) -> None:
    """An order reaches it at its epoch's end, and nothing is started in its place by then."""
    task = example_task(tmp_path, epochs=N_EPOCHS, population=1)
    exchange = ScriptedExchange([spec(0, "fused"), spec(1), spec(2)], {0: 2, 1: 1})
    make_trainer(task).train(exchange)
    results = exchange.results()
    assert [(results[n].outcome, results[n].n_epochs) for n in range(3)] == [
        ("stopped", 2),
        ("stopped", 1),
        ("finished", N_EPOCHS),
    ]


def test_what_is_left_of_a_larger_population_is_fused(tmp_path: Path) -> None:
    """A population of 1 is the plain path only where it was asked for."""
    for was_larger, trainer in ((True, "fused"), (False, "plain")):
        exchange = ScriptedExchange([spec(0)])
        task = example_task(tmp_path, epochs=1, population=1, was_larger=was_larger)
        make_trainer(task).train(exchange)
        assert exchange.results()[0].notes["sweep.trainer"] == trainer
