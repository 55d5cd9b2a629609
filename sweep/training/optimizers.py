"""Optimizers, schedules and gradient clipping for many trials at once.

A rule's `update` takes one step of n trials with optimizers of one kind: parameters, gradients and
states are (n, ...) each, settings of single trials are coefficients (n, 1, 1). Each rule equals
the optimizer of the same name in `torch.optim` up to rounding. Padding relies on one property:
zero parameters with zero gradients stay exactly zero.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from sweep.hyperparameters import OPTIMIZERS

Values = np.ndarray[Any, np.dtype[np.float64]]
At = Mapping[str, Tensor]
"""Coefficients by name, (n, 1, 1) each."""
MOMENTUM_DECAY = 4e-3
"""torch's default for NAdam."""


class OptimizerRule(ABC):
    """An optimizer with its arguments."""

    name: str
    """Key in `sweep.hyperparameters.OPTIMIZERS`."""

    @property
    @abstractmethod
    def state_names(self) -> tuple[str, ...]:
        """Names of the state tensors of a parameter, as in `torch.optim`."""

    @property
    def n_states(self) -> int:
        """State tensors per parameter."""
        return len(self.state_names)

    @property
    def kind(self) -> Hashable:
        """Rules of equal kind are stepped together."""
        return self.name, self.state_names

    @abstractmethod
    def coefficients(self, n_taken: int, rates: Values) -> dict[str, Values | float]:
        """Coefficients for `update` in the next steps: (n_steps,) each, or one number for all.

        Args:
            n_taken: Steps taken by the trial so far.
            rates: Learning rates of the next steps (n_steps,).
        """

    def update(
        self, params: Sequence[Tensor], grads: Sequence[Tensor],
        states: Sequence[Sequence[Tensor]], at: Mapping[str, Tensor],
    ) -> None:  # fmt: skip
        """Take one step in place; `at` holds the `coefficients` of all trials, (n, 1, 1) each."""
        for k, (param, grad) in enumerate(zip(params, grads, strict=True)):
            self.step(param, grad, [state[k] for state in states], at)

    @abstractmethod
    def step(self, param: Tensor, grad: Tensor, states: list[Tensor], at: At) -> None:
        """Take one step of one parameter (n, ...) in place."""

    def kernel_fields(self, n_steps: int) -> Mapping[str, Any] | None:
        """The rule's fields of a kernel `Trial` after `n_steps` steps; None: kernel.c does not
        implement the rule."""
        return None

    def torch_scalars(self, n_steps: int) -> dict[str, float]:
        """Scalars in torch's state of each parameter after `n_steps` steps."""
        return {"step": float(n_steps)}


@final
@dataclass(frozen=True)
class SGD(OptimizerRule):
    """`torch.optim.SGD`."""

    momentum: float = 0.0
    weight_decay: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    name = "SGD"

    @property
    def state_names(self) -> tuple[str, ...]:
        """See `OptimizerRule`."""
        return ("momentum_buffer",) if self.momentum else ()

    @property
    def kind(self) -> Hashable:
        """See `OptimizerRule`."""
        return self.name, self.state_names, self.nesterov

    def coefficients(self, n_taken: int, rates: Values) -> dict[str, Values | float]:
        """See `OptimizerRule`."""
        is_first = _steps(n_taken, rates) == 1  # the buffer begins as the gradient itself
        return {
            "lr": rates, "momentum": self.momentum, "weight_decay": self.weight_decay,
            "share": np.where(is_first, 1.0, 1.0 - self.dampening),
        }  # fmt: skip

    def step(self, param: Tensor, grad: Tensor, states: list[Tensor], at: At) -> None:
        """See `OptimizerRule`."""
        grad = grad + at["weight_decay"] * param
        if self.momentum:
            buffer = states[0].mul_(at["momentum"]).add_(at["share"] * grad)
            grad = grad + at["momentum"] * buffer if self.nesterov else buffer
        param.sub_(at["lr"] * grad)

    def kernel_fields(self, n_steps: int) -> Mapping[str, Any] | None:
        """See `OptimizerRule`."""
        return {"rule": OPTIMIZERS["SGD"].kernel_rule, "momentum": self.momentum,
                "dampening": self.dampening, "is_nesterov": self.nesterov,
                "weight_decay": self.weight_decay}  # fmt: skip


