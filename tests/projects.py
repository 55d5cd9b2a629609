"""Projects as Lightning users write them: nothing here knows of sweep.

Found by workers as a user's modules are, through the path of the process that started them.
"""

from __future__ import annotations

import random
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric, MeanSquaredError

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


class Crowded(Line):
    """Its steps take longer on several threads, as beside other programs."""

    def __init__(self, lr: float = 0.01, slow_s: float = 0.01) -> None:
        super().__init__(lr)
        self.slow_s = slow_s

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        time.sleep(0.002 if torch.get_num_threads() == 1 else self.slow_s)
        return super().training_step(batch, batch_idx)


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


SET_UP: list[str] = []


class Counted(Points):
    """Notes each setup."""

    def setup(self, stage: str | None = None) -> None:
        SET_UP.append(type(self).__name__)
        super().setup(stage)


class Drawing(Counted):
    """Draws from the global generator."""

    def setup(self, stage: str | None = None) -> None:
        torch.rand(1)
        super().setup(stage)


class TornDown(Counted):
    """Frees what it has set up."""

    def teardown(self, stage: str) -> None:
        del self.sets


class Jittered(torch.utils.data.Dataset[Any]):
    """Samples that are augmented from the global generator."""

    def __init__(self, of: Any) -> None:
        self.of = of

    def __len__(self) -> int:
        return len(self.of)

    def __getitem__(self, i: int) -> Any:
        x, y = self.of[i]
        return x + 0.01 * torch.randn(4) + 0.01 * random.random() + 0.01 * np.random.rand(), y


class Stream(torch.utils.data.IterableDataset[Any]):
    """Samples in an order of their own; nobody knows how many."""

    def __init__(self, of: Any) -> None:
        self.of = of

    def __iter__(self) -> Iterator[Any]:
        for i in torch.randperm(len(self.of)).tolist():
            yield self.of[i]


