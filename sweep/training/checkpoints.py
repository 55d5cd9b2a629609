"""A trained module as an ordinary Lightning checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning

from sweep.files.trial_files import replace_file
from sweep.training.resuming import saved_bytes


def checkpoint_of(
    model: lightning.LightningModule, arguments: Mapping[str, Any], epoch: int, global_step: int
) -> dict[str, Any]:
    """`model` as a checkpoint for `type(model).load_from_checkpoint`.

    Holds plain values and CPU tensors only, to load with `weights_only=True`.

    Args:
        model: The trained module.
        arguments: Of its constructor, in plain values; whatever else `save_hyperparameters` took
            is kept if it is plain, too.
        epoch: Counts from 0, like Lightning's.
        global_step: Optimizer steps taken.
    """
    return {
        "epoch": epoch,
        "global_step": global_step,
        "pytorch-lightning_version": lightning.__version__,
        "state_dict": {name: value.detach().cpu() for name, value in model.state_dict().items()},
        "loops": {},
        "callbacks": {},
        "optimizer_states": [],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": saved_arguments(model, arguments),
    }


def saved_arguments(
    model: lightning.LightningModule, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """`hyper_parameters` of a checkpoint: plain saved ones, and the constructor's arguments."""
    saved = {name: value for name, value in model.hparams.items() if is_plain(value)}
    given = {name: _plain(value) for name, value in {**saved, **arguments}.items()}
    if any(isinstance(value, Mapping) for value in arguments.values()):
        given["_instantiator"] = "lightning.pytorch.cli.instantiate_module"  # as LightningCLI
    return given


def write_checkpoint(
    path: str | Path, model: lightning.LightningModule, arguments: Mapping[str, Any], epoch: int,
    global_step: int,
) -> str:  # fmt: skip
    """Write `checkpoint_of(...)`; returns the path. Raises DiskError.

    The write is atomic: a temporary file is flushed and renamed to `path`.
    """
    replace_file(Path(path), saved_bytes(checkpoint_of(model, arguments, epoch, global_step)))
    return str(path)


def is_plain(value: Any) -> bool:
    """Whether it is a number, text, None, or lists and mappings of those."""
    if isinstance(value, Mapping):
        return all(map(is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or type(value) in (str, int, float, bool)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
