"""Functions that take turns: each draws as if it were alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from sweep.training.plain.lanes import OUTSIDE, Lane
from sweep.training.plain.shared import Streams
from sweep.training.plain.together import Together
from sweep.training.resuming import seed_everything


def draw() -> tuple[float, float, float]:
    """A number of each global generator; numpy's are pairs, whose second it keeps."""
    return float(torch.rand(())), float(np.random.randn()), random.random()


def drawn(seed: int, n: int) -> list[Any]:
    """What a function alone draws."""
    seed_everything(seed)
    return [draw() for _ in range(n)]


def test_each_draws_as_if_alone() -> None:
    """Two lanes, what they call outside, and whoever lets them run."""
    expected = [drawn(seed, 6) for seed in range(3)]
    found: list[list[Any]] = [[], [], []]

    def function(number: int) -> Callable[[Lane], None]:
        def run(lane: Lane) -> None:
            seed_everything(number)
            for _ in range(3):
                found[number].append(draw())
                lane.outside(lambda: found[2].append(draw()))
                found[number].append(draw())
                lane.wait(number)

        return run

    seed_everything(2)
    lanes = [Lane(function(number)) for number in range(2)]
    for _ in range(4):
        for lane in lanes:
            lane.resume()
    OUTSIDE.hold()
    assert found == expected
    assert draw() == drawn(2, 7)[-1]


def test_trials_leave_the_generators_as_they_were() -> None:
    """Whether one ends, or all are left in their midst."""
    after = drawn(2, 2)[-1]

    together = Together(Streams(0), print, print)
    seed_everything(2)
    draw()
    together.start(0, lambda lane: seed_everything(0))
    assert together.advance() == [(0, None)]
    assert draw() == after

    seed_everything(2)
    draw()
    waiting = Lane(lambda lane: (seed_everything(0), lane.wait(0)))
    waiting.resume()
    together.end()
    assert draw() == after
