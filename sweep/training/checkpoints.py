"""What a trial leaves behind: an ordinary Lightning checkpoint and a torch.export archive."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn


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
    Lightning's; `extra` adds keys beside Lightning's own. Returns the path.
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
    return _replace(path, lambda file: torch.save(checkpoint, file))


def export_model(path: str | Path, model: nn.Module, feature_shape: tuple[int, ...]) -> str:
    """Write `model` as a torch.export archive (.pt2) that takes any number of samples.

    `torch.export.load(path).module()(x)` gives what the model in evaluation mode gives for x
    (B, *feature_shape). Leaves the model in evaluation mode. Returns the path.
    """
    model.eval()
    like = next(model.parameters())
    # Two rows: with one the batch dimension would be specialised to 1.
    example = torch.zeros(2, *feature_shape, device=like.device, dtype=like.dtype)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(
        _Inference(model), (example,), dynamic_shapes=({0: batch},), strict=False
    )
    return _replace(path, lambda file: torch.export.save(program, file))


class _Inference(nn.Module):
    """Only the forward pass: a LightningModule brings its trainer and metrics along."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """The model's output."""
        output: Tensor = self.model(x)
        return output


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _replace(path: str | Path, write: Any) -> str:
    """Write aside, flush to the disk, rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return str(path)
