"""A worker's device: its index, its name, and the first report."""

from __future__ import annotations

import re

import torch

from sweep.trial import DatasetInfo, Task, WorkerReady, now_ms


def lightning_devices(text: str) -> int | list[int]:
    """Lightning's `devices`: a count, or the indices in "[2]", "2," or "0,2"."""
    return int(text) if text.isdigit() else [int(word) for word in re.findall(r"\d+", text)]


def first_device(text: str) -> str:
    """Lightning's `devices` for the first device of `text` alone.

    >>> first_device("2"), first_device("[3, 4]")
    ('1', '3,')
    """
    wanted = lightning_devices(text)
    return "1" if isinstance(wanted, int) else f"{wanted[0]},"


def missing_devices(task: Task) -> str:
    """Why a trial cannot have its devices on this machine; "": it can."""
    if task.accelerator == "cpu" or task.n_devices == 1:
        return ""
    n_here, wanted = torch.cuda.device_count(), lightning_devices(task.devices)
    n_needed = wanted if isinstance(wanted, int) else max(wanted) + 1
    if not n_here and task.accelerator == "auto" and not torch.backends.mps.is_available():
        return ""  # on a CPU
    if n_here >= n_needed:
        return ""
    return (
        f"--devices {task.devices} needs {n_needed} GPUs, but this machine has {n_here}: name "
        "fewer, or say --accelerator cpu"
    )


def device_name(task: Task) -> str:
    """The device's name in torch, e.g. "cpu, 2 threads" or "2 x cuda NVIDIA H100"."""
    name = _name_of_one(task)
    return name if task.n_devices == 1 else f"{task.n_devices} x {name}"


def _name_of_one(task: Task) -> str:
    wanted = task.accelerator
    if wanted in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        chosen = lightning_devices(task.devices)
        return f"cuda {torch.cuda.get_device_name(chosen[0] if isinstance(chosen, list) else 0)}"
    if wanted in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return "mps"
    return f"cpu, {max(1, torch.get_num_threads() // task.n_devices)} threads"


def ready(task: Task, info: DatasetInfo | None, n_slots: int) -> WorkerReady:
    """A trainer's first report; `info` None: nothing is known of the data."""
    return WorkerReady(info, device_name(task), n_slots, now_ms())