class Stateful(DataLoader[Any]):
    """A loader that keeps its place by itself."""

    n_given = 0

    def __iter__(self) -> Any:
        rows, first = [*super().__iter__()], self.n_given % len(self)
        for self.n_given in range(first + 1, len(rows) + 1):
            yield rows[self.n_given - 1]

    def state_dict(self) -> dict[str, int]:
        return {"n": self.n_given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.n_given = state["n"]


class Loaded(Points):
    """Points by loaders of each kind."""

    def __init__(self, kind: str = "shuffled", batch_size: int = 4) -> None:
        super().__init__(batch_size=batch_size)
        self.kind = kind

    def train_dataloader(self) -> Any:
        of, size = Jittered(self.sets[0]), self.hparams.batch_size
        if self.kind.startswith("drawn"):
            of = Jittered(self.drawn(80))
        if self.kind.endswith("stream"):
            return DataLoader(Stream(of), size)
        if self.kind == "own generator":
            return DataLoader(of, size, shuffle=True, generator=torch.Generator().manual_seed(3))
        if self.kind == "workers":
            return DataLoader(of, size, shuffle=True, num_workers=2)
        if self.kind == "stateful":
            return Stateful(of, size)
        if self.kind == "persistent" and not hasattr(self, "kept"):
            self.kept: Any = DataLoader(of, size, num_workers=1, persistent_workers=True)
        if self.kind == "combined" and not hasattr(self, "kept"):
            self.kept = CombinedLoader([DataLoader(of, size)])
        if hasattr(self, "kept"):
            return self.kept
        if self.kind == "two":
            rows = self.sets[0]
            return [DataLoader(rows, size, shuffle=True), DataLoader(rows, size, shuffle=True)]
        return DataLoader(of, size, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.drawn(20) if self.kind.startswith("drawn") else self.sets[1], 20)

    @staticmethod
    def drawn(n: int) -> Any:
        """Rows from the global generator, as Lightning's demos draw them."""
        x = torch.rand(n, 4)
        return TensorDataset(x, x.sum(1))


class Scheduled(Line):
    """A rate that changes every step, dropout, and noise from all global generators."""

    def __init__(self, lr: float = 0.05, by_hand: bool = False) -> None:
        super().__init__(lr=lr)
        self.automatic_optimization = not by_hand
        self.drop = nn.Dropout(0.2)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch[0] if isinstance(batch, list) and isinstance(batch[0], list) else batch
        loss = functional.mse_loss(self.net(self.drop(x)).squeeze(1), y + 0.01 * random.random())
        self.log("loss", loss)
        if not self.automatic_optimization:
            optimizer, schedule = self.optimizers(), self.lr_schedulers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            schedule.step()
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", functional.mse_loss(self(x), y))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), self.hparams.lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=200)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Looking(Scheduled):
    """Looks at its training data in hooks, as for statistics."""

    def on_train_start(self) -> None:
        self.n_seen = len([*self.trainer.train_dataloader])

    def on_validation_epoch_end(self) -> None:
        self.n_seen += len([*self.trainer.train_dataloader])


class Collecting(Scheduled):
    """Collects from an epoch's beginning on."""

    def on_train_epoch_start(self) -> None:
        self.outs: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.outs.append(loss.detach())
        return loss


class Stopping(Scheduled):
    """Its callback wants to stop at the second validation."""

    def configure_callbacks(self) -> Any:
        return [EarlyStopping("val_loss", patience=1, min_delta=1e6)]


class Late(Points):
    """Its loader takes long, at first ten times as long as later."""

    n_given = 0

    def train_dataloader(self) -> Any:
        return DataLoader(self.sets[0], 2, shuffle=True, collate_fn=self.collated)

    def collated(self, samples: Any) -> Any:
        type(self).n_given += 1
        time.sleep(0.1 if type(self).n_given < 10 else 0.01)
        return torch.utils.data.default_collate(samples)


class Prepared(Points):
    """Leaves a line in a file each time it prepares its data."""

    def __init__(self, noise: float = 0.1, root: str = "", keeps: bool = False) -> None:
        super().__init__(noise=noise)
        self.root, self.keeps = root, keeps

    def prepare_data(self) -> None:
        with Path(self.root, "prepared.txt").open("a") as file:
            file.write("prepared\n")
        if self.keeps:
            self.found = True


class Mixed(lightning.LightningModule):
    """All that trials may differ in while they share a step."""

    def __init__(
        self, lr: float = 0.01, dropout: float = 0.2, l1: float = 0.0, blur: float = 0.1,
        optimizer: str = "Adam", momentum: float = 0.9, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.save_hyperparameters()
        self.l1 = l1
        self.net = nn.Sequential(
            nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(dropout),
            nn.Linear(6, 1),
        )  # fmt: skip
        self.error, self.mean = MeanSquaredError(), MeanMetric()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x = batch[0] + self.hparams.blur * torch.randn_like(batch[0])
        found = self.net(x).squeeze(1)
        loss = functional.mse_loss(found, batch[1])
        size = sum(p.abs().sum() for p in self.parameters())
        self.error(found, batch[1])
        self.mean.update(loss)
        self.log("train_error", self.error, on_step=False, on_epoch=True)
        self.log("train_mean", self.mean, on_step=False, on_epoch=True)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        self.log("train_most", loss, on_step=False, on_epoch=True, reduce_fx="max")
        self.log("train_sum", loss, on_step=False, on_epoch=True, reduce_fx="sum")
        self.log("last", loss)
        return {"loss": loss + self.l1 * size, "found": found}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", functional.mse_loss(self.net(batch[0]).squeeze(1), batch[1]))

    def configure_optimizers(self) -> Any:
        kind = getattr(torch.optim, self.hparams.optimizer)
        others = {} if "Ada" in self.hparams.optimizer else {"momentum": self.hparams.momentum}
        first, *rest = self.parameters()
        groups = [{"params": [first], "weight_decay": 0.1}, {"params": rest}]
        optimizer = kind(groups, lr=self.hparams.lr, **others)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.9)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Thawing(Line):
    """Trials that may not share a step, in part: by their parameter groups, by what is frozen
    until an epoch, by what is in training mode, by when gradients are accumulated."""

    def __init__(
        self, lr: float = 0.01, is_swapped: bool = False, frozen_until: int = 0,
        is_still: bool = False, dropout: float = 0.3,
    ) -> None:  # fmt: skip
        super().__init__(lr)
        self.net: Any = nn.Sequential(
            nn.Linear(4, 4), nn.Dropout(dropout), nn.Linear(4, 4), nn.Dropout(dropout),
            nn.Linear(4, 1),
        )  # fmt: skip

    def on_train_epoch_start(self) -> None:
        frozen: Any = self.hparams
        self.net[2].requires_grad_(self.current_epoch >= frozen.frozen_until)
        self.net[1 if frozen.is_still else 3].eval()

    def configure_optimizers(self) -> Any:
        inner, outer = [*self.net[2].parameters()], [*self.net[0].parameters()]
        outer += self.net[4].parameters()
        rates = (self.hparams.lr, self.hparams.lr / 10)
        parts = (inner, outer) if self.hparams.is_swapped else (outer, inner)
        return torch.optim.Adam(
            [{"params": part, "lr": lr} for part, lr in zip(parts, rates, strict=True)]
        )


class Greedy(Line):
    """Has no room for more than two trials after their first epochs."""

    living: ClassVar[weakref.WeakSet[Any]] = weakref.WeakSet()

    def on_train_epoch_start(self) -> None:
        self.living.add(self)

    def on_validation_epoch_start(self) -> None:
        if self.current_epoch == 2 and len(self.living) > 2:
            raise torch.OutOfMemoryError("out of memory")
