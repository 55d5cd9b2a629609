"""Projects with arguments, and what a `Trainer.fit` of their own makes of them."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import demos
import lightning
import projects
import torch
from lightning.pytorch.callbacks import Callback

from sweep.testing import ScriptedExchange
from sweep.training.plain.lanes import isolated_generators
from sweep.training.resuming import seed_everything
from sweep.trial import derive_seed

EPOCHS = 4
STUDY_SEED = 0
PROJECTS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "boring": ("demos:Boring", "", {}),
    "boring by hand": ("demos:BoringByHand", "", {}),
    "transformer": ("demos:Language", "demos:Tokens", {"vocab_size": 50}),
    "template": ("demos:Template", "projects:Points", {
        "model.net.class_path": "demos.Encoder", "model.net.width": 4,
        "model.optimizer.class_path": "torch.optim.SGD", "model.optimizer.lr": 0.05,
        "model.scheduler.class_path": "torch.optim.lr_scheduler.ExponentialLR",
        "model.scheduler.init_args.gamma": 0.5, "data.batch_size": 8,
    }),
    "hydra template": ("demos:Hydra", "projects:Points", {
        "model.net.class_path": "demos.Encoder", "model.net.width": 4,
        "model.optimizer.class_path": "torch.optim.Adam", "model.optimizer.lr": 0.05,
        "model.scheduler.class_path": "torch.optim.lr_scheduler.ReduceLROnPlateau",
        "model.scheduler.patience": 0, "data.batch_size": 8,
    }),
    "cnn": ("demos:Convolving", "demos:Images", {"channels": 3, "batch_size": 8}),
    "plateau, stopping, rates": ("projects:Watched", "projects:Points", {"lr": 0.02}),
    "autoencoder": ("demos:Autoencoder", "demos:Images", {"width": 3}),
    "variational": ("demos:Autoencoder", "demos:Images", {"is_variational": True}),
    "adversarial": ("demos:Adversarial", "demos:Images", {"lr": 0.02}),
    "regression": ("projects:Line", "projects:Points", {"lr": 0.05, "noise": 0.3}),
    "text": ("demos:Reading", "demos:Sentences", {"width": 5}),
    "noise in steps and samples": ("projects:Scheduled", "projects:Loaded", {
        "lr": 0.05, "by_hand": True,
    }),
    "segmentation": ("demos:Segmenting", "demos:Images", {"lr": 0.2}),
}  # fmt: skip


METRICS = {"hydra template": "val/loss"}


class Curve(Callback):
    """The metrics of each epoch."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.epochs.append({k: float(v) for k, v in trainer.callback_metrics.items()})


def alone(
    module: lightning.LightningModule, data: Any, folder: Path, precision: Any = "32-true",
    callbacks: Sequence[Callback] = (), **settings: Any,
) -> list[dict[str, float]]:  # fmt: skip
    """The curve of an ordinary `Trainer.fit`, but for the sanity check: a trial has none, and a
    loader that draws its data from the global generator would see that."""
    curve = Curve()
    trainer = lightning.Trainer(
        default_root_dir=folder, max_epochs=EPOCHS, accelerator="cpu",
        callbacks=[*callbacks, curve],
        precision=precision, num_sanity_val_steps=0, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **settings,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return curve.epochs


def built_by_hand(case: str) -> tuple[lightning.LightningModule, Any]:
    """Module and data as a script would build them."""
    name, of_data, given = PROJECTS[case]
    if case == "template":
        module: Any = demos.Template(
            demos.Encoder(width=4), partial(torch.optim.SGD, lr=0.05),
            partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5),
        )  # fmt: skip
        return module, projects.Points(batch_size=8)
    if case == "hydra template":
        module = demos.Hydra(
            demos.Encoder(width=4), partial(torch.optim.Adam, lr=0.05),
            partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0),
        )  # fmt: skip
        return module, projects.Points(batch_size=8)
    taken = {"batch_size", "noise"}
    module = resolve_name(name)(**{k: v for k, v in given.items() if k not in taken})
    if not of_data:
        return module, None
    return module, resolve_name(of_data)(**{k: v for k, v in given.items() if k in taken})


def curve_of(exchange: ScriptedExchange, number: int = 0) -> list[dict[str, float]]:
    """The metrics of each epoch, without times."""
    return [
        {k: v for k, v in r.metrics.items() if k != "epoch_s"} for r in exchange.epochs(number)
    ]


class InPopulation:
    """A loader whose minibatches are those of a population that began epochs ago."""

    def __init__(
        self, loader: Any, start_epoch: int, n_train: int | None = None, index: int = 0
    ) -> None:
        self.loader, self._epoch, self._n_train = loader, start_epoch, n_train
        self._index = index
        self._is_looked_at = False

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        if not self._is_looked_at:  # Lightning sees whether it can
            self._is_looked_at = True
            return iter(())
        at = self._epoch, self._n_train, self._n_train is None, self._index, 0
        self._epoch += 1
        with isolated_generators():
            seed_everything(derive_seed(STUDY_SEED, "minibatches", str(at)))
            batches = list(self.loader)
        return iter(batches)


def drawn_alike(hook: Any, name: str) -> Any:
    """Data are drawn from the study's seed."""

    @functools.wraps(hook)
    def drawn(*args: Any, **kwargs: Any) -> Any:
        with isolated_generators():
            seed_everything(derive_seed(STUDY_SEED, "data", name))
            return hook(*args, **kwargs)

    return drawn


def in_population(module: lightning.LightningModule, data: Any, start_epoch: int) -> None:
    """Let the loaders of a project give a population's minibatches."""
    owner = module if data is None else data
    for name in ("setup", "prepare_data", "train_dataloader", "val_dataloader"):
        if owner is data or name != "setup":
            setattr(owner, name, drawn_alike(getattr(owner, name), name))
    train, val = owner.train_dataloader, owner.val_dataloader

    def val_dataloader() -> Any:
        found, n = val(), len(train())
        if isinstance(found, list):
            return [InPopulation(one, start_epoch, n, i) for i, one in enumerate(found)]
        return InPopulation(found, start_epoch, n)

    owner.train_dataloader = lambda: InPopulation(train(), start_epoch)
    owner.val_dataloader = val_dataloader
