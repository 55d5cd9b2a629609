"""A module and data sets as users write them: own metric names, own faults.

A search in a test names them as `user_code:Model`; the worker finds this file as it finds a
user's, through the path of the process that started it.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sweep.errors import Interruption

SPACE = """# One of each.
parameters:
  mode: {choices: [fine, nan, raise, hang, die]}
  width: {choices: [4, 8]}
"""


class Model(lightning.LightningModule):
    """A small classifier that reports `val_f1` and misbehaves on request."""

    def __init__(self, mode: str = "fine", width: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10)
        )
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.float() / 16)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        if self.current_epoch == 1 or self.mode == "slow":
            misbehave(self.mode)
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        return loss * float("nan") if self.mode == "nan" and self.current_epoch else loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        logits = self(x)
        if self.mode == "nan" and self.current_epoch:
            logits = logits * float("nan")
        self.log("val_nll", nn.functional.cross_entropy(logits, y))
        if self.mode != "mute":
            is_right = (logits.argmax(1) == y).float().mean()
            self.log("val_f1", is_right if logits.isfinite().all() else logits.sum())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Plateau(Model):
    """Lowers its learning rate where validation gets no better."""

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max")
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "monitor": "val_f1"},
        }


def misbehave(mode: str) -> None:
    """What a user's code does on a bad day."""
    if mode == "raise":
        raise ZeroDivisionError("width must not be 8")
    if mode == "exit":
        sys.exit("width must not be 8")
    if mode == "interrupt":
        raise KeyboardInterrupt("no more of this")
    if mode == "generator":
        raise GeneratorExit
    if mode == "second signal":
        raise Interruption
    if mode == "hang":
        time.sleep(600)
    if mode == "slow":
        time.sleep(0.05)
    if mode == "die" and not Path("died").exists():
        Path("died").write_text("once is enough")
        os.kill(os.getpid(), signal.SIGKILL)


class Leaving(Model):
    """Leaves at the call of a method, with `sys.exit`."""

    def __init__(self, where: str = "nowhere") -> None:
        super().__init__()
        self.where = where
        self._leave("__init__")

    def _leave(self, where: str) -> None:
        if where == self.where:
            sys.exit(f"left in {where}")

    def forward(self, x: Tensor) -> Tensor:
        """Leaves while it is exported."""
        if torch.compiler.is_exporting():
            self._leave("export")
        return super().forward(x)

    def configure_optimizers(self) -> Any:
        """Leaves before the first step."""
        self._leave("configure_optimizers")
        return super().configure_optimizers()

    def configure_callbacks(self) -> Any:
        """Leaves as the Trainer is set up."""
        self._leave("configure_callbacks")
        return []

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves as a checkpoint is written."""
        self._leave("on_save_checkpoint")


class Disturbing(Model):
    """Leaves other settings of the process behind, and a folder that is gone."""

    def __init__(self, mode: str = "fine", width: int = 8) -> None:
        if mode == "disturb":
            with tempfile.TemporaryDirectory() as scratch:
                os.chdir(scratch)
            torch.set_default_dtype(torch.float64)
            torch.set_grad_enabled(False)
            np.seterr(all="raise")
            warnings.simplefilter("error")
            os.environ["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:1"
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        super().__init__("raise" if mode == "disturb" else mode, width)


class Wandering(Model):
    """Works in the folder `elsewhere`."""

    def __init__(self, width: int = 8) -> None:
        os.chdir("elsewhere")
        super().__init__("fine", width)


class Demanding(Model):
    """Has an argument without a default."""

    def __init__(self, depth: int, *, width: int = 8) -> None:
        super().__init__("fine", width)


class TakesAny(Model):
    """Hands on whatever it is given."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)


class NotAModule:
    """Takes any argument, and cannot be trained."""

    def __init__(self, **arguments: Any) -> None:
        pass


def leaving_data() -> None:
    """A data function that checks its arguments as a script does."""
    sys.exit("which file?")


def hung_data(*_: Any, **__: Any) -> None:
    """A network disk that does not answer."""
    time.sleep(600)


class Signalled(Model):
    """Its own process gets a signal in the midst of its third epoch."""

    def __init__(self, number: int, width: int = 8, again_after_s: float = 0.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.number, self.again_after_s = number, again_after_s

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        if self.current_epoch == 2 and batch_idx == 1 and not Path("signalled").exists():
            Path("signalled").touch()
            os.kill(os.getpid(), self.number)
            if self.again_after_s:
                time.sleep(self.again_after_s)
                os.kill(os.getpid(), self.number)
        return super().training_step(batch, batch_idx)


def no_module() -> dict[str, int]:
    """Named as a module by mistake."""
    return {"width": 8}


def broken_data(*_: Any, **__: Any) -> None:
    """A data function with a bug."""
    raise ZeroDivisionError("no samples left")


class Bringing(Model):
    """Trains, validates and is tested on samples of its own: 12 values each, not 64."""

    def __init__(self, width: int = 8) -> None:
        super().__init__("fine", width)
        self.net = nn.Sequential(nn.Linear(12, width), nn.ReLU(), nn.Linear(width, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def _loader(self) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(0)
        y = torch.randint(0, 10, (60,), generator=generator)
        return DataLoader(TensorDataset(torch.rand(60, 12, generator=generator), y), batch_size=20)

    def train_dataloader(self) -> Any:
        return self._loader()

    def val_dataloader(self) -> Any:
        return self._loader()


class Tested(Bringing):
    """Also brings a test."""

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("test_f1", (self(x).argmax(1) == y).float().mean())

    def test_dataloader(self) -> Any:
        return self._loader()


class TestFails(Model):
    """Its test has a bug."""

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        raise ZeroDivisionError("no samples")
