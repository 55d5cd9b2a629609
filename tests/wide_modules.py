"""Modules whose widths vary from trial to trial."""

from __future__ import annotations

from typing import Any

import torch
from projects import Line
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """A residual block."""

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(inner, width)
        self.inner = nn.Sequential(
            nn.Linear(width, inner), nn.LayerNorm(inner), nn.Dropout(dropout), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.5 * self.out(self.inner(self.norm(x)))


class Wide(Line):
    """Two widths, two numbers, several optimizers."""

    def __init__(
        self, lr: float = 0.01, width: int = 8, inner: int = 4, dropout: float = 0.2,
        factor: float = 1.0, optimizer: str = "AdamW",
    ) -> None:  # fmt: skip
        super().__init__(lr)
        self.save_hyperparameters()
        self.factor = factor
        self.net: Any = nn.Sequential(
            nn.Linear(4, width), nn.Softplus(), Block(width, inner, dropout), nn.Dropout(dropout),
            nn.Linear(width, 1, bias=False),
        )  # fmt: skip

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.factor * super().training_step(batch, batch_idx)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        name = self.hparams.optimizer
        more: dict[str, Any] = {"weight_decay": 0.1}
        if name in ("SGD", "RMSprop"):
            more["momentum"] = 0.5
        return getattr(torch.optim, name)(self.parameters(), lr=self.hparams.lr, **more)


class Odd(Line):
    """Does to its hidden units what padding would change."""

    def __init__(self, lr: float = 0.01, width: int = 8, habit: str = "") -> None:
        super().__init__(lr)
        self.habit, self.width = habit, width
        self.net: Any = nn.Identity()
        self.first = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width))
        self.last = nn.Linear(width, 1)
        if habit == "batch norm":
            self.norm: nn.Module = nn.BatchNorm1d(width)
        elif habit == "layer norm without weights":
            self.norm = nn.LayerNorm(width, elementwise_affine=False)

    def changed(self, h: Tensor) -> Tensor:
        """Hidden units (B, width)."""
        if self.habit == "mean":
            return h - h.mean(1, keepdim=True)
        if self.habit == "softmax":
            return torch.softmax(h, -1)
        if self.habit == "sizes":
            return h / h.shape[1]
        if self.habit == "number of rows":
            return h / len(h)
        if self.habit == "own width":
            return h / self.width
        if self.habit == "added":
            return functional.relu(h + 1)
        if self.habit == "in place":
            h = 1.0 * h
            h[:, -1] = 1.0
            return h
        return self.norm(h)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        if self.habit == "unseen":  # as in a C++ extension
            with torch._C.DisableTorchFunction():
                mean = h.mean()
            return self.last(h).squeeze(1) + mean
        return self.last(self.changed(h)).squeeze(1)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


class Even(Odd):
    """Its hidden units may be padded: for `changed` that changes nothing."""

    def changed(self, h: Tensor) -> Tensor:
        return h
