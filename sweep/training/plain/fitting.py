"""What a trial's Trainer gets: its arguments, and the data of its `fit`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import lightning
from lightning.pytorch.utilities.model_helpers import is_overridden

from sweep.data.rows import RowBatches
from sweep.data.tensors import Batches
from sweep.training.devices import first_device, lightning_devices
from sweep.training.modules import has_own_loaders
from sweep.training.plain.lanes import isolated_generators
from sweep.training.project.project import Built, listed
from sweep.training.resuming import seed_everything
from sweep.trial import Task, derive_seed

DATA_HOOKS = ("prepare_data", "train_dataloader", "val_dataloader")


def trainer_arguments(task: Task, built: Built) -> dict[str, Any]:
    """Arguments of the Trainer: the task's, then the trial's own."""
    return {
        "max_epochs": task.epochs,
        "accelerator": task.accelerator,
        "devices": lightning_devices(task.devices),
        "strategy": strategy_of(task),
        "precision": task.precision,
        **built.trainer,
        "callbacks": [*listed(built.trainer.get("callbacks")), *built.callbacks],
    }


def strategy_of(task: Task) -> str:
    """Lightning's `strategy`: without effect on one device."""
    if task.n_devices == 1:
        return "auto"
    return "ddp" if task.strategy == "auto" else task.strategy


def one_device(task: Task) -> dict[str, Any]:
    """Arguments of a Trainer in this process, in place of the task's for several devices."""
    if task.n_devices == 1:
        return {}
    return {"devices": lightning_devices(first_device(task.devices)), "strategy": "auto"}


def first_batch(built: Built) -> Any:
    """A minibatch of the training, without a Trainer. Raises any error of the user's code."""
    given = built.data.fit_arguments(built.batch_size) if built.data is not None else {}
    datamodule = given.get("datamodule")
    if datamodule is not None:
        datamodule.prepare_data()
        datamodule.setup("fit")
        loader = datamodule.train_dataloader()
    elif has_own_loaders(built.module):
        loader = built.module.train_dataloader()
    else:
        loader = given["train_dataloaders"]
    return next(iter(loader))


def loaders(built: Built, first_epoch: int, trainer: lightning.Trainer) -> dict[str, Any]:
    """The data for `Trainer.fit`. Hooks that the module defines come before a data set's loaders,
    a DataModule's come before the module's: as in Lightning."""
    if built.data is None:
        return {}
    data = built.data.to(trainer.strategy.root_device)
    given: dict[str, Any] = data.fit_arguments(built.batch_size, first_epoch)
    if "datamodule" in given:
        return given
    if has_own_loaders(built.module):
        return {}
    for loader in given.values():
        if isinstance(loader, Batches | RowBatches):  # Lightning shares DataLoaders out itself
            loader.part = trainer.global_rank, trainer.world_size
    is_own = is_overridden("val_dataloader", built.module)
    return given | ({"val_dataloaders": None} if is_own else {})


def draw_data_alike(built: Built, seed: int) -> None:
    """Let the hooks that make data draw random numbers from the study's seed, not the trial's:
    the same rows and split for all trials, and set up once."""
    data = built.data.fit_arguments(built.batch_size) if built.data is not None else {}
    owners = [(built.module, DATA_HOOKS), (data.get("datamodule"), ("setup", *DATA_HOOKS))]
    for owner, hooks in owners:
        for name in hooks:
            hook = getattr(owner, name, None)
            if hook is not None and not hasattr(hook, "draws_alike"):
                is_once = name == "setup" and not is_overridden("teardown", owner)
                drawn = _drawn_alike(hook, derive_seed(seed, "data", name), is_once=is_once)
                setattr(owner, name, drawn)


def _drawn_alike(hook: Callable[..., Any], seed: int, *, is_once: bool) -> Callable[..., Any]:
    done: list[Any] = []

    @functools.wraps(hook)
    def drawn(*args: Any, **kwargs: Any) -> Any:
        if is_once and (args, kwargs) in done:
            return None
        done.append((args, kwargs))
        with isolated_generators():
            seed_everything(seed)
            return hook(*args, **kwargs)

    drawn.draws_alike = True  # type: ignore[attr-defined]
    return drawn


def wrap_loaders(trainer: lightning.Trainer, wrap: Callable[[Any], Any]) -> None:
    """Let the Trainer use `wrap(loader)` for each of its loaders.

    Whoever brings them, all pass its strategy's `process_dataloader`, samplers included.
    """
    processed = trainer.strategy.process_dataloader

    def process_dataloader(dataloader: object) -> object:
        return wrap(processed(dataloader))

    trainer.strategy.process_dataloader = process_dataloader  # type: ignore[method-assign]
