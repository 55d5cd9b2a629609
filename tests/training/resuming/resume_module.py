"""A module of a user's whose every part has a state that a resumed trial needs."""

from __future__ import annotations

import random
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Dropping(lightning.LightningModule):
    """Dropout and noise from the global generators, and a schedule that watches a metric."""

    def __init__(self, rate: float = 0.5) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, 16),
            nn.BatchNorm1d(16),
            nn.Dropout(rate),
            nn.Linear(16, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 10)."""
        return self.net(x)  # type: ignore[no-any-return]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of a noisy minibatch."""
        x, y = batch
        noise = np.random.rand() + random.random()
        loss = nn.functional.cross_entropy(self(x * (1.0 + 0.1 * noise)), y)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Logs val_acc and val_loss."""
        logits = self(batch[0])
        self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]))
        self.log("val_acc", (logits.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        """Adam whose learning rate changes after every epoch without a new record."""
        optimizer = torch.optim.Adam(self.parameters(), lr=0.03)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, mode="max", factor=0.3, patience=0, threshold=0.5
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": plateau, "monitor": "val_acc"},
        }


class OwnLoader(Dropping):
    """Shuffles with a DataLoader of its own, from the global generator."""

    def _data(self) -> TensorDataset:
        generator = torch.Generator().manual_seed(0)
        y = torch.randint(0, 10, (200,), generator=generator)
        return TensorDataset(torch.rand(200, 64, generator=generator) + y[:, None] / 10, y)

    def train_dataloader(self) -> Any:
        """Seven minibatches in a new order each epoch."""
        return DataLoader(self._data(), batch_size=32, shuffle=True)

    def val_dataloader(self) -> Any:
        """In order."""
        return DataLoader(self._data(), batch_size=100)


class Unpicklable(Dropping):
    """Cannot be written as a checkpoint."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what no file can hold."""
        checkpoint["mine"] = lambda: None
