"""A module of one's own: milliseconds a step in a search, against the user's own `Trainer.fit`.

    python benchmarks/own_module.py --mnist FOLDER [--rounds N] [--threads N] [--busy]

Two projects: a CNN on MNIST and a residual network on a table. Three ways train the same epochs in
a process of their own, in turn: the user's, the plain path (`--population 1`), and side by side,
here with one trial alone, so that what taking turns costs is not won back by shared minibatches.
A step's time is taken from the end of the fourth epoch to the end of the last, so that reports,
validation and all that lies between epochs count. The user's Trainer is as lean as it gets: no
logger, no checkpoints, no bar. `--busy`: two processes compute beside. `--threads 1`: two threads
that wait for each other vary by a third on a machine that others use, too.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

EPOCHS, FIRST, N_STEPS, BATCH = 8, 3, 150, 64


class Rows(lightning.LightningDataModule):
    """MNIST, or a table of 30 numbers with ten classes."""

    def __init__(self, mnist: str = "") -> None:
        super().__init__()
        self.mnist = mnist

    def setup(self, stage: str | None = None) -> None:
        if self.mnist:
            x, y = (_read(Path(self.mnist), part) for part in ("images-idx3", "labels-idx1"))
            self.rows = TensorDataset(x.float().unsqueeze(1) / 255, y.long())
        else:
            x = torch.randn(20_000, 30, generator=torch.Generator().manual_seed(0))
            self.rows = TensorDataset(x, x[:, :10].argmax(1))

    def train_dataloader(self) -> Any:
        return DataLoader(self.rows, BATCH, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(torch.utils.data.Subset(self.rows, range(1000)), 500)


def _read(folder: Path, part: str) -> Tensor:
    file = next(f for f in folder.rglob(f"train-{part}-ubyte*"))
    content = file.read_bytes()
    content = gzip.decompress(content) if file.suffix == ".gz" else content
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, 4 + 4 * content[3], 4)]
    return torch.from_numpy(
        np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).copy().reshape(shape)
    )


class Own(lightning.LightningModule):
    """What both projects share."""

    net: nn.Module

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 1e-3)


class Cnn(Own):
    """8 and 16 channels."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, channels, 3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(channels, 2 * channels, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4),
            nn.Flatten(), nn.Linear(32 * channels, 10),
        )  # fmt: skip


class Block(nn.Module):
    """A residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.BatchNorm1d(width), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Table(Own):
    """30 numbers, three residual blocks of 64."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        blocks = [Block(width) for _ in range(3)]
        self.net = nn.Sequential(nn.Linear(30, width), *blocks, nn.Linear(width, 10))


class Ends(lightning.pytorch.callbacks.Callback):
    """The time of each epoch's end."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.times.append(time.time())


class Reports:
    """A Listener with the time of each report."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def open(self, study: Any) -> None:
        """Nothing."""

    def write(self, records: Any) -> None:
        self.times += [r.time_ms / 1000 for r in records if type(r).__name__ == "EpochReport"]

    def close(self) -> None:
        """Nothing."""


def own(name: str, mnist: str) -> list[float]:
    """The user's own script."""
    ends = Ends()
    trainer = lightning.Trainer(
        max_epochs=EPOCHS, limit_train_batches=N_STEPS, accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, callbacks=[ends],
    )  # fmt: skip
    trainer.fit(
        {"cnn": Cnn, "table": Table}[name](), datamodule=Rows(mnist if name == "cnn" else "")
    )
    return ends.times


def searched(name: str, mnist: str, **population: int) -> list[float]:
    """One trial of a search over the same."""
    import sweep

    reports = Reports()
    given = {"data.mnist": mnist} if name == "cnn" else {}
    sweep.run(
        module=f"own_module:{name.capitalize()}", data="own_module:Rows", listeners=[reports],
        set={"trainer.limit_train_batches": N_STEPS} | given,
        vary={"trainer.log_every_n_steps": [50, 60]},  # something has to vary
        metric="val_loss", trials=1, epochs=EPOCHS, accelerator="cpu", study=name,
        **population,
    )  # fmt: skip
    return reports.times


WAYS = {"own": own, "plain": partial(searched, population=1), "side": searched}


def main() -> None:
    """Measure and print."""
    args = parse()
    if args.way:
        times = WAYS[args.way](args.name, args.mnist)
        assert len(times) == EPOCHS, times
        print(json.dumps(1000 * (times[-1] - times[FIRST]) / (N_STEPS * (EPOCHS - 1 - FIRST))))
        return
    busy = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * args.busy)
    ]
    try:
        for name in ("cnn", "table"):
            found: dict[str, list[float]] = {way: [] for way in WAYS}
            for i in range(args.rounds):
                for way in sorted(WAYS, reverse=bool(i % 2)):
                    found[way].append(measured(way, name, args))
            steps = {way: statistics.median(ms) for way, ms in found.items()}
            said = ", ".join(f"{way} {ms:.2f} ms a step" for way, ms in steps.items())
            each = " ".join(f"{way} {min(ms):.2f}-{max(ms):.2f}" for way, ms in found.items())
            plain, side = steps["plain"] / steps["own"], steps["side"] / steps["own"]
            print(f"{name}: {said}; plain / own {plain:.3f}, side by side / own {side:.3f} "
                  f"(rounds: {each})", flush=True)  # fmt: skip
    finally:
        for process in busy:
            process.kill()


def measured(way: str, name: str, args: argparse.Namespace) -> float:
    """Milliseconds a step, in a process and a folder of its own."""
    here = Path(__file__).resolve()
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, str(here), "--way", way, "--name", name, "--mnist", args.mnist],
            cwd=folder, capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": str(here.parent),
                 "OMP_NUM_THREADS": str(args.threads)},
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(done.stderr)
        return float(done.stdout.splitlines()[-1])


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--mnist", required=True, help="folder with MNIST's files", type=_absolute)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--name", help=argparse.SUPPRESS)
    return parser.parse_args()


def _absolute(text: str) -> str:
    return str(Path(text).resolve())


if __name__ == "__main__":
    main()