@dataclass(frozen=True)
class _OfMoments(OptimizerRule):
    """Adam and its kin: means of the gradients and of their squares."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    @property
    def state_names(self) -> tuple[str, ...]:
        """See `OptimizerRule`."""
        return "exp_avg", "exp_avg_sq"

    def kernel_fields(self, n_steps: int) -> Mapping[str, Any] | None:
        """See `OptimizerRule`."""
        return {"rule": OPTIMIZERS[self.name].kernel_rule, "beta1": self.betas[0],
                "beta2": self.betas[1], "eps": self.eps,
                "weight_decay": self.weight_decay}  # fmt: skip

    def _coefficients(self, n_taken: int, rates: Values) -> dict[str, Values | float]:
        """Coefficients except the step size."""
        return {
            "beta2": self.betas[1], "rest1": 1.0 - self.betas[0], "rest2": 1.0 - self.betas[1],
            "eps": self.eps, "weight_decay": self.weight_decay,
            "correction2": 1.0 - self.betas[1] ** _steps(n_taken, rates),
        }  # fmt: skip

    @staticmethod
    def _scale(means: Tensor, squares: Tensor, grad: Tensor, at: At) -> Tensor:
        """Update both moments with `grad`; returns the denominator of the step."""
        means.add_(at["rest1"] * (grad - means))
        squares.mul_(at["beta2"]).add_(at["rest2"] * grad * grad)
        return (squares / at["correction2"]).sqrt_().add_(at["eps"])


@final
@dataclass(frozen=True)
class Adam(_OfMoments):
    """`torch.optim.Adam`, or `AdamW` if the decay is decoupled."""

    is_decoupled: bool = False

    @property
    def name(self) -> str:  # type: ignore[override]
        """See `OptimizerRule`."""
        return "AdamW" if self.is_decoupled else "Adam"

    def coefficients(self, n_taken: int, rates: Values) -> dict[str, Values | float]:
        """See `OptimizerRule`."""
        size = rates / (1.0 - self.betas[0] ** _steps(n_taken, rates))
        kept = 1.0 - rates * self.weight_decay
        return {**self._coefficients(n_taken, rates), "size": size, "kept": kept}

    def step(self, param: Tensor, grad: Tensor, states: list[Tensor], at: At) -> None:
        """See `OptimizerRule`."""
        if self.is_decoupled:
            param.mul_(at["kept"])
        else:
            grad = grad + at["weight_decay"] * param
        means, squares = states
        scale = self._scale(means, squares, grad, at)
        param.sub_(at["size"] * means / scale)


@final
@dataclass(frozen=True)
class NAdam(_OfMoments):
    """`torch.optim.NAdam` with its default momentum_decay: Adam with Nesterov's momentum, whose
    weight rises from step to step (Dozat, 2016, "Incorporating Nesterov Momentum into Adam")."""

    name = "NAdam"

    def momentum(self, step: Any) -> Any:
        """The momentum of step `step`, counted from 1."""
        return self.betas[0] * (1.0 - 0.5 * 0.96 ** (step * MOMENTUM_DECAY))

    def coefficients(self, n_taken: int, rates: Values) -> dict[str, Values | float]:
        """See `OptimizerRule`."""
        steps = _steps(n_taken, rates)
        now, following = self.momentum(steps), self.momentum(steps + 1)
        product = self._product_after(n_taken) * np.cumprod(now)
        return {
            **self._coefficients(n_taken, rates),
            "of_gradient": rates * (1.0 - now) / (1.0 - product),
            "of_mean": rates * following / (1.0 - product * following),
        }

    def step(self, param: Tensor, grad: Tensor, states: list[Tensor], at: At) -> None:
        """See `OptimizerRule`."""
        means, squares = states
        grad = grad + at["weight_decay"] * param
        scale = self._scale(means, squares, grad, at)
        param.sub_((at["of_gradient"] * grad + at["of_mean"] * means) / scale)

    def kernel_fields(self, n_steps: int) -> Mapping[str, Any] | None:
        """See `OptimizerRule`."""
        fields = super().kernel_fields(n_steps) or {}
        return {**fields, "carried": self._product_after(n_steps)}

    def torch_scalars(self, n_steps: int) -> dict[str, float]:
        """See `OptimizerRule`."""
        return {"step": float(n_steps), "mu_product": self._product_after(n_steps)}

    def _product_after(self, n_steps: int) -> float:
        return float(math.prod(self.momentum(step) for step in range(1, n_steps + 1)))


@final
@dataclass(frozen=True)
class RMSprop(OptimizerRule):
    """`torch.optim.RMSprop`."""

    alpha: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0
    centered: bool = False
    name = "RMSprop"

    @property
    def state_names(self) -> tuple[str, ...]:
        """See `OptimizerRule`."""
        names = ("square_avg", "momentum_buffer", "grad_avg")  # kernel.c finds them by position
        return names[: 3 if self.centered else 2 if self.momentum else 1]

    @property
    def kind(self) -> Hashable:
        """See `OptimizerRule`."""
        return self.name, self.state_names, bool(self.momentum)

    def coefficients(self, n_taken: int, rates: Values) -> dict[str, Values | float]:
        """See `OptimizerRule`."""
        return {
            "lr": rates, "alpha": self.alpha, "rest": 1.0 - self.alpha, "eps": self.eps,
            "weight_decay": self.weight_decay, "momentum": self.momentum,
        }  # fmt: skip

    def step(self, param: Tensor, grad: Tensor, states: list[Tensor], at: At) -> None:
        """See `OptimizerRule`."""
        grad = grad + at["weight_decay"] * param
        squares = states[0].mul_(at["alpha"]).add_(at["rest"] * grad * grad)
        if self.centered:
            means = states[2].add_(at["rest"] * (grad - states[2]))
            squares = squares - means * means
        step = grad / (squares.sqrt() + at["eps"])
        if self.momentum:
            step = states[1].mul_(at["momentum"]).add_(step)
        param.sub_(at["lr"] * step)

    def kernel_fields(self, n_steps: int) -> Mapping[str, Any] | None:
        """See `OptimizerRule`."""
        return {"rule": OPTIMIZERS["RMSprop"].kernel_rule, "beta2": self.alpha, "eps": self.eps,
                "momentum": self.momentum, "is_centered": self.centered,
                "weight_decay": self.weight_decay}  # fmt: skip


def make_rule(optimizer: str, arguments: Mapping[str, Any]) -> OptimizerRule:
    """The rule for `torch.optim.<optimizer>(**arguments)`; ignores `lr`.

    Raises KeyError for an optimizer without a rule, TypeError for an unknown argument.
    """
    given = {**OPTIMIZERS[optimizer].defaults, **arguments}
    given.pop("lr", None)
    if optimizer == "AdamW":
        return Adam(is_decoupled=True, **given)
    rules: dict[str, Any] = {"SGD": SGD, "Adam": Adam, "NAdam": NAdam, "RMSprop": RMSprop}
    return rules[optimizer](**given)  # type: ignore[no-any-return]


def clip_scales(grads: Sequence[Tensor], max_norms: Tensor) -> Tensor:
    """Factors (n, 1, 1) for the gradients (n, ...) of n trials, to limit each trial's joint
    2-norm to `max_norms` (n, 1, 1): the formula of `torch.nn.utils.clip_grad_norm_`."""
    norms = torch.stack([grad.square().sum((1, 2), keepdim=True) for grad in grads]).sum(0).sqrt()
    return (max_norms / (norms + 1e-6)).clamp(max=1.0)


def _steps(n_taken: int, rates: Values) -> Values:
    """Numbers of the next steps, from 1."""
    return n_taken + np.arange(1.0, len(rates) + 1.0)


def learning_rates(
    schedule: str, lr: float, epoch: int, n_epochs: int, n_steps: int
) -> list[float]:
    """Learning rate of each of the `n_steps` steps of a trial's epoch `epoch` (from 0).

    Closed forms of CosineAnnealingLR, StepLR and OneCycleLR in `torch.optim.lr_scheduler`, as
    configured by `MLPClassifier` for `n_epochs` epochs.
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
    """OneCycleLR's defaults: a cosine from max/25 up to max in the first 30 % of the steps, then
    a cosine down to max/250000."""
    peak, last = 0.3 * total - 1.0, total - 1.0
    low = max_lr / 25.0
    if step <= peak:
        start, end, share = low, max_lr, (step / peak if peak else 1.0)
    else:
        start, end, share = max_lr, low / 1e4, (step - peak) / (last - peak)
    return end + (start - end) / 2.0 * (1.0 + math.cos(math.pi * share))
