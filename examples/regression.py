"""A table of numbers, searched and used from a script:

$ python regression.py
"""

import lightning
import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.nn import functional

import sweep


def patients(scale: float = 100.0) -> dict:
    """442 patients: ten measurements, and the progression of their illness after a year."""
    x, y = load_diabetes(return_X_y=True)
    rows = torch.tensor(x * 20, dtype=torch.float32), torch.tensor(y / scale, dtype=torch.float32)
    return {
        "train": tuple(column[:300] for column in rows),
        "val": tuple(column[300:370] for column in rows),
        "test": tuple(column[370:] for column in rows),
    }


class Regressor(lightning.LightningModule):
    """One hidden layer."""

    def __init__(self, width: int = 16, lr: float = 0.01, weight_decay: float = 0.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(10, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return functional.mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_mae", functional.l1_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            self.parameters(), self.hparams.lr, weight_decay=self.hparams.weight_decay
        )


if __name__ == "__main__":
    outcome = sweep.run(
        module=Regressor,
        data=patients,
        vary={
            "width": [8, 16, 32],
            "lr": sweep.floats(1e-3, 1e-1, log=True),
            "weight_decay": sweep.floats(1e-4, 1.0, log=True),
        },
        metric="val_mae",
        trials=6,
        epochs=5,
        study="patients",
    )
    best = sweep.best("patients")
    print(best)
    x, y = patients()["test"]
    with torch.no_grad():
        print("test_mae", functional.l1_loss(best.load()(x), y).item())
