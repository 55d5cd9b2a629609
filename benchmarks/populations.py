"""Whole searches over modules of one's own: sweep against the script that a user would write.

    python benchmarks/populations.py [table widths cnn decode projects] --mnist FOLDER [--rounds N]

The script is Optuna's `study.optimize`, a Lightning Trainer with its defaults, `MLFlowLogger` and
`ModelCheckpoint`; both ways train the same modules on the same data for as many epochs, each in a
process of its own, imports and tracking included, in turn. `log_model` is off in both. `projects`
are the tests' thirteen, eight trials of ten epochs that differ in a setting of the Trainer.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, field, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from own_module import Cnn, Own, _read
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

BATCH = 64


class Residual(nn.Module):
    """A residual block for tables."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(width, width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class TableNet(Own):
    """30 numbers, two residual blocks."""

    def __init__(self, lr: float = 1e-3, width: int = 64, dropout: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        blocks = [Residual(width, dropout) for _ in range(2)]
        self.net = nn.Sequential(nn.Linear(30, width), *blocks, nn.Linear(width, 10))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), self.hparams.lr)


class SmallCnn(Cnn):
    """The CNN of own_module.py with a learning rate."""

    def __init__(self, lr: float = 1e-3) -> None:
        super().__init__()
        self.lr = lr

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), self.lr)


class PictureNet(Own):
    """A small network on decoded pictures."""

    def __init__(self, lr: float = 1e-3) -> None:
        super().__init__()
        self.lr = lr
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(3 * 16 * 16, 64), nn.ReLU(), nn.Linear(64, 10)
        )

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), self.lr)


class Rows(lightning.LightningDataModule):
    """A table of 32,000 rows with ten classes."""

    def setup(self, stage: str | None = None) -> None:
        g = torch.Generator().manual_seed(0)
        x = torch.randn(36_000, 30, generator=g)
        y = (x[:, :10] + 0.5 * torch.randn(36_000, 10, generator=g)).argmax(1)
        self.train, self.val = (
            TensorDataset(x[:32_000], y[:32_000]),
            TensorDataset(x[32_000:], y[32_000:]),
        )

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, BATCH, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.val, 500)


class Mnist(lightning.LightningDataModule):
    """MNIST: 55,000 pictures to train on."""

    def __init__(self, mnist: str = "") -> None:
        super().__init__()
        self.mnist = mnist

    def setup(self, stage: str | None = None) -> None:
        x, y = (_read(Path(self.mnist), part) for part in ("images-idx3", "labels-idx1"))
        x = x.float().unsqueeze(1) / 255
        self.train = TensorDataset(x[:55_000], y[:55_000].long())
        self.val = TensorDataset(x[55_000:], y[55_000:].long())

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, BATCH, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.val, 500)


class Encoded(Dataset[Any]):
    """JPEG files, decoded and shrunk as they are asked for."""

    def __init__(self, file: str) -> None:
        with np.load(file, allow_pickle=True) as found:
            self.files, self.labels = found["files"].tolist(), found["labels"].tolist()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        from PIL import Image

        picture = Image.open(io.BytesIO(self.files[index])).resize((16, 16))
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
        return pixels, self.labels[index]


def encode(file: Path, n: int, seed: int) -> None:
    """Write n pictures of ten kinds."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    files, labels = [], rng.integers(0, 10, n)
    for label in labels:
        small = rng.integers(0, 80, (8, 8, 3)) + 15 * label
        picture = Image.fromarray(small.astype(np.uint8)).resize((96, 96))
        held = io.BytesIO()
        picture.save(held, "JPEG")
        files.append(held.getvalue())
    np.savez(file, files=np.array(files, dtype=object), labels=labels)


class Pictures(lightning.LightningDataModule):
    """3,200 pictures to train on."""

    def __init__(self, folder: str = "") -> None:
        super().__init__()
        self.folder = folder

    def setup(self, stage: str | None = None) -> None:
        self.train = Encoded(f"{self.folder}/train.npz")
        self.val = Encoded(f"{self.folder}/val.npz")

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, BATCH, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.val, BATCH)


@dataclass(frozen=True)
class Case:
    """A search."""

    module: str
    data: str
    trials: int
    epochs: int
    vary: dict[str, Any] = field(default_factory=lambda: {"lr": (1e-4, 1e-1)})
    metric: str = "val_loss"
    project: str = ""
    """Its name in the tests, where it is one of theirs."""


CASES = {
    "table": Case("TableNet", "Rows", 32, 5, {"lr": (1e-4, 1e-1), "dropout": (0.0, 0.5)}),
    "widths": Case("TableNet", "Rows", 32, 5, {"lr": (1e-4, 1e-1), "width": [32, 256]}),
    "cnn": Case("SmallCnn", "Mnist", 8, 3),
    "decode": Case("PictureNet", "Pictures", 16, 10),
}


sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
EVERY = "trainer.log_every_n_steps"
LENGTHS = {"cnn": 4}
"""Epochs of a project whose schedule ends before ten."""


def projects() -> dict[str, Case]:
    """The projects of the tests."""
    from own_fits import METRICS, PROJECTS

    found = {}
    for name, (module, data, _) in PROJECTS.items():
        epochs, metric = LENGTHS.get(name, 10), METRICS.get(name, "val_loss")
        case = Case(module, data, 8, epochs, {EVERY: [40, 60]}, metric, name)
        found[name.replace(" ", "-").replace(",", "")] = case
    return found


def stock(case: Case, mnist: str) -> float:
    """The user's own script."""
    import mlflow
    import optuna
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import MLFlowLogger

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    mlflow.set_tracking_uri("sqlite:///stock.db")

    def objective(trial: optuna.Trial) -> float:
        given = {
            name: trial.suggest_int(name, *limits)
            if isinstance(limits, list)
            else trial.suggest_float(name, *limits, log=name == "lr")
            for name, limits in case.vary.items()
        }
        lightning.seed_everything(trial.number)
        settings: dict[str, Any] = {}
        if case.project:
            from own_fits import built_by_hand

            settings = {"log_every_n_steps": given[EVERY]}
            module, data = built_by_hand(case.project)
        else:
            module, data = globals()[case.module](**given), made(case, mnist)
        logger = MLFlowLogger("stock", tracking_uri="sqlite:///stock.db")
        logger.log_hyperparams(trial.params)
        best = ModelCheckpoint(monitor=case.metric, dirpath=f"stock/{trial.number}")
        trainer = lightning.Trainer(
            max_epochs=case.epochs, accelerator="cpu", logger=logger, callbacks=[best],
            enable_progress_bar=False, enable_model_summary=False, **settings,
        )  # fmt: skip
        trainer.fit(module, datamodule=data)
        assert best.best_model_score is not None
        return float(best.best_model_score)

    study = optuna.create_study(storage="sqlite:///stock-optuna.db", direction="minimize")
    study.optimize(objective, n_trials=case.trials)
    return float(study.best_value)


