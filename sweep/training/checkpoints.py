"""Checkpoints and exported models: written aside, flushed, then renamed."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch


def trial_dir(work_dir: str | Path, number: int) -> Path:
    """The folder of a trial's files."""
    return Path(work_dir) / "trials" / f"{number:05d}"


def write_checkpoint(
    path: Path,
    model: lightning.LightningModule,
    epoch: int,
    global_step: int,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write `model` as an ordinary Lightning checkpoint of plain values and tensors.

    `load_from_checkpoint(path)` of its class opens it with weights_only=True. `epoch` counts
    from 1; Lightning's own field counts from 0. Raises OSError where the disk does.
    """
    content: dict[str, Any] = {
        "epoch": epoch - 1,
        "global_step": global_step,
        "pytorch-lightning_version": lightning.__version__,
        "state_dict": {k: v.detach().cpu() for k, v in model.state_dict().items()},
        "hparams_name": "kwargs",
        "hyper_parameters": dict(model.hparams),
        **(extra or {}),
    }
    model.on_save_checkpoint(content)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_aside(path, buffer.getvalue())


def export_model(
    path: Path, model: lightning.LightningModule, feature_shape: tuple[int, ...]
) -> None:
    """Write `model` as a torch.export archive (.pt2) that takes any number of samples.

    The archive predicts what the checkpoint predicts, on the CPU and in evaluation mode.
    """
    model = model.cpu().eval()
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    example = torch.zeros(2, *feature_shape, dtype=dtype)
    program = torch.export.export(
        model, (example,), dynamic_shapes=({0: torch.export.Dim.AUTO},)
    )
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    write_aside(path, buffer.getvalue())


def write_aside(path: Path, content: bytes) -> None:
    """Put `content` at `path` so that a whole file or none is there, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
