"""Trials in lanes: how they are divided, and that it changes nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from sweep.data.tensors import TensorData
from sweep.testing import example_data
from sweep.training.compiled.kernel import load_kernel
from sweep.training.fused.population import Population, run_jobs
from sweep.training.members import Member, Scores, lanes_of
from sweep.training.optimizers import make_rule

N_FEATURES, N_CLASSES, N_EPOCHS, BATCH = 6, 3, 8, 8


def _data() -> TensorData:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(40, N_FEATURES, generator=generator, dtype=torch.float64)
    y = torch.randint(0, N_CLASSES, (40,), generator=generator)
    data: TensorData = example_data((x, y), (x[:16], y[:16]), N_CLASSES, mean=0.5, std=0.3)
    return data


def _population(n_lanes: int, *, is_compiled: bool, data: TensorData | None = None) -> Population:
    kernel = load_kernel(8).kernel if is_compiled else None
    if is_compiled and kernel is None:
        pytest.skip("no kernel here")
    given = data or _data()
    return Population(given, BATCH, N_EPOCHS, 0, torch.float64, kernel, n_lanes)


def _member(number: int, hidden: Sequence[int] = (16,)) -> Member:
    generator = torch.Generator().manual_seed(number)
    widths = (N_FEATURES, *hidden, N_CLASSES)
    weights = [
        (
            torch.randn(b, a, generator=generator, dtype=torch.float64) / a,
            torch.zeros(b, dtype=torch.float64),
        )
        for a, b in itertools.pairwise(widths)
    ]
    name, arguments = (("Adam", {}), ("RMSprop", {"momentum": 0.5}))[number % 2]
    rule = make_rule(name, arguments)
    return Member(number, tuple(hidden), "relu", rule, 1e-2, weights)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def test_lanes_have_about_the_same_cost() -> None:
    members = [_member(k, (width,)) for k, width in enumerate((50, 30, 20, 20, 10, 10))]
    lanes = lanes_of(members, lambda member: sum(member.hidden), 2)
    assert sorted(sum(m.hidden[0] for m in lane) for lane in lanes) == [70, 70]
    assert sorted(m.number for lane in lanes for m in lane) == [*range(6)]


def test_no_lane_is_empty() -> None:
    assert len(lanes_of([_member(0), _member(1)], lambda _: 1, 5)) == 2


@pytest.mark.parametrize("is_compiled", [False, True])
def test_as_many_jobs_as_lanes(is_compiled: bool) -> None:
    """Trials that are small enough for one group are divided, too, in even parts."""
    population = _population(3, is_compiled=is_compiled)
    for k in range(9):
        population.join(_member(k))
    jobs = population.start_epoch()
    assert len(jobs) == 3
    assert len({job.cost for job in jobs}) == 1


@pytest.mark.parametrize("is_compiled", [False, True])
def test_curves_do_not_depend_on_lanes(is_compiled: bool, pool: ThreadPoolExecutor) -> None:
    """Also where trials leave, and others take another lane for it."""
    alone = _population(1, is_compiled=is_compiled)
    for k in (0, 2, 4):
        alone.join(_member(k))
    expected = [alone.train_epoch() for _ in range(N_EPOCHS)]
    population = _population(2, is_compiled=is_compiled)
    for k in range(6):
        population.join(_member(k))
    curves: list[dict[int, Scores]] = []
    for epoch in range(N_EPOCHS):
        for number in (1, 3, 5) if epoch == 3 else ():
            population.leave(number)
        curves.append(run_jobs(population.start_epoch(), pool, 2, 2))
    assert set(curves[-1]) == {0, 2, 4}
    for k in (0, 2, 4):
        found = [scores[k].train_loss for scores in curves]
        assert found == pytest.approx([scores[k].train_loss for scores in expected], rel=1e-9)


def test_a_trial_that_never_joined_is_forgotten() -> None:
    population = _population(2, is_compiled=False)
    for k in range(2):
        population.join(_member(k))
    population.leave(1)
    assert set(population.train_epoch()) == {0}
    population.leave(0)
    assert population.is_empty
    assert not population.has(0)


def test_nothing_helps_between_epochs(pool: ThreadPoolExecutor) -> None:
    """With a job a thread, work between epochs gets one, too; one job alone gets all threads."""
    population = _population(2, is_compiled=False)
    population.join(_member(0))
    run_jobs(population.start_epoch(), pool, 2, 2)
    assert torch.get_num_threads() == 2
    population.join(_member(1))
    run_jobs(population.start_epoch(), pool, 2, 2)
    assert torch.get_num_threads() == 1


def test_what_a_lane_raises_is_raised(pool: ThreadPoolExecutor) -> None:
    data = _data()
    population = _population(2, is_compiled=False, data=data)
    for k in range(2):
        population.join(_member(k))
    data.train.x.resize_(1)  # of both lanes
    with pytest.raises(IndexError):
        run_jobs(population.start_epoch(), pool, 2, 2)
