"""A LightningModule and a LightningDataModule of one's own:

$ sweep check --module cnn.py:Net --data cnn.py:Images --metric val_acc --vary lr=1e-3..1e-1:log
$ sweep run --module cnn.py:Net --data cnn.py:Images --metric val_acc --trials 4 --epochs 3 \
    --vary lr=1e-3..1e-1:log --vary channels=4,8 --vary batch_size=32,64
$ sweep best
"""

import lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset, random_split
from torchmetrics.classification import MulticlassAccuracy


class Images(lightning.LightningDataModule):
    """1,797 digits of 1x8x8 pixels."""

    def __init__(self, batch_size: int = 64) -> None:
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage: str | None = None) -> None:
        digits = load_digits()
        x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
        whole = TensorDataset(x, torch.tensor(digits.target))
        draw = torch.Generator().manual_seed(0)
        self.train, self.val, self.test = random_split(whole, [0.7, 0.15, 0.15], draw)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, self.hparams.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, 512)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test, 512)


class Net(lightning.LightningModule):
    """Two convolutions with BatchNorm, trained with a one-cycle schedule."""

    def __init__(self, channels: int = 8, lr: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(channels, 2 * channels, 3, padding=1), nn.BatchNorm2d(2 * channels),
            nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * channels, 10),
        )  # fmt: skip
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

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
        n_steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.hparams.lr, n_steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }
