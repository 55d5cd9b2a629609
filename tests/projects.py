"""Projects as Lightning users write them: nothing here knows of sweep.

Found by workers as a user's modules are, through the path of the process that started them.
"""

from __future__ import annotations

import random
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor
from lightning.pytorch.demos import LightningTransformer, Transformer
from lightning.pytorch.demos.boring_classes import (
    BoringModel,
    ManualOptimBoringModel,
    RandomDataset,
)
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, TensorDataset, random_split
from torchmetrics import MeanMetric, MeanSquaredError
from torchmetrics.classification import MulticlassAccuracy

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
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
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


class Hydra(lightning.LightningModule):
    """As lightning-hydra-template has it: the annotations do not say that they are callables."""

    def __init__(
        self,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False, ignore=["net"])
        self.net = net

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return functional.mse_loss(self.net(batch[0]).squeeze(1), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss = functional.mse_loss(self.net(batch[0]).squeeze(1), batch[1])
        self.log("val/loss", loss, on_step=False, on_epoch=True)

    def configure_optimizers(self) -> Any:
        optimizer = self.hparams.optimizer(params=self.trainer.model.parameters())
        if self.hparams.scheduler is None:
            return {"optimizer": optimizer}
        schedule = {
            "scheduler": self.hparams.scheduler(optimizer=optimizer), "monitor": "val/loss",
            "interval": "epoch", "frequency": 1,
        }  # fmt: skip
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


class Short:
    """A quarter of the demo's samples, drawn as it draws them."""

    def train_dataloader(self) -> Any:
        return DataLoader(RandomDataset(32, 16))

    val_dataloader = train_dataloader


class Boring(Short, BoringModel):
    """Lightning's demo, which logs nothing: with a metric."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        found = super().validation_step(batch, batch_idx)
        self.log("val_loss", found["x"])
        return found


class BoringByHand(Short, ManualOptimBoringModel):
    """The same with manual optimisation."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        found = super().validation_step(batch, batch_idx)
        self.log("val_loss", found["x"])
        return found


class Images(lightning.LightningDataModule):
    """Small pictures, their classes and masks, drawn anew by each seed of a trial."""

    def __init__(self, batch_size: int = 16) -> None:
        super().__init__()
        self.batch_size = batch_size

    def prepare_data(self) -> None:
        """Nothing to fetch."""

    def setup(self, stage: str | None = None) -> None:
        g = torch.Generator().manual_seed(1)
        x = torch.rand(64, 1, 8, 8, generator=g)
        masks = (x > 0.5).long().squeeze(1)
        whole = TensorDataset(x, (x.mean((1, 2, 3)) > 0.5).long(), masks)
        self.train, self.val = random_split(whole, [48, 16])  # by the global generator

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> Any:
        return [DataLoader(self.val, 8), DataLoader(self.val, 16)]


class Convolving(lightning.LightningModule):
    """A CNN with BatchNorm and dropout, judged by torchmetrics on two loaders."""

    def __init__(self, channels: int = 4, lr: float = 0.05) -> None:
        super().__init__()
        self.lr = lr
        self.net = nn.Sequential(
            nn.Conv2d(1, channels, 3), nn.BatchNorm2d(channels), nn.ReLU(), nn.Dropout(0.2),
            nn.Flatten(), nn.Linear(channels * 36, 2),
        )  # fmt: skip
        self.accuracy = MulticlassAccuracy(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.accuracy(self(batch[0]), batch[1])
        self.log("acc", self.accuracy, on_epoch=True)
        if dataloader_idx == 0:
            loss = functional.cross_entropy(self(batch[0]), batch[1])
            self.log("val_loss", loss, add_dataloader_idx=False)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=30)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Segmenting(lightning.LightningModule):
    """Masks, several metrics."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.lr, self.net = lr, nn.Conv2d(1, 2, 3, padding=1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return functional.cross_entropy(self.net(batch[0]), batch[2])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        out = self.net(batch[0])
        found = out.argmax(1)
        both, either = (found & batch[2]).sum(), (found | batch[2]).sum()
        values = {"val_loss": functional.cross_entropy(out, batch[2]), "val_iou": both / either}
        if dataloader_idx == 0:
            self.log_dict(values, add_dataloader_idx=False)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class Autoencoder(lightning.LightningModule):
    """Reconstructs pictures; variational if asked to."""

    def __init__(self, width: int = 4, is_variational: bool = False) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.encode, self.decode = nn.Linear(64, 2 * width), nn.Linear(width, 64)

    def _loss(self, batch: Any) -> Tensor:
        x = batch[0].flatten(1)
        mean, log_var = self.encode(x).chunk(2, dim=1)
        if not self.hparams.is_variational:
            return functional.mse_loss(self.decode(mean), x)
        z = mean + torch.randn_like(mean) * (0.5 * log_var).exp()
        divergence = (mean**2 + log_var.exp() - log_var - 1).mean()
        return functional.mse_loss(self.decode(z), x) + 0.1 * divergence

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._loss(batch)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        if dataloader_idx == 0:
            self.log("val_loss", self._loss(batch), add_dataloader_idx=False)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Adversarial(lightning.LightningModule):
    """A GAN: two optimizers, manual optimisation."""

    def __init__(self, lr: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.generator, self.critic = nn.Linear(2, 64), nn.Linear(64, 1)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x = batch[0].flatten(1)
        of_generator, of_critic = self.optimizers()
        fake = self.generator(torch.randn(len(x), 2))
        loss = -self.critic(fake).mean()
        of_generator.zero_grad()
        self.manual_backward(loss)
        of_generator.step()
        critique = self.critic(fake.detach()).mean() - self.critic(x).mean()
        of_critic.zero_grad()
        self.manual_backward(critique)
        of_critic.step()
        self.log("g_loss", loss)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        if dataloader_idx == 0:
            score = self.critic(batch[0].flatten(1)).mean()
            self.log("val_loss", score, add_dataloader_idx=False)

    def configure_optimizers(self) -> Any:
        lr = self.hparams.lr
        return [torch.optim.Adam(m.parameters(), lr=lr) for m in (self.generator, self.critic)]


class Sentences(lightning.LightningDataModule):
    """Token ids of variable length, as dicts."""

    def __init__(self, batch_size: int = 8) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str | None = None) -> None:
        g = torch.Generator().manual_seed(2)
        lengths = torch.randint(3, 9, (48,), generator=g).tolist()
        self.texts = [torch.randint(1, 20, (n,), generator=g) for n in lengths]

    @staticmethod
    def collate(texts: list[Tensor]) -> dict[str, Tensor]:
        """Padded ids, their lengths and whether a text begins with a small id."""
        ids = nn.utils.rnn.pad_sequence(texts, batch_first=True)
        lengths = torch.tensor([len(text) for text in texts])
        return {"ids": ids, "lengths": lengths, "label": (ids[:, 0] < 10).long()}

    def train_dataloader(self) -> Any:
        return DataLoader(self.texts[:32], self.batch_size, shuffle=True, collate_fn=self.collate)

    def val_dataloader(self) -> Any:
        return DataLoader(self.texts[32:], 16, collate_fn=self.collate)


class Reading(lightning.LightningModule):
    """Classifies texts given as dicts."""

    def __init__(self, width: int = 8, lr: float = 0.05) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.embed, self.head = nn.Embedding(20, width, padding_idx=0), nn.Linear(width, 2)

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        mean = self.embed(batch["ids"]).sum(1) / batch["lengths"][:, None]
        return functional.cross_entropy(self.head(mean), batch["label"])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self._loss(batch)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val_loss", self._loss(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


class Tokens(lightning.LightningDataModule):
    """Sequences for a language model: (tokens, the next tokens)."""

    def setup(self, stage: str | None = None) -> None:
        g = torch.Generator().manual_seed(3)
        rows = torch.randint(0, 50, (24, 9), generator=g)
        self.set = TensorDataset(rows[:, :-1], rows[:, 1:])

    def train_dataloader(self) -> Any:
        return DataLoader(self.set, 4, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.set, 12)


class Language(LightningTransformer):
    """Lightning's demo, which fetches its texts and logs nothing: with neither, and smaller."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__(vocab_size)
        self.model = Transformer(vocab_size, ninp=16, nhid=16)

    def prepare_data(self) -> None:
        """Nothing to fetch."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))


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


class Slow(Scheduled):
    """Steps that take a while, and a value logged at each."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        time.sleep(0.15)
        return super().training_step(batch, batch_idx)


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