def made(case: Case, mnist: str) -> Any:
    """The case's DataModule."""
    return globals()[case.data](**data_arguments(case, mnist))


def data_arguments(case: Case, mnist: str) -> dict[str, str]:
    """Of the case's DataModule."""
    return {"Mnist": {"mnist": mnist}, "Pictures": {"folder": str(Path.cwd())}}.get(case.data, {})


def searched(case: Case, mnist: str, **settings: Any) -> float:
    """The same search by sweep."""
    import sweep

    vary = {
        name: sweep.ints(*limits) if isinstance(limits, list)
        else sweep.floats(*limits, log=name == "lr")
        for name, limits in case.vary.items()
    }  # fmt: skip
    fixed: dict[str, Any] = {f"data.{k}": v for k, v in data_arguments(case, mnist).items()}
    where = "populations:"
    if case.project:
        from own_fits import PROJECTS

        fixed, where = dict(PROJECTS[case.project][2]), ""  # its names have their modules
    result = sweep.run(
        module=f"{where}{case.module}", metric=case.metric, direction="minimize", vary=vary,
        trials=case.trials, epochs=case.epochs, accelerator="cpu", study="case", set=fixed,
        log_models="none", pruner="none", **settings,
        **({"data": f"{where}{case.data}"} if case.data else {}),
    )  # fmt: skip
    assert result.n_new == case.trials, result
    return float(result.best.value)


def measured(way: str, name: str, args: argparse.Namespace) -> dict[str, float]:
    """Seconds and best score of a search, in a process and a folder of its own."""
    here = Path(__file__).resolve()
    with tempfile.TemporaryDirectory() as folder:
        if name == "decode":
            encode(Path(folder, "train.npz"), 3200, 0)
            encode(Path(folder, "val.npz"), 256, 1)
        began_s = time.perf_counter()
        done = subprocess.run(
            [sys.executable, str(here), name, "--way", way, "--mnist", args.mnist,
             "--settings", args.settings, "--trials", str(args.trials or 0),
             "--epochs", str(args.epochs or 0)],
            cwd=folder, capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": str(here.parent)},
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        if args.verbose:
            print(done.stderr, flush=True)
        best = float(done.stdout.splitlines()[-1])
        return {"wall_s": time.perf_counter() - began_s, "best": best}


def main() -> None:
    """Measure and print."""
    args = parse()
    if args.way:
        warnings.filterwarnings("ignore")
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        case = (CASES | projects())[args.cases[0]]
        case = replace(case, trials=args.trials or case.trials, epochs=args.epochs or case.epochs)
        best = (
            stock(case, args.mnist)
            if args.way == "stock"
            else searched(case, args.mnist, **json.loads(args.settings))
        )
        print(best)
        return
    print(
        f"{date.today()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        + ", ".join(f"{p} {version(p)}" for p in ("torch", "lightning", "optuna", "mlflow"))
        + f"; medians of {args.rounds} rounds, in turn"
    )
    names = args.cases or [*CASES]
    if "projects" in names:
        names = [name for name in names if name != "projects"] + [*projects()]
    for name in names:
        found: dict[str, list[dict[str, float]]] = {way: [] for way in args.ways.split(",")}
        for i in range(args.rounds):
            for way in sorted(found, reverse=bool(i % 2)):
                found[way].append(measured(way, name, args))
        walls = {way: statistics.median(f["wall_s"] for f in fs) for way, fs in found.items()}
        said = ", ".join(
            f"{way} {walls[way]:.1f} s (best {min(f['best'] for f in fs):.4f})"
            for way, fs in found.items()
        )
        ratio = walls.get("stock", 0.0) / walls.get("sweep", 1.0)
        case = (CASES | projects())[name]
        n_trials, n_epochs = args.trials or case.trials, args.epochs or case.epochs
        print(f"{name}, {n_trials} trials x {n_epochs} epochs: {said}; "
              f"stock / sweep {ratio:.2f}", flush=True)  # fmt: skip


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("cases", nargs="*", help="table, widths, cnn, decode")
    parser.add_argument("--mnist", default="", help="folder with MNIST's files", type=_absolute)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, help="instead of each case's")
    parser.add_argument("--epochs", type=int, help="instead of each case's")
    parser.add_argument("--ways", default="stock,sweep")
    parser.add_argument("--settings", default="{}", help="more of sweep.run's, as JSON")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--way", choices=("stock", "sweep"), help=argparse.SUPPRESS)
    return parser.parse_args()


def _absolute(text: str) -> str:
    return str(Path(text).resolve()) if text else ""


if __name__ == "__main__":
    main()
