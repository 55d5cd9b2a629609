"""What a user would write with the three libraries' documentation at hand.

Optuna's study.optimize, a Lightning Trainer with its defaults, a DataLoader,
MLFlowLogger(log_model=True). Trials come from a file, so that sweep can be given the same ones.

    python benchmarks/stock.py trials.json --data digits --epochs 10
"""

from __future__ import annotations

import time

BEGAN = time.perf_counter()

import argparse  # noqa: E402
import json  # noqa: E402
import logging  # noqa: E402
import warnings  # noqa: E402
from pathlib import Path  # noqa: E402

import lightning  # noqa: E402
import mlflow  # noqa: E402
import optuna  # noqa: E402
import torch  # noqa: E402
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402
from lightning.pytorch.loggers import MLFlowLogger  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402
from torchmetrics.classification import MulticlassAccuracy  # noqa: E402

from sweep.data.tensors import load_search_data  # noqa: E402

IMPORTED = time.perf_counter()


class StockMLP(lightning.LightningModule):
    """The MLP of a tutorial."""

    def __init__(self, n_in: int, hidden: list[int], optimizer: str, lr: float, momentum: float):
        super().__init__()
        self.save_hyperparameters()
        layers: list[nn.Module] = [nn.Flatten()]
        for width in hidden:
            layers += [nn.Linear(n_in, width), nn.ReLU()]
            n_in = width
        self.model = nn.Sequential(*layers, nn.Linear(n_in, 10))
        self.val_acc = MulticlassAccuracy(10, average="micro")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.model(x)

    def training_step(self, batch, batch_idx):
        """Cross entropy, logged."""
        loss = functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        """Loss and accuracy, logged."""
        logits = self(batch[0])
        self.val_acc(logits, batch[1])
        self.log("val_loss", functional.cross_entropy(logits, batch[1]))
        self.log("val_acc", self.val_acc)

    def configure_optimizers(self):
        """The optimizer that Optuna chose."""
        h = self.hparams
        extra = {} if h.optimizer == "Adam" else {"momentum": h.momentum}
        return getattr(torch.optim, h.optimizer)(self.parameters(), lr=h.lr, **extra)


def main() -> None:
    """Run the study and print how long it took."""
    args = parse()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(args.threads)
    data = load_search_data(args.data, args.data_dir, 0)
    scale = (data.info.mean, data.info.std)
    train = TensorDataset((data.train.x - scale[0]) / scale[1], data.train.y)
    val = TensorDataset((data.val.x - scale[0]) / scale[1], data.val.y)
    n_in = data.train.x[0].numel()
    configurations = json.loads(Path(args.trials).read_text())
    mlflow.set_tracking_uri("sqlite:///stock.db")

    def objective(trial: optuna.Trial) -> float:
        optimizer = trial.suggest_categorical("optimizer", ["SGD", "Adam", "RMSprop"])
        lr = trial.suggest_float("lr", 1e-4, 0.3, log=True)
        momentum = 0.0
        if optimizer != "Adam":
            momentum = trial.suggest_float("momentum", 0.0, 0.95)
        n_layers = trial.suggest_int("n_layers", 1, 3)
        hidden = [trial.suggest_int(f"width_{i}", 16, 512) for i in range(n_layers)]
        model = StockMLP(n_in, hidden, optimizer, lr, momentum)
        logger = MLFlowLogger(
            experiment_name="stock", tracking_uri="sqlite:///stock.db", log_model=True,
            run_name=f"trial {trial.number}",
        )  # fmt: skip
        logger.log_hyperparams(trial.params)
        best = ModelCheckpoint(monitor="val_acc", mode="max", dirpath=f"stock/{trial.number}")
        trainer = lightning.Trainer(
            max_epochs=args.epochs, accelerator="auto", devices=1, logger=logger,
            callbacks=[best], enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(
            model,
            DataLoader(train, batch_size=args.batch_size, shuffle=True),
            DataLoader(val, batch_size=args.batch_size),
        )
        return float(best.best_model_score)

    study = optuna.create_study(storage="sqlite:///stock-optuna.db", direction="maximize")
    for configuration in configurations:
        study.enqueue_trial(as_params(configuration))
    study.optimize(objective, n_trials=len(configurations))
    ended = time.perf_counter()
    print(json.dumps({"import_s": IMPORTED - BEGAN, "work_s": ended - IMPORTED,
                      "best": study.best_value}))  # fmt: skip


def as_params(configuration: dict) -> dict:
    """A configuration under the names that the objective suggests."""
    params = {k: v for k, v in configuration.items() if k != "hidden"}
    params["n_layers"] = len(configuration["hidden"])
    return params | {f"width_{i}": w for i, w in enumerate(configuration["hidden"])}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("trials")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-dir")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
