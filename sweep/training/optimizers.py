"""Optimizers, schedules and clipping for the trials of a shard, one trial at a time.

A trial's parameters are a few large contiguous slices of the shard's buffers, so one call
of a fused kernel (one pass over memory) updates a trial with its own scalars. Each rule equals
the optimizer of the same name in `torch.optim` to rounding; zero parameters with zero
gradients stay exactly zero, which padding relies on.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from sweep.hyperparameters import OPTIMIZERS

Tensors = list[Tensor]
MOMENTUM_DECAY = 4e-3
"""Of NAdam, torch's default."""
_ENDLESS_STEP = 1e30
"""beta2 ** 1e30 is 0: Adam without bias correction."""


@dataclass(slots=True)
class Slices:
    """One trial's share of the shard's buffers; lists run over its layers."""

    params: Tensors
    grads: Tensors
    states: tuple[Tensors, ...]
    """`n_states` lists like `params`."""
    steps: Tensors
    """The trial's step count (float32, shape ()), repeated for each of `params`."""


class OptimizerRule(ABC):
    """What an optimizer does to one trial in one step."""

    state_names: tuple[str, ...]
    """Its tensors of state per parameter, as `torch.optim` calls them."""

    @property
    def n_states(self) -> int:
        """Tensors of state per parameter."""
        return len(self.state_names)

    @abstractmethod
    def update(self, at: Slices, lr: float, is_first: bool) -> None:
        """Take one step with learning rate `lr`; `is_first`: the trial's first step ever."""

    def kernel_fields(self, n_steps: int) -> Mapping[str, Any] | None:
        """The fields of a kernel's trial that it decides, after `n_steps` steps; None: kernel.c
        has no formula for it."""
        return None

    def torch_scalars(self, n_steps: int) -> dict[str, float]:
        """The numbers that torch keeps with each parameter after `n_steps` steps."""
        return {"step": float(n_steps)}


@final
@dataclass
class SGD(OptimizerRule):
    """`torch.optim.SGD`."""

    momentum: float = 0.0
    weight_decay: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    state_names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.state_names = ("momentum_buffer",) if self.momentum != 0.0 else ()

    def update(self, at: Slices, lr: float, is_first: bool) -> None:
        """One fused pass."""
        torch._fused_sgd_(
            at.params,
            at.grads,
            at.states[0] if self.n_states else [],
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            lr=lr,
            dampening=self.dampening,
            nesterov=self.nesterov,
            maximize=False,
            is_first_step=is_first,
        )

    def kernel_fields(self, n_steps: int) -> Mapping[str, Any] | None:
        """See `OptimizerRule`."""
        return {"rule": OPTIMIZERS["SGD"].kernel_rule, "momentum": self.momentum,
                "dampening": self.dampening, "is_nesterov": self.nesterov,
                "weight_decay": self.weight_decay}  # fmt: skip


