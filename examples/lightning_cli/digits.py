"""Module and data of the project; nothing here knows of sweep."""

from collections.abc import Callable, Iterable

import lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset, random_split
from torchmetrics.classification import MulticlassAccuracy


class Digits(lightning.LightningDataModule):
    """1,797 digits of 8x8 pixels."""

    def __init__(self, batch_size: int = 64) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str | None = None) -> None:
        x, y = load_digits(return_X_y=True)
        whole = TensorDataset(torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y))
        draw = torch.Generator().manual_seed(0)
        self.train, self.val, self.test = random_split(whole, [0.7, 0.15, 0.15], draw)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, 512)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test, 512)


class Layers(nn.Sequential):
    """64 inputs, one hidden layer, ten classes."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


class Classifier(lightning.LightningModule):
    """Takes its network and its optimizer, as lightning-hydra-template does."""

    def __init__(
        self,
        net: nn.Module,
        optimizer: Callable[[Iterable], torch.optim.Optimizer] = torch.optim.Adam,
    ) -> None:
        super().__init__()
        self.net, self.optimizer = net, optimizer
        self.val_acc = MulticlassAccuracy(10, average="micro")

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.val_acc(self(batch[0]), batch[1])
        self.log("val_acc", self.val_acc)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters())
