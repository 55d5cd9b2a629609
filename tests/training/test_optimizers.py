"""Optimizers, schedules and clipping against torch.optim, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sweep.training.optimizers import Slices, clip, learning_rates, make_rule

CASES = [
    ("SGD", {}),
    ("SGD", {"weight_decay": 0.1}),
    ("SGD", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "dampening": 0.4, "weight_decay": 0.01}),
    ("SGD", {"momentum": 0.8, "nesterov": True}),
    ("SGD", {"dampening": 0.5}),
    ("Adam", {}),
    ("Adam", {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}),
    ("AdamW", {}),
    ("AdamW", {"betas": (0.5, 0.9), "weight_decay": 0.3}),
    ("NAdam", {}),
    ("NAdam", {"betas": (0.7, 0.95), "eps": 1e-4, "weight_decay": 0.1}),
    ("RMSprop", {}),
    ("RMSprop", {"alpha": 0.9, "eps": 1e-4, "weight_decay": 0.1}),
    ("RMSprop", {"alpha": 1.0}),
    ("RMSprop", {"momentum": 0.9}),
    ("RMSprop", {"centered": True}),
    ("RMSprop", {"momentum": 0.5, "centered": True, "weight_decay": 0.1, "alpha": 0.8}),
]
SHAPES = [(5, 16), (3, 6)]


def run_rule(optimizer, arguments, grads_of_steps, lr=0.05):
    """Parameters after the steps, and after torch.optim's."""
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(s, generator=generator, dtype=torch.float64) for s in SHAPES]
    rule = make_rule(optimizer, {"lr": lr, **arguments})
    params, steps = [p.clone() for p in start], torch.zeros(())
    states = tuple([torch.zeros_like(p) for p in start] for _ in range(rule.n_states))
    theirs = [p.clone().requires_grad_() for p in start]
    reference = getattr(torch.optim, optimizer)(theirs, lr=lr, **arguments)
    for index, grads in enumerate(grads_of_steps):
        steps += 1
        own = [g.clone() for g in grads]
        rule.update(Slices(params, own, states, [steps] * len(params)), lr, index == 0)
        for p, g in zip(theirs, grads, strict=True):
            p.grad = g.clone()
        reference.step()
    return params, [p.detach() for p in theirs]


def some_grads(n_steps=4):
    generator = torch.Generator().manual_seed(1)
    return [
        [torch.randn(s, generator=generator, dtype=torch.float64) for s in SHAPES]
        for _ in range(n_steps)
    ]


@pytest.fixture(autouse=True)
def float64():
    """As Lightning sets it with the precision: torch keeps NAdam's product in it."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(("optimizer", "arguments"), CASES)
def test_rule_equals_torch_optim(optimizer, arguments):
    """Each rule follows the torch optimizer of its name to rounding."""
    ours, theirs = run_rule(optimizer, arguments, some_grads())
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(("optimizer", "arguments"), CASES)
def test_zero_stays_zero(optimizer, arguments):
    """A zero parameter with zero gradients is exactly zero after any number of steps."""
    rule = make_rule(optimizer, arguments)
    params, steps = [torch.zeros(4, 4)], torch.zeros(())
    states = tuple([torch.zeros(4, 4)] for _ in range(rule.n_states))
    for index in range(3):
        steps += 1
        rule.update(Slices(params, [torch.zeros(4, 4)], states, [steps]), 0.1, index == 0)
    assert torch.equal(params[0], torch.zeros(4, 4))


@pytest.mark.parametrize("max_norm", [0.1, 3.0, 1e6])
def test_clip_equals_torch(max_norm):
    """Gradients are scaled as clip_grad_norm_ scales them, and left alone when short."""
    grads = some_grads(1)[0]
    theirs = [torch.zeros_like(g).requires_grad_() for g in grads]
    for p, g in zip(theirs, grads, strict=True):
        p.grad = g.clone()
    torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    ours = [g.clone() for g in grads]
    clip(ours, max_norm)
    for a, p in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, p.grad, rtol=1e-14, atol=0)


def schedule_of_torch(schedule, lr, n_epochs, n_steps):
    """Learning rate of every step as MLPClassifier's schedulers set it."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    schedulers = torch.optim.lr_scheduler
    if schedule == "constant":
        scheduler = schedulers.ConstantLR(optimizer, factor=1.0)
    elif schedule == "cosine":
        scheduler = schedulers.CosineAnnealingLR(optimizer, T_max=n_epochs)
    elif schedule == "step":
        scheduler = schedulers.StepLR(optimizer, step_size=max(1, n_epochs // 3), gamma=0.1)
    else:
        scheduler = schedulers.OneCycleLR(
            optimizer, max_lr=lr, total_steps=n_epochs * n_steps, cycle_momentum=False
        )
    rates = []
    for _ in range(n_epochs):
        for _ in range(n_steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if schedule == "one_cycle":
                scheduler.step()
        if schedule != "one_cycle":
            scheduler.step()
    return rates


@settings(max_examples=30, deadline=None)
@given(
    schedule=st.sampled_from(["constant", "cosine", "step", "one_cycle"]),
    lr=st.floats(1e-5, 1.0),
    n_epochs=st.integers(1, 12),
    n_steps=st.integers(2, 7),
)
def test_schedule_equals_torch(schedule, lr, n_epochs, n_steps):
    """The closed forms give the rates that torch's schedulers step through."""
    ours = [
        rate
        for epoch in range(n_epochs)
        for rate in learning_rates(schedule, lr, epoch, n_epochs, n_steps)
    ]
    assert ours == pytest.approx(schedule_of_torch(schedule, lr, n_epochs, n_steps), rel=1e-9)


def test_unknown_argument_is_refused():
    """An argument that the optimizer does not take is a TypeError, not ignored."""
    with pytest.raises(TypeError):
        make_rule("Adam", {"momentum": 0.9})
