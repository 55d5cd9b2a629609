"""Sentences of different lengths, minibatches as dicts, two validations within each epoch:

$ sweep run --module text.py:Reader --data text.py:Sentences --metric val_acc --pruner median \
    --trials 4 --epochs 2 --set trainer.val_check_interval=0.5 \
    --vary lr=1e-3..3e-2:log --vary width=8,16
"""

import random

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

GOOD, BAD = ("lovely", "great", "fine", "bright"), ("awful", "poor", "dull", "grim")
FILL = ("the", "film", "was", "a", "rather", "story", "with", "music", "and", "actors")
WORDS = {word: i + 1 for i, word in enumerate((*GOOD, *BAD, *FILL))}
"""Numbers of words; 0 fills up."""


def sentence(rng: random.Random) -> tuple[list[str], int]:
    """Words, and whether it is praise."""
    is_praise = rng.random() < 0.5
    words = rng.choices(FILL, k=rng.randint(3, 12))
    words.insert(rng.randrange(len(words)), rng.choice(GOOD if is_praise else BAD))
    return words, int(is_praise)


def collate(rows: list[tuple[list[str], int]]) -> dict[str, Tensor]:
    """Word numbers (B, longest), lengths (B,) and labels (B,)."""
    tokens = [torch.tensor([WORDS[word] for word in words]) for words, _ in rows]
    return {
        "tokens": pad_sequence(tokens, batch_first=True),
        "lengths": torch.tensor([len(t) for t in tokens]),
        "labels": torch.tensor([label for _, label in rows]),
    }


class Sentences(lightning.LightningDataModule):
    """Film reviews, made on the spot."""

    def __init__(self, batch_size: int = 32) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str | None = None) -> None:
        rng = random.Random(0)
        self.rows = [sentence(rng) for _ in range(1200)]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.rows[:1000], self.batch_size, shuffle=True, collate_fn=collate)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.rows[1000:], 200, collate_fn=collate)


class Reader(lightning.LightningModule):
    """The mean of the words' vectors, and a linear layer."""

    def __init__(self, width: int = 16, lr: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.words = nn.Embedding(len(WORDS) + 1, width, padding_idx=0)
        self.head = nn.Linear(width, 2)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.head(self.words(batch["tokens"]).sum(1) / batch["lengths"].unsqueeze(1))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = functional.cross_entropy(self(batch), batch["labels"])
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val_acc", (self(batch).argmax(1) == batch["labels"]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)
