"""What a trial leaves behind to be trained on: an ordinary Lightning checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning

from sweep.files.trial_folder import replace_file
from sweep.training.resuming import saved_bytes


def write_checkpoint(
    path: str | Path,
    model: lightning.LightningModule,
    epoch: int,
    global_step: int,
    extra: Mapping[str, Any] | None = None,
) -> str:
    """Write `model` as a checkpoint that `type(model).load_from_checkpoint(path)` opens.

    Plain values and tensors only, so that it loads with `weights_only=True`. Written aside,
    flushed and renamed: a file of that name is always whole. `epoch` counts from 0 like
    Lightning's; `extra` adds keys beside Lightning's own. Returns the path. Raises DiskError.
    """
    checkpoint: dict[str, Any] = {
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
        **(extra or {}),
    }
    replace_file(Path(path), saved_bytes(checkpoint))
    return str(path)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
