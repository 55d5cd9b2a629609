"""Modules with habits that a step of many trials could get wrong."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from projects import Line
from torch import Tensor, nn
from torch.nn import functional


class Scaled(Line):
    """Its loss has a factor."""

    def __init__(self, lr: float = 0.01, scale: float = 1.0) -> None:
        super().__init__(lr)
        self.scale = scale

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(self(batch[0]), batch[1])

    def loss(self, found: Tensor, wanted: Tensor) -> Tensor:
        """Of a minibatch."""
        return self.scale * functional.mse_loss(found, wanted)


class ByClosure(Scaled):
    """Its loss is a function with a hold of the module."""

    def __init__(self, lr: float = 0.01, scale: float = 1.0) -> None:
        super().__init__(lr, scale)
        self.loss = lambda found, wanted: self.scale * functional.mse_loss(found, wanted)


class Annealed(lightning.LightningModule):
    """A part that asks for the epoch."""

    def forward(self, loss: Tensor) -> Tensor:
        return loss * (1 + self.current_epoch)


class Nested(Scaled):
    """A part of it is a LightningModule."""

    def __init__(self, lr: float = 0.01, scale: float = 1.0) -> None:
        super().__init__(lr, scale)
        self.annealed = Annealed()

    def loss(self, found: Tensor, wanted: Tensor) -> Tensor:
        return self.annealed(super().loss(found, wanted))


class Masked(Scaled):
    """Not all samples count, and how many do is another number in each minibatch."""

    def loss(self, found: Tensor, wanted: Tensor) -> Tensor:
        counts = wanted > 1.8
        return self.scale * functional.mse_loss(found[counts], wanted[counts])


class Replaced(Scaled):
    """Puts a new tensor into its buffer."""

    def __init__(self, lr: float = 0.01, scale: float = 1.0) -> None:
        super().__init__(lr, scale)
        self.register_buffer("center", torch.zeros(()))

    def loss(self, found: Tensor, wanted: Tensor) -> Tensor:
        self.center = 0.9 * self.center + 0.1 * found.detach().mean()
        return super().loss(found - self.center, wanted)


class Hooked(Scaled):
    """Its gradients are halved by a hook."""

    def configure_optimizers(self) -> Any:
        self.net.weight.register_hook(lambda grad: grad / 2)
        return super().configure_optimizers()


class Averaged(Scaled):
    """Its optimizer moves an average along after each step."""

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        self.average = self.net.weight.detach().clone()
        optimizer.register_step_post_hook(
            lambda *_: self.average.lerp_(self.net.weight.detach(), 0.1)
        )
        return optimizer

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        found = functional.linear(batch[0], self.average, self.net.bias).squeeze(1)
        self.log("val_loss", functional.mse_loss(found, batch[1]))


class OnViews(Scaled):
    """Multiplies views by one, and has a constant that is no buffer."""

    def __init__(self, lr: float = 0.01, scale: float = 1.0) -> None:
        super().__init__(lr, scale)
        self.one, self.weights = 1.0, torch.tensor([1.0, 2.0])
        self.net, self.second = nn.Linear(1, 1), nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.one * x[:, 0:1], self.one * x[:, 1:2]
        weights = self.weights.to(x)
        return (weights[0] * self.net(a) + weights[1] * self.second(b)).squeeze(1)
