"""A trained module as an ordinary Lightning checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning

from sweep.files.trial_files import replace_file
from sweep.training.resuming import saved_bytes


def checkpoint_of(
    model: lightning.LightningModule, epoch: int, global_step: int
) -> dict[str, Any]:
    """`model` as a checkpoint for `type(model).load_from_checkpoint`.

    Holds plain values and CPU tensors only, to load with `weights_only=True`. `epoch` counts from
    0, like Lightning's.
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
        "hyper_parameters": {name: _plain(value) for name, value in model.hparams.items()},
    }


def write_checkpoint(
    path: str | Path, model: lightning.LightningModule, epoch: int, global_step: int
) -> str:
    """Write `checkpoint_of(...)`; returns the path. Raises DiskError.

    The write is atomic: a temporary file is flushed and renamed to `path`.
    """
    replace_file(Path(path), saved_bytes(checkpoint_of(model, epoch, global_step)))
    return str(path)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
