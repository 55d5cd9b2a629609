"""Projects as Lightning users write them: nothing here knows of sweep.

Found by workers as a user's modules are, through the path of the process that started them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

DATA, RELU = Path("data"), nn.ReLU()


class Points(lightning.LightningDataModule):
    """Noisy sums of four numbers."""

    def __init__(self, batch_size: int = 16, noise: float = 0.1, root: Path = DATA) -> None:
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage: str | None = None) -> None:
        g = torch.Generator().manual_seed(0)
        x = torch.rand(120, 4, generator=g)
        y = x.sum(1) + self.hparams.noise * torch.randn(120, generator=g)
        self.sets = [TensorDataset(x[a:b], y[a:b]) for a, b in ((0, 80), (80, 100), (100, 120))]

    def train_dataloader(self) -> Any:
        return DataLoader(self.sets[0], self.hparams.batch_size, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.sets[1], 20)

    def test_dataloader(self) -> Any:
        return DataLoader(self.sets[2], 20)


class Line(lightning.LightningModule):
    """Linear regression."""

    def __init__(self, lr: float = 0.01, unused: int = 3, stored: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.stored = stored
        self.net = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return functional.mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", functional.mse_loss(self(batch[0]), batch[1]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", functional.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


class Kept(Line):
    """Its dropout is kept and forgotten."""

    def __init__(self, lr: float = 0.01, dropout: float = 0.1) -> None:
        super().__init__(lr)
        self.dropout = dropout


class Overridden(Line):
    """Width and batch size are in the signature alone."""

    def __init__(self, lr: float = 0.01, width: int = 8, batch_size: int = 4) -> None:
        super().__init__(lr)

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(torch.rand(8, 4), torch.rand(8)), 4)


class Living(lightning.LightningModule):
    """Each argument does something, `unfreeze_at` later on."""

    def __init__(
        self, lr: float = 0.01, width: int = 4, l1: float = 0.0, gamma: float = 0.5,
        unfreeze_at: int = 2,
    ) -> None:  # fmt: skip
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 1))

    def on_train_epoch_start(self) -> None:
        self.net[0].requires_grad_(self.current_epoch >= self.hparams.unfreeze_at or True)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        size = sum(p.abs().sum() for p in self.parameters())
        return functional.mse_loss(self.net(batch[0])[:, 0], batch[1]) + self.hparams.l1 * size

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", functional.mse_loss(self.net(batch[0])[:, 0], batch[1]))
        if self.current_epoch:
            self.log("val_rare", 0.5)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams.lr)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, self.hparams.gamma)
        return [optimizer], [schedule]


class Failing(Line):
    """Fails with its first minibatch."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        raise ZeroDivisionError("no samples left")


class Encoder(nn.Module):
    """A network to be handed over."""

    def __init__(self, width: int = 8, depth: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(4, width)]
        for _ in range(depth - 1):
            layers += [nn.ReLU(), nn.Linear(width, width)]
        self.layers = nn.Sequential(*layers, nn.ReLU(), nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Template(lightning.LightningModule):
    """The kind of lightning-hydra-template: network, optimizer and scheduler are arguments."""

    def __init__(
        self,
        net: nn.Module,
        optimizer: Callable[[Any], Optimizer] = torch.optim.Adam,
        scheduler: Callable[[Optimizer], Any] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False, ignore=["net"])
        self.net = net

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return functional.mse_loss(self.net(batch[0])[:, 0], batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", functional.mse_loss(self.net(batch[0])[:, 0], batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = self.hparams.optimizer(self.parameters())
        if self.hparams.scheduler is None:
            return optimizer
        schedule = self.hparams.scheduler(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": schedule}


class Watched(Line):
    """Stops early, watches its rate, lowers it on a plateau; logs by step, too."""

    def __init__(self, lr: float = 0.01, root: Path = DATA, act: nn.Module = RELU) -> None:
        super().__init__(lr)
        self.save_hyperparameters()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def configure_callbacks(self) -> Any:
        return [EarlyStopping("val_loss", min_delta=10.0, patience=1), LearningRateMonitor("step")]

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        return {"optimizer": optimizer, "lr_scheduler": schedule, "monitor": "val_loss"}
