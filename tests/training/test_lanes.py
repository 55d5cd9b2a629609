"""Trials in lanes: where they go, what moves, and that moving changes nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import pytest
import torch

from sweep.data.tensors import TensorData
from sweep.testing import example_data
from sweep.training.compiled.kernel import Kernel, load_kernel
from sweep.training.fused.lanes import MOST_LANES, Lanes
from sweep.training.fused.population import Population
from sweep.training.members import Member, Scores
from sweep.training.optimizers import make_rule

N_FEATURES, N_CLASSES, N_EPOCHS, BATCH = 6, 3, 8, 8


def _data() -> TensorData:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(40, N_FEATURES, generator=generator, dtype=torch.float64)
    y = torch.randint(0, N_CLASSES, (40,), generator=generator)
    data: TensorData = example_data((x, y), (x[:16], y[:16]), N_CLASSES, mean=0.5, std=0.3)
    return data


def _lanes(
    n_threads: int, kernel: Kernel | None = None, most: int = MOST_LANES,
    data: TensorData | None = None,
) -> Lanes:  # fmt: skip
    given = data or _data()

    def make(batch_size: int, epoch: int) -> Population:
        return Population(given, batch_size, N_EPOCHS, epoch, torch.float64, kernel)

    return Lanes(make, n_threads, most)


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


def _curves(lanes: Lanes, n_epochs: int) -> dict[int, list[Scores]]:
    curves: dict[int, list[Scores]] = {}
    for _ in range(n_epochs):
        for _, scores in lanes.train_epoch(lambda: None):
            for number, score in scores.items():
                curves.setdefault(number, []).append(score)
    return curves


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_nothing_helps_between_epochs() -> None:
    """With a population a thread, what is done between them gets one, too."""
    torch.set_num_threads(2)
    lanes = _lanes(n_threads=2)
    for k in range(4):
        lanes.place(_member(k), BATCH, None)
    lanes.change()
    assert torch.get_num_threads() == 1


def test_trials_share_the_lanes() -> None:
    lanes = _lanes(n_threads=2)
    places = [lanes.place(_member(k), BATCH, None) for k in range(6)]
    lanes.change()
    assert len(set(map(id, places))) == 2
    assert sorted(len(p.members) for p in set(places)) == [3, 3]


def test_one_thread_is_one_population() -> None:
    lanes = _lanes(n_threads=1)
    places = [lanes.place(_member(k), BATCH, None) for k in range(3)]
    assert len(set(map(id, places))) == 1


def test_a_minibatch_size_or_an_epoch_of_its_own_is_a_population_of_its_own() -> None:
    lanes = _lanes(n_threads=1)
    alone = lanes.place(_member(0), BATCH, None)
    assert lanes.place(_member(1), 2 * BATCH, None) is not alone
    assert lanes.place(_member(2), BATCH, 3) is not alone


def test_a_trial_that_never_joined_is_forgotten() -> None:
    lanes = _lanes(n_threads=2)
    for k in range(2):
        lanes.place(_member(k), BATCH, None)
    lanes.leave(1)
    lanes.change()
    assert set(_curves(lanes, 1)) == {0}


@pytest.mark.parametrize("is_compiled", [False, True])
def test_trials_move_to_a_lane_that_others_left_and_their_curves_stay(is_compiled: bool) -> None:
    kernel = load_kernel(8).kernel if is_compiled else None
    if is_compiled and kernel is None:
        pytest.skip("no kernel here")
    alone = _lanes(1, kernel)
    for k in (0, 2, 4):
        alone.place(_member(k), BATCH, None)
    alone.change()
    expected = _curves(alone, N_EPOCHS)

    lanes = _lanes(2, kernel)
    places = {k: lanes.place(_member(k), BATCH, None) for k in range(6)}
    assert len({id(places[k]) for k in (0, 2, 4)}) == 1  # else there is nothing to move
    lanes.change()
    curves = _curves(lanes, 3)
    for number in (1, 3, 5):
        lanes.leave(number)
    moved = lanes.change()
    assert len(moved) == 1
    ((number, target),) = moved.items()
    assert target is not places[number]
    assert target.has(number)
    assert not places[number].has(number)
    rest = _curves(lanes, N_EPOCHS - 3)
    for k in (0, 2, 4):
        found = [s.train_loss for s in curves[k] + rest[k]]
        assert found == pytest.approx([s.train_loss for s in expected[k]], rel=1e-9)


@pytest.mark.parametrize(("most", "n_lanes"), [(MOST_LANES, MOST_LANES), (12, 10)])
def test_as_many_lanes_as_threads_up_to_a_limit(most: int, n_lanes: int) -> None:
    lanes = _lanes(n_threads=10, most=most)
    for k in range(20):
        lanes.place(_member(k), BATCH, None)
    lanes.change()
    assert len(lanes.populations) == n_lanes
    assert set(_curves(lanes, 1)) == set(range(20))


def test_what_a_lane_raises_is_raised() -> None:
    data = _data()
    lanes = _lanes(n_threads=2, data=data)
    for k in range(2):
        lanes.place(_member(k), BATCH, None)
    lanes.change()
    data.train.x.resize_(1)  # of both lanes
    with pytest.raises(IndexError):
        lanes.train_epoch(lambda: None)