@final
@dataclass
class Adam(OptimizerRule):
    """`torch.optim.Adam`, or `AdamW` where the decay is decoupled."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    is_decoupled: bool = False
    state_names: tuple[str, ...] = field(default=("exp_avg", "exp_avg_sq"), init=False)

    def update(self, at: Slices, lr: float, is_first: bool) -> None:
        """One fused pass."""
        kernel = torch._fused_adamw_ if self.is_decoupled else torch._fused_adam_
        moments = (at.grads, at.states[0], at.states[1])
        _adam(kernel, at.params, moments, at.steps, lr=lr, beta1=self.betas[0],
              beta2=self.betas[1], eps=self.eps, weight_decay=self.weight_decay)  # fmt: skip

    def kernel_fields(self, n_steps: int) -> Mapping[str, Any] | None:
        """See `OptimizerRule`."""
        name = "AdamW" if self.is_decoupled else "Adam"
        return {"rule": OPTIMIZERS[name].kernel_rule, "beta1": self.betas[0],
                "beta2": self.betas[1], "eps": self.eps,
                "weight_decay": self.weight_decay}  # fmt: skip


@final
@dataclass
class NAdam(OptimizerRule):
    """`torch.optim.NAdam` with its default momentum_decay: Adam with Nesterov's momentum, whose
    weight rises from step to step (Dozat, 2016, "Incorporating Nesterov Momentum into Adam")."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    state_names: tuple[str, ...] = field(default=("exp_avg", "exp_avg_sq"), init=False)
    _n_steps: int = field(default=-1, init=False)
    _product: float = field(default=1.0, init=False)
    """Of the momenta of `_n_steps` steps."""

    def momentum(self, step: int) -> float:
        """The momentum of a step, from 1."""
        return self.betas[0] * (1.0 - 0.5 * float(0.96 ** (step * MOMENTUM_DECAY)))

    def update(self, at: Slices, lr: float, is_first: bool) -> None:
        """Several passes over memory."""
        if self._n_steps < 0:  # one read of the device a trial
            self._n_steps = int(at.steps[0]) - 1
            self._product = self._product_after(self._n_steps)
        self._n_steps += 1
        now, following = self.momentum(self._n_steps), self.momentum(self._n_steps + 1)
        self._product *= now
        means, squares = at.states
        if self.weight_decay:
            torch._foreach_add_(at.grads, at.params, alpha=self.weight_decay)
        torch._foreach_lerp_(means, at.grads, 1.0 - self.betas[0])
        torch._foreach_mul_(squares, self.betas[1])
        torch._foreach_addcmul_(squares, at.grads, at.grads, value=1.0 - self.betas[1])
        scales = torch._foreach_div(squares, 1.0 - self.betas[1] ** self._n_steps)
        torch._foreach_sqrt_(scales)
        torch._foreach_add_(scales, self.eps)
        of_gradient = -lr * (1.0 - now) / (1.0 - self._product)
        of_mean = -lr * following / (1.0 - self._product * following)
        torch._foreach_addcdiv_(at.params, at.grads, scales, value=of_gradient)
        torch._foreach_addcdiv_(at.params, means, scales, value=of_mean)

    def kernel_fields(self, n_steps: int) -> Mapping[str, Any] | None:
        """See `OptimizerRule`."""
        return {"rule": OPTIMIZERS["NAdam"].kernel_rule, "beta1": self.betas[0],
                "beta2": self.betas[1], "eps": self.eps, "weight_decay": self.weight_decay,
                "carried": self._product_after(n_steps)}  # fmt: skip

    def torch_scalars(self, n_steps: int) -> dict[str, float]:
        """See `OptimizerRule`."""
        return {"step": float(n_steps), "mu_product": self._product_after(n_steps)}

    def _product_after(self, n_steps: int) -> float:
        return float(math.prod(self.momentum(step) for step in range(1, n_steps + 1)))


@final
@dataclass
class RMSprop(OptimizerRule):
    """`torch.optim.RMSprop` without centring, as the Adam that it is.

    Adam with beta1 = 0, beta2 = alpha and no bias correction (a step count without end) is
    RMSprop term by term; its first moment is the gradient, whose own memory stands for it. With
    momentum, the buffer b is what that Adam updates: decoupled decay by 1 - momentum and learning
    rate -1 make it b = momentum b + g / (sqrt(v) + eps). One or two passes over memory where the
    written-out form takes seven (benchmarks/NOTES.md).
    """

    alpha: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0
    state_names: tuple[str, ...] = field(init=False)
    _steps: Tensors = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.state_names = ("square_avg", *(("momentum_buffer",) if self.momentum else ()))

    def update(self, at: Slices, lr: float, is_first: bool) -> None:
        """One fused pass, and with momentum one addition."""
        if len(self._steps) != len(at.params) or self._steps[0].device != at.params[0].device:
            endless = torch.full_like(at.steps[0], _ENDLESS_STEP)
            self._steps = [endless] * len(at.params)
        scales = {"beta1": 0.0, "beta2": self.alpha, "eps": self.eps}
        if not self.momentum:
            moments = (at.grads, at.grads, at.states[0])
            _adam(torch._fused_adam_, at.params, moments, self._steps, lr=lr,
                  weight_decay=self.weight_decay, **scales)  # fmt: skip
            return
        if self.weight_decay:
            torch._foreach_add_(at.grads, at.params, alpha=self.weight_decay)
        squares, buffers = at.states
        _adam(torch._fused_adamw_, buffers, (at.grads, at.grads, squares), self._steps, lr=-1.0,
              weight_decay=self.momentum - 1.0, **scales)  # fmt: skip
        torch._foreach_add_(at.params, buffers, alpha=-lr)

    def kernel_fields(self, n_steps: int) -> Mapping[str, Any] | None:
        """See `OptimizerRule`."""
        return {"rule": OPTIMIZERS["RMSprop"].kernel_rule, "beta2": self.alpha, "eps": self.eps,
                "momentum": self.momentum, "weight_decay": self.weight_decay}  # fmt: skip


