"""An interrupted trial goes on as if nothing had happened, in both trainers."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from resume_driver import (
    N_EPOCHS,
    TRAINERS,
    Driver,
    a_task,
    both,
    continued,
    spec,
    train,
    weights_of,
)

from sweep.data.tensors import TensorData
from sweep.files.trial_files import RESUME_STATE, TrialFiles
from sweep.training.compiled.kernel import load_kernel
from sweep.training.fused.trainer import FusedTrainer
from sweep.training.plain.trainer import PlainTrainer
from sweep.trial import (
    Notice,
    Orders,
    Report,
    Task,
    TrialSpec,
)

HERE = Path(__file__).parent
# --- the plain path, bit for bit

CONFIGURATIONS = [
    {"optimizer": "SGD", "lr": 0.05, "momentum": 0.9, "nesterov": True, "schedule": "cosine"},
    {"optimizer": "Adam", "schedule": "one_cycle", "dropout": 0.3},
    {"optimizer": "RMSprop", "lr": 1e-3, "momentum": 0.5, "centered": True, "schedule": "step"},
    {"optimizer": "AdamW", "clip_norm": 0.5, "dropout": 0.2, "batch_size": 48},
]


def assert_goes_on_exactly(
    task: Task, given: TrialSpec, data: TensorData, n_done: int, path: str = "plain"
) -> None:
    """Bit for bit: curve, best epoch, best weights, trained once whole and once in two parts."""
    trainer = TRAINERS[path]
    whole_task = dataclasses.replace(task, work_dir=task.work_dir + "/whole")
    whole = train(trainer(whole_task, data), [given])
    first = train(trainer(task, data), [given], {given.number: n_done})
    assert (first.result(given.number).outcome, len(first.curve(given.number))) == (
        "stopped",
        n_done,
    )
    rest = train(trainer(task, data), [continued(task, given)])
    assert rest.curve(given.number) == whole.curve(given.number)
    assert [r.is_replay for r in rest.epochs(given.number)] == [
        e <= n_done for e in range(1, task.epochs + 1)
    ]
    ours, theirs = rest.result(given.number), whole.result(given.number)
    assert (ours.outcome, ours.n_epochs, ours.best_epoch) == (
        theirs.outcome, theirs.n_epochs, theirs.best_epoch,
    )  # fmt: skip
    right, found = weights_of(whole_task, theirs), weights_of(task, ours)
    assert all(torch.equal(value, right[name]) for name, value in found.items())
    assert [n.message for n in rest.of(Notice)] == [n.message for n in whole.of(Notice)]


@pytest.mark.parametrize("number", range(len(CONFIGURATIONS)))
def test_the_plain_path_goes_on_bit_for_bit(tmp_path: Path, data: TensorData, number: int) -> None:
    """Every optimizer and schedule, with dropout and clipping, equals the uninterrupted trial."""
    given = dataclasses.replace(spec(number, **CONFIGURATIONS[number]), start_epoch=3)
    assert_goes_on_exactly(a_task(tmp_path), given, data, 1 + number % 3)


@pytest.mark.parametrize("number", range(len(CONFIGURATIONS)))
def test_the_kernel_goes_on_bit_for_bit(tmp_path: Path, data: TensorData, number: int) -> None:
    """In float32 too: nothing but the trial's own state decides its next epoch."""
    if load_kernel(4).kernel is None:
        pytest.skip("no kernel here")
    given = dataclasses.replace(spec(number, **CONFIGURATIONS[number]), start_epoch=3)
    assert_goes_on_exactly(a_task(tmp_path), given, data, 1 + number % 3, "fused")


@pytest.mark.parametrize("module", ["Dropping", "OwnLoader"])
def test_a_users_module_goes_on_bit_for_bit(tmp_path: Path, data: TensorData, module: str) -> None:
    """Global generators, ReduceLROnPlateau, batch norm and a shuffling loader are restored."""
    task = a_task(tmp_path, module=f"resume_module:{module}")
    given = TrialSpec(0, {"rate": 0.4}, 11)
    assert_goes_on_exactly(task, given, data, 2)


