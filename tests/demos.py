"""Small projects of many kinds, as users write them: templates, demos, pictures, texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning
import torch
from lightning.pytorch.demos import LightningTransformer, Transformer
from lightning.pytorch.demos.boring_classes import (
    BoringModel,
    ManualOptimBoringModel,
    RandomDataset,
)
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, TensorDataset, random_split
from torchmetrics.classification import MulticlassAccuracy


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
