"""A user's module that takes its process down in two ways; found by workers as `eater:Model`."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn

SPACE = """# One of each.
parameters:
  mode: {choices: [fine, eat, die]}
"""
ROOM = 512 << 20
"""Bytes that an eating trial may take before its process gets no more."""


class Model(lightning.LightningModule):
    """A linear classifier; `mode` says what happens in its second epoch."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        self.mode = mode

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        if self.current_epoch == 0:
            return loss
        if self.mode == "eat":
            eat()
        if self.mode == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        hits = (self.net(batch[0]).argmax(1) == batch[1]).float().mean()
        self.log("acc", hits)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def eat() -> None:
    """Take memory until the system gives no more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ROOM
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    eaten = []
    try:
        while True:
            eaten.append(torch.ones(16 << 20))
    finally:
        eaten.clear()
        resource.setrlimit(resource.RLIMIT_AS, before)