def test_twice_interrupted(tmp_path: Path, data: TensorData) -> None:
    """A trial that is stopped after each epoch still has the uninterrupted curve."""
    task = a_task(tmp_path, module="resume_module:Dropping")
    given = TrialSpec(0, {}, 11)
    whole_task = dataclasses.replace(task, work_dir=task.work_dir + "/whole")
    whole = train(PlainTrainer(whole_task, data), [given])
    now = given
    for epoch in range(1, N_EPOCHS):
        driver = train(PlainTrainer(task, data), [now], {0: epoch})
        assert [r.is_replay for r in driver.epochs(0)] == [True] * (epoch - 1) + [False]
        now = continued(task, given)
    assert train(PlainTrainer(task, data), [now]).curve(0) == whole.curve(0)


def test_another_process_goes_on_where_one_was_killed(tmp_path: Path) -> None:
    """SIGKILL in the midst of an epoch loses what the interval allows, no more; the mean over that
    epoch's training steps is of those since."""
    task = a_task(
        tmp_path, module="resume_module:Dropping", checkpoint_interval_s=0.0, batch_size=192
    )
    whole_task = dataclasses.replace(task, work_dir=task.work_dir + "/whole")
    given = TrialSpec(0, {}, 11)
    code = f"""
        import os, signal, sys
        sys.path[:0] = {[str(HERE)]!r}
        from sweep.training.plain.trainer import PlainTrainer
        from sweep.trial import EpochReport, Orders, Task, TrialSpec
        from resume_module import Dropping

        step = Dropping.training_step
        def deadly(self, batch, batch_idx):
            if self.current_epoch == 3 and batch_idx == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self, batch, batch_idx)
        Dropping.training_step = deadly
        specs = [{given!r}]
        def exchange(reports, n_free):
            start = [specs.pop()] if specs and n_free else []
            return Orders(start=tuple(start), is_last=not specs)
        PlainTrainer({task!r}).train(exchange)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True)
    assert done.returncode == -9, done.stderr
    rest = train(PlainTrainer(task), [continued(task, given)])
    assert [r.is_replay for r in rest.epochs(0)] == [True, True, True, False]
    found, expected = rest.curve(0), train(PlainTrainer(whole_task), [given]).curve(0)
    assert found[:3] == expected[:3]
    assert [values[1:] for values in found] == [values[1:] for values in expected]


# --- the fused path, to rounding

SCHEDULES = ("constant", "cosine", "step", "one_cycle")
OPTIMIZERS: list[dict[str, Any]] = [
    {"optimizer": "SGD", "lr": 0.05},
    {"optimizer": "SGD", "lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3},
    {"optimizer": "Adam", "weight_decay": 1e-3},
    {"optimizer": "AdamW", "beta1": 0.8},
    {"optimizer": "NAdam", "weight_decay": 1e-3, "beta1": 0.8},
    {"optimizer": "RMSprop", "lr": 1e-3, "alpha": 0.9},
    {"optimizer": "RMSprop", "lr": 1e-3, "momentum": 0.5, "centered": True},
]
ALL = [
    spec(
        number, **optimizer, schedule=schedule, hidden=((12, 6), (), (20,), (5, 9, 4))[number % 4],
        dropout=0.3 * (number % 2), clip_norm=None if number % 3 else 0.3,
        batch_size=64 if number % 5 else 50,
    )
    for number, (optimizer, schedule) in enumerate(
        (optimizer, schedule) for optimizer in OPTIMIZERS for schedule in SCHEDULES
    )
]  # fmt: skip


def test_the_fused_path_goes_on_exactly(tmp_path: Path, data: TensorData) -> None:
    """All optimizers x schedules, with dropout and clipping, among other neighbours than before.

    Trials are interrupted after different epochs and come back in another order, next to new
    ones, from different start epochs.
    """
    task = a_task(tmp_path, precision="64-true")
    task = dataclasses.replace(task, population=len(ALL))
    starts = [dataclasses.replace(s, start_epoch=s.number % 3) for s in ALL]
    whole_task = dataclasses.replace(task, work_dir=task.work_dir + "/whole")
    whole = train(FusedTrainer(whole_task, data), starts)
    stops = {s.number: 1 + s.number % (N_EPOCHS - 1) for s in starts}
    train(FusedTrainer(task, data), starts, stops)
    again = [continued(task, s) for s in reversed(starts)]
    again[3] = dataclasses.replace(again[3], start_epoch=None)  # the file knows it
    rest = train(FusedTrainer(task, data), [*again[:7], spec(99, lr=0.1), *again[7:]])
    assert not rest.of(Notice)
    for number, n_done in stops.items():
        for mine, other in zip(rest.curve(number), whole.curve(number), strict=True):
            assert mine == pytest.approx(other, rel=1e-7)
        ours, theirs = rest.result(number), whole.result(number)
        assert ours.best_epoch == theirs.best_epoch
        right = weights_of(whole_task, theirs)
        for name, value in weights_of(task, ours).items():
            torch.testing.assert_close(value, right[name], rtol=1e-7, atol=1e-9)
        told = rest.epochs(number)
        assert [r.is_replay for r in told] == [r.epoch <= n_done for r in told]
        assert {r.start_epoch for r in told} == {number % 3}
    assert rest.result(99).outcome == "finished"


@both
def test_replays_are_what_was_told(tmp_path: Path, data: TensorData, path: str) -> None:
    """A resumed trial begins with its former reports, equal in metrics and time, in one go."""
    task = a_task(tmp_path)
    first = train(TRAINERS[path](task, data), [spec(0)], {0: 2})
    rest = train(TRAINERS[path](task, data), [continued(task, spec(0))])
    replayed = [dataclasses.replace(r, is_replay=True) for r in first.epochs(0)]
    assert list(rest.calls[1]) == replayed


@both
def test_resume_state_at_an_interval(tmp_path: Path, data: TensorData, path: str) -> None:
    """It is written at every boundary with interval 0, and not before an hour with 3600 s.

    The plain path writes as the next epoch starts, after the exchange.
    """
    for interval_s, expected in ((0.0, [1, 2, 3] if path == "fused" else [1, 2]), (3600.0, [])):
        task = a_task(tmp_path / str(interval_s), checkpoint_interval_s=interval_s)
        seen = []

        class Watch(Driver):
            def __call__(
                self, reports: Sequence[Report], n_free: int, task: Task = task, seen: Any = seen
            ) -> Orders:
                kept = TrialFiles(task.work_dir, 0).whole(RESUME_STATE)
                if kept is not None:
                    seen.append(torch.load(kept, weights_only=True)["sweep"]["epoch"])
                return super().__call__(reports, n_free)

        watch = Watch([spec(0)])
        TRAINERS[path](task, data).train(watch)
        assert sorted(set(seen)) == expected
        assert len(watch.curve(0)) == N_EPOCHS


@both
def test_a_trial_whose_epochs_are_all_trained(tmp_path: Path, data: TensorData, path: str) -> None:
    """It finishes at once, without an epoch, with the checkpoint of its best."""
    task = a_task(tmp_path)
    first = train(TRAINERS[path](task, data), [spec(0)], {0: 3})
    for n_epochs in (3, 2):
        shorter = dataclasses.replace(
            task, epochs=n_epochs, work_dir=f"{task.work_dir}/{n_epochs}"
        )
        state = TrialFiles(task.work_dir, 0).get(RESUME_STATE)
        assert state is not None
        TrialFiles(shorter.work_dir, 0).put(RESUME_STATE, state)
        again = train(TRAINERS[path](shorter, data), [continued(shorter, spec(0))])
        assert [r.is_replay for r in again.epochs(0)] == [True] * 3
        result = again.result(0)
        assert (result.outcome, result.n_epochs) == ("finished", 3)
        assert result.best_epoch == first.result(0).best_epoch
        best = weights_of(task, first.result(0))
        assert all(torch.equal(v, best[k]) for k, v in weights_of(shorter, result).items())


@both
def test_interrupted_again_before_its_first_epoch(
    tmp_path: Path, data: TensorData, path: str
) -> None:
    """A trial that is stopped at its replay keeps its resume state, and goes on later."""
    task = a_task(tmp_path)
    whole_task = dataclasses.replace(task, work_dir=task.work_dir + "/whole")
    whole = train(TRAINERS[path](whole_task, data), [spec(0)])
    train(TRAINERS[path](task, data), [spec(0)], {0: 2})
    between = train(TRAINERS[path](task, data), [continued(task, spec(0))], {0: 1})
    assert (between.result(0).outcome, between.result(0).n_epochs) == ("stopped", 2)
    assert len(between.epochs(0)) == 2
    rest = train(TRAINERS[path](task, data), [continued(task, spec(0))])
    for mine, other in zip(rest.curve(0), whole.curve(0), strict=True):
        assert mine == pytest.approx(other, rel=1e-5)
