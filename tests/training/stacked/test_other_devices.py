"""Populations on a device that is no CPU, where none is at hand.

torch's meta tensors have a shape and a device, and no values: whatever reads one back raises.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sweep import hyperparameters
from sweep.testing import example_data
from sweep.training.fused.population import Population
from sweep.training.members import Member
from sweep.training.optimizers import make_rule

ACTIVATIONS = [*hyperparameters.ACTIVATIONS]
OPTIMIZERS = {
    "SGD": {"momentum": 0.9, "nesterov": True},
    "Adam": {"weight_decay": 0.1},
    "AdamW": {},
    "RMSprop": {"momentum": 0.5, "weight_decay": 0.1},
}
HIDDEN = ((128, 64), (64,), (), (300, 200, 100), (60,))


class OneDevice(TorchDispatchMode):
    """Within, an operation on tensors of two devices raises, unless it is a copy."""

    copies = (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        inputs = tree_leaves((args, kwargs))
        # A single value of the CPU's may be mixed in anywhere.
        devices = {x.device.type for x in inputs if isinstance(x, torch.Tensor) and x.dim()}
        assert len(devices) < 2 or function in self.copies, f"{function} on {devices}"
        return function(*args, **(kwargs or {}))


def member(number: int, optimizer: str, arguments: dict, hidden: tuple[int, ...]) -> Member:
    """A trial whose weights come from the CPU."""
    widths = (784, *hidden, 10)
    initial = [(torch.randn(b, a), torch.randn(b)) for a, b in itertools.pairwise(widths)]
    activation = ACTIVATIONS[number % len(ACTIVATIONS)]
    rule = make_rule(optimizer, arguments)
    # Dropout draws from a generator of the device, which meta tensors have none of.
    return Member(number, hidden, activation, rule, 0.01, initial, "one_cycle", 1.0)


def test_an_epoch_stays_on_the_device():
    """Trials of every optimizer and activation join, train, are kept, leave and move: no value is
    read back before the epoch's metrics, once."""
    x, y = torch.zeros(300, 1, 28, 28, dtype=torch.uint8), torch.zeros(300, dtype=torch.int64)
    data = example_data((x[:200], y[:200]), (x[200:], y[200:]), mean=0.1, std=0.3)
    population = Population(data.to("meta"), 64, 3)
    kinds = itertools.product(OPTIMIZERS.items(), HIDDEN)
    members = [member(k, *rule, hidden) for k, (rule, hidden) in enumerate(kinds)]
    population.change(joining=members[:-2])
    for leaving, joining in (((), []), ((1, 5), members[-2:]), ((0,), [])):
        with OneDevice():
            population.change(leaving, joining)
            with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
                population.train_epoch()  # at its very end, as it reads the scores
            population.keep_best(2)
    tensors = [*population.weights(2), *population.best_weights(3), *population.states(4)[0]]
    assert {t.device.type for pair in tensors for t in pair} == {"meta"}
