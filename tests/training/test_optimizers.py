"""Optimizers, schedules and clipping against torch.optim, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sweep.hyperparameters import OPTIMIZERS
from sweep.training.optimizers import clip_scales, learning_rates, make_rule

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


def steps_of(rules, params, grads_of_steps, lr=0.05):
    """Take the steps with all of `rules` at once; params and grads are (n, ...), in place."""
    states = [[torch.zeros_like(p) for p in params] for _ in range(rules[0].n_states)]
    rates = np.full(len(grads_of_steps), lr)
    found = [rule.coefficients(0, rates) for rule in rules]
    for index, grads in enumerate(grads_of_steps):
        at = {
            name: torch.tensor(
                [np.broadcast_to(own[name], len(rates))[index] for own in found]
            )[:, None, None]
            for name in found[0]
        }  # fmt: skip
        rules[0].update(params, [g.clone() for g in grads], states, at)


def run_rule(optimizer, arguments, grads_of_steps, lr=0.05):
    """Parameters after the steps, and after torch.optim's."""
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(s, generator=generator, dtype=torch.float64) for s in SHAPES]
    params = [p.clone()[None] for p in start]
    rule = make_rule(optimizer, {"lr": lr, **arguments})
    steps_of([rule], params, [[g[None] for g in grads] for grads in grads_of_steps], lr)
    theirs = [p.clone().requires_grad_() for p in start]
    reference = getattr(torch.optim, optimizer)(theirs, lr=lr, **arguments)
    for grads in grads_of_steps:
        for p, g in zip(theirs, grads, strict=True):
            p.grad = g.clone()
        reference.step()
    return [p[0] for p in params], [p.detach() for p in theirs]


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


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_trials_of_one_kind_keep_their_own_numbers(optimizer):
    """Side by side, trials with other arguments take the steps that each takes alone."""
    cases = [arguments for name, arguments in CASES if name == optimizer]
    kinds = {}
    for arguments in cases:
        kinds.setdefault(make_rule(optimizer, arguments).kind, []).append(arguments)
    for alike in kinds.values():
        n = len(alike)
        rules = [make_rule(optimizer, arguments) for arguments in alike]
        generator = torch.Generator().manual_seed(0)
        start = [torch.randn(s, generator=generator, dtype=torch.float64) for s in SHAPES]
        params = [p.expand(n, *p.shape).clone() for p in start]
        grads = [[g.expand(n, *g.shape).clone() for g in step] for step in some_grads()]
        steps_of(rules, params, grads)
        for k, arguments in enumerate(alike):
            alone, _ = run_rule(optimizer, arguments, some_grads())
            for a, b in zip(params, alone, strict=True):
                torch.testing.assert_close(a[k], b, rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize(("optimizer", "arguments"), CASES)
def test_zero_stays_zero(optimizer, arguments):
    """A zero parameter with zero gradients is exactly zero after any number of steps."""
    params = [torch.zeros(1, 4, 4)]
    steps_of([make_rule(optimizer, arguments)], params, [[torch.zeros(1, 4, 4)]] * 3, 0.1)
    assert torch.equal(params[0], torch.zeros(1, 4, 4))


def test_clip_equals_torch():
    """Gradients are scaled as clip_grad_norm_ scales them, each trial's to its own norm, and left
    alone when short or not to be clipped."""
    grads, norms = some_grads(1)[0], [0.1, 3.0, 1e6, float("inf"), 0.0]
    many = [g.expand(len(norms), *g.shape) for g in grads]
    scales = clip_scales(many, torch.tensor(norms)[:, None, None])
    for k, max_norm in enumerate(norms):
        theirs = [torch.zeros_like(g).requires_grad_() for g in grads]
        for p, g in zip(theirs, grads, strict=True):
            p.grad = g.clone()
        torch.nn.utils.clip_grad_norm_(theirs, max_norm)
        for g, p in zip(grads, theirs, strict=True):
            torch.testing.assert_close(g * scales[k], p.grad, rtol=1e-14, atol=0)


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
