"""A user's module and data whose process takes more and more memory; found as `leaky:...`."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn

SPACE = "parameters:\n  lr: {float: [1e-2, 0.5], log: true}\n"
LIMIT_GB = 0.85
KEPT: list[bytes] = []


class Model(lightning.LightningModule):
    """A linear classifier with dropout."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        logits = self.net(batch[0])
        self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]))
        self.log("val_acc", (logits.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9)


class Leaky(Model):
    """The first process that trains it grows, and is over the limit after its second epoch."""

    def on_train_epoch_end(self) -> None:
        if is_first():
            grow(0.8 + 0.1 * self.current_epoch)


def blobs() -> dict[str, tuple[Tensor, Tensor]]:
    """Noisy digits of a kind."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 10, (600,), generator=generator)
    x = torch.rand(600, 1, 8, 8, generator=generator) + y[:, None, None, None] / 10
    return {"train": (x[:500], y[:500]), "test": (x[500:], y[500:])}


def leaky_blobs() -> dict[str, tuple[Tensor, Tensor]]:
    """The same; the first process that loads them grows after its first checkpoint."""
    if is_first():
        threading.Thread(target=grow_later, args=(time.time(),), daemon=True).start()
    return blobs()


def grow_later(began: float) -> None:
    """Wait until this process has written a resume state, then take memory."""
    while not any(age(p) > began for p in Path().glob("mlruns/.sweep/*/trials/*/last.ckpt")):
        time.sleep(0.01)
    grow(LIMIT_GB + 0.1)


def is_first() -> bool:
    """Whether this process is the first in its folder to ask."""
    first = Path("first")
    if not first.exists():
        first.write_text(str(os.getpid()))
    return first.read_text() == str(os.getpid())


def age(path: Path) -> float:
    """When the file was written; 0 if it is gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def grow(to_gb: float) -> None:
    """Take memory until this process has so much; other threads wait meanwhile."""
    n_pages = int(Path("/proc/self/statm").read_text().split()[1])
    missing = to_gb * 1e9 - n_pages * os.sysconf("SC_PAGE_SIZE")
    KEPT.append(b"x" * max(0, int(missing)))
