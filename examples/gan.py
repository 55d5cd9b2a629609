"""A generator and a discriminator with an optimizer each, stepped by hand:

$ sweep run --module gan.py:Gan --data gan.py:points --metric val_distance --direction minimize \
    --trials 3 --epochs 2 --vary lr_g=1e-3..3e-2:log --vary lr_d=1e-3..3e-2:log
"""

import lightning
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce


def points(n: int = 2000) -> dict:
    """Points on a circle, and a loader of each kind of minibatch."""
    angle = 2 * torch.pi * torch.rand(n, generator=torch.Generator().manual_seed(0))
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    return {"train": circle[: n // 2], "val": circle[n // 2 :]}


def network(n_in: int, n_out: int) -> nn.Sequential:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Linear(n_in, 32), nn.LeakyReLU(), nn.Linear(32, 32), nn.LeakyReLU(),
        nn.Linear(32, n_out),
    )  # fmt: skip


class Gan(lightning.LightningModule):
    """Learns the circle."""

    def __init__(self, lr_g: float = 0.01, lr_d: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.generator, self.discriminator = network(2, 2), network(2, 1)

    def forward(self, z: Tensor) -> Tensor:
        return self.generator(z)

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        of_generator, of_discriminator = self.optimizers()
        ones = torch.ones(len(batch), 1)
        made = self(torch.randn_like(batch))
        of_discriminator.zero_grad()
        loss = bce(self.discriminator(batch), ones) + bce(
            self.discriminator(made.detach()), 0 * ones
        )
        self.manual_backward(loss)
        of_discriminator.step()
        of_generator.zero_grad()
        self.manual_backward(bce(self.discriminator(made), ones))
        of_generator.step()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        made = self(torch.randn_like(batch))
        self.log("val_distance", torch.cdist(batch, made).min(1).values.mean())

    def configure_optimizers(self) -> list:
        return [
            torch.optim.Adam(self.generator.parameters(), self.hparams.lr_g),
            torch.optim.Adam(self.discriminator.parameters(), self.hparams.lr_d),
        ]
