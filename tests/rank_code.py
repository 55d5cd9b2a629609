"""A module and its data for trials on several devices; what one rank does wrong is an argument."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


class Rows(lightning.LightningDataModule):
    """Sums of four numbers: 96 rows to train on, 32 to validate.

    One process draws its order in `order` as Lightning's ranks draw theirs by their seed.
    """

    def __init__(self, batch_size: int = 8, order: int | None = None) -> None:
        super().__init__()
        self.batch_size, self.order = batch_size, order
        x = torch.rand(128, 4, generator=torch.Generator().manual_seed(0))
        self.sets = [TensorDataset(x[a:b], x[a:b].sum(1)) for a, b in ((0, 96), (96, 128))]

    def train_dataloader(self) -> Any:
        if self.order is None:
            return DataLoader(self.sets[0], self.batch_size, shuffle=True)
        sampler = DistributedSampler(self.sets[0], 1, 0, seed=self.order)
        return DataLoader(self.sets[0], self.batch_size, sampler=sampler)

    def val_dataloader(self) -> Any:
        return DataLoader(self.sets[1], self.batch_size)


class Shared(lightning.LightningModule):
    """A small network. In rank 1 it comes late, or does its misdeed in epoch `at` (from 0)."""

    def __init__(
        self, lr: float = 0.05, dropout: float = 0.0, misdeed: str = "", at: int = 2,
        nap_s: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.save_hyperparameters()
        if misdeed == "late" and os.environ.get("LOCAL_RANK") == "1":
            time.sleep(2.5)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        time.sleep(self.hparams.nap_s)
        if os.environ.get("LOCAL_RANK") == "1" and self.current_epoch == self.hparams.at:
            self.misbehave(batch_idx)
        loss = functional.mse_loss(self(batch[0]), batch[1])
        self.log("train_loss", loss, on_epoch=True, on_step=False, sync_dist=True)
        return loss

    def misbehave(self, batch_idx: int) -> None:
        """Rank 1 raises or dies."""
        if self.hparams.misdeed == "raise" and batch_idx == 3:
            raise KeyError("only in rank 1")
        done = Path(self.trainer.default_root_dir, "..", "..", "..", "..", "died")
        if self.hparams.misdeed == "die" and batch_idx == 3 and not done.exists():
            done.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if os.environ.get("LOCAL_RANK") == "1" and self.hparams.misdeed == "hooks":
            raise ValueError("cannot be loaded in rank 1")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        is_time = self.hparams.misdeed == "hooks" and self.current_epoch == self.hparams.at
        if os.environ.get("LOCAL_RANK") == "1" and is_time:
            raise ValueError("cannot be saved in rank 1")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", functional.mse_loss(self(batch[0]), batch[1]))  # of this rank alone

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.5)