@final
@dataclass
class WrittenOutRMSprop(OptimizerRule):
    """`torch.optim.RMSprop` with centring, or without decay of the squares (alpha = 1)."""

    alpha: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0
    centered: bool = False
    state_names: tuple[str, ...] = field(
        default=("square_avg", "momentum_buffer", "grad_avg"), init=False
    )

    def update(self, at: Slices, lr: float, is_first: bool) -> None:
        """Several passes over memory."""
        squares, buffers, means = at.states
        if self.weight_decay:
            torch._foreach_add_(at.grads, at.params, alpha=self.weight_decay)
        torch._foreach_mul_(squares, self.alpha)
        torch._foreach_addcmul_(squares, at.grads, at.grads, value=1.0 - self.alpha)
        if self.centered:
            torch._foreach_lerp_(means, at.grads, 1.0 - self.alpha)
            scales = torch._foreach_addcmul(squares, means, means, value=-1.0)
            torch._foreach_sqrt_(scales)
        else:
            scales = torch._foreach_sqrt(squares)
        torch._foreach_add_(scales, self.eps)
        if self.momentum:
            torch._foreach_mul_(buffers, self.momentum)
            torch._foreach_addcdiv_(buffers, at.grads, scales)
            torch._foreach_add_(at.params, buffers, alpha=-lr)
        else:
            torch._foreach_addcdiv_(at.params, at.grads, scales, value=-lr)

    def kernel_fields(self, n_steps: int) -> Mapping[str, Any] | None:
        """See `OptimizerRule`."""
        return {"rule": OPTIMIZERS["RMSprop"].kernel_rule, "beta2": self.alpha, "eps": self.eps,
                "momentum": self.momentum, "is_centered": self.centered,
                "weight_decay": self.weight_decay}  # fmt: skip


def make_rule(optimizer: str, arguments: Mapping[str, Any]) -> OptimizerRule:
    """The rule for `torch.optim.<optimizer>(**arguments)`; `lr` among them is ignored.

    Raises KeyError for an optimizer without a rule, TypeError for an argument that it does not
    take.
    """
    given = {name: value for name, value in arguments.items() if name != "lr"}
    if optimizer == "RMSprop":
        # alpha = 1 never decays: beta2 ** step would be 1 and the correction a division by 0.
        if given.get("centered") or given.get("alpha", 0.99) >= 1.0:
            return WrittenOutRMSprop(**given)
        return RMSprop(**{k: v for k, v in given.items() if k != "centered"})
    given = {**OPTIMIZERS[optimizer].defaults, **given}
    if optimizer == "AdamW":
        return Adam(is_decoupled=True, **given)
    return {"SGD": SGD, "Adam": Adam, "NAdam": NAdam}[optimizer](**given)  # type: ignore[no-any-return]


def clip(grads: Tensors, max_norm: float) -> None:
    """Scale `grads` in place so that their joint 2-norm is at most `max_norm`.

    The formula of `torch.nn.utils.clip_grad_norm_`, on the device without a host read.
    """
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    torch._foreach_mul_(grads, (max_norm / (norm + 1e-6)).clamp_(max=1.0))


def learning_rates(
    schedule: str, lr: float, epoch: int, n_epochs: int, n_steps: int
) -> list[float]:
    """Learning rate of each of the `n_steps` steps of a trial's epoch `epoch` (from 0).

    What `MLPClassifier` gets from CosineAnnealingLR, StepLR and OneCycleLR of
    `torch.optim.lr_scheduler` over `n_epochs` epochs (their closed forms).
    """
    if schedule == "cosine":
        return [lr * (1.0 + math.cos(math.pi * epoch / n_epochs)) / 2.0] * n_steps
    if schedule == "step":
        return [lr * 0.1 ** (epoch // max(1, n_epochs // 3))] * n_steps
    if schedule == "one_cycle":
        total = max(1, n_epochs * n_steps)
        first = epoch * n_steps
        return [_one_cycle(lr, step, total) for step in range(first, first + n_steps)]
    return [lr] * n_steps


def _one_cycle(max_lr: float, step: int, total: int) -> float:
    """OneCycleLR's defaults: 30 % up from max/25, then down to max/250000, both as cosines."""
    peak, last = 0.3 * total - 1.0, total - 1.0
    low = max_lr / 25.0
    if step <= peak:
        start, end, share = low, max_lr, (step / peak if peak else 1.0)
    else:
        start, end, share = max_lr, low / 1e4, (step - peak) / (last - peak)
    return end + (start - end) / 2.0 * (1.0 + math.cos(math.pi * share))


def _adam(
    kernel: Any, params: Tensors, moments: tuple[Tensors, Tensors, Tensors], steps: Tensors,
    **scalars: float,
) -> None:  # fmt: skip
    """`moments`: the gradients, and their first and second moments."""
    kernel(params, *moments, [], steps, amsgrad=False, maximize=False, **scalars)
