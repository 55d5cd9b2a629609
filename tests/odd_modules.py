"""Modules with habits that a step of many trials could get wrong."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from projects import Line
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MeanMetric


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


class Bounded(Scaled):
    """Its loss raises an error for what is no number."""

    def loss(self, found: Tensor, wanted: Tensor) -> Tensor:
        sureness = functional.binary_cross_entropy(torch.sigmoid(found), (wanted > 1.8).to(found))
        return super().loss(found, wanted) + 0.1 * sureness


class Counting(Scaled):
    """A metric raises an error for what is no number."""

    def __init__(self, lr: float = 0.01, scale: float = 1.0) -> None:
        super().__init__(lr, scale)
        self.mean = MeanMetric(nan_strategy="error")

    def loss(self, found: Tensor, wanted: Tensor) -> Tensor:
        loss = super().loss(found, wanted)
        self.mean.update(loss * (1 - loss.detach() / loss.detach()))
        return loss


class LogsWeights(Scaled):
    """Logs a weight as it is before the step."""

    def loss(self, found: Tensor, wanted: Tensor) -> Tensor:
        self.log("train_bias", self.net.bias, on_step=False, on_epoch=True)
        return super().loss(found, wanted)


class InPlace(Scaled):
    """Changes its minibatch, and has a mask among its buffers."""

    def __init__(self, lr: float = 0.01, scale: float = 1.0) -> None:
        super().__init__(lr, scale)
        self.register_buffer("mask", torch.tensor([True, True, False, True]))
        self.own = nn.Parameter(torch.zeros(int(10 * scale)))  # of another shape in each trial

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        batch[0].mul_(self.mask).add_(0.1)
        return super().training_step(batch, batch_idx) + self.own.square().sum()


class AsksForValues(Scaled):
    """What it does depends on what a minibatch holds."""

    def __init__(self, lr: float = 0.01, scale: float = 1.0) -> None:
        super().__init__(lr, scale)
        self.weights = torch.tensor([1.0, 2.0])

    def loss(self, found: Tensor, wanted: Tensor) -> Tensor:
        is_large = max(wanted.tolist()) > 2.9
        return super().loss(found, wanted) * self.weights.to(found)[int(is_large)]
