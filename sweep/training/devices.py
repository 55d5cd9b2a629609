"""A worker's device: its index, its name, and the first report."""

from __future__ import annotations

import torch

from sweep.trial import DatasetInfo, Task, WorkerReady, now_ms


def lightning_devices(text: str) -> int | list[int]:
    """Lightning's `devices`: a count, or the index in "[2]" or "2,"."""
    digits = text.strip("[], ")
    return int(digits) if text.strip().isdigit() else [int(digits)]


def device_name(task: Task) -> str:
    """The device's name in torch, e.g. "cpu, 2 threads" or "cuda NVIDIA H100"."""
    wanted = task.accelerator
    if wanted in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        chosen = lightning_devices(task.devices)
        return f"cuda {torch.cuda.get_device_name(chosen[0] if isinstance(chosen, list) else 0)}"
    if wanted in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return "mps"
    return f"cpu, {torch.get_num_threads()} threads"


def ready(
    task: Task, info: DatasetInfo | None, n_slots: int, n_workers: int = 1,
    *, may_share_steps: bool = True,
) -> WorkerReady:  # fmt: skip
    """A trainer's first report; `info` None: nothing is known of the data."""
    device = device_name(task)
    return WorkerReady(info, device, n_slots, now_ms(), n_workers, may_share_steps)
