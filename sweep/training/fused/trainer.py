"""The fused trainer: one Lightning Trainer for a worker's life; trials come and go in it.

Lightning sees one step per epoch, because its overhead of 1.7 ms a step exceeds the arithmetic of
a minibatch; inside that step the engine runs the minibatches on data resident on the device.
Lightning handles device, precision and their plug-ins as usual.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor

from sweep.data.tensors import TensorData, load_search_data
from sweep.errors import ConfigError, must_be_one_of
from sweep.hyperparameters import MLP_METRICS
from sweep.protocols import Exchange
from sweep.training.compiled.kernel import Kernel, load_kernel
from sweep.training.devices import lightning_devices, ready
from sweep.training.engine_choice import MOST_SLOTS, precision_of
from sweep.training.failures import classify
from sweep.training.fused.engine import DTYPES, FusedEngine
from sweep.training.lightning_trainer import hush_lightning, quiet_trainer
from sweep.training.slot_loop import Slots
from sweep.trial import Task

MEMORY_SHARE = 0.5
"""Share of free memory to use: buffers are copied when trials change, and other processes use the
device, too."""
UNKNOWN_MEMORY = 4 << 30
"""Free memory assumed if the system does not report it (neither Linux nor CUDA), in bytes."""
SLOWER = "torch trains instead of the compiled kernel, in two to three times the time"


def population_size(task: Task, data: TensorData, device: torch.device) -> int:
    """Number of trials to train at a time on `device`.

    The task's `population`, else as many as fit into half of the memory free now, at most
    `MOST_SLOTS`. A trial is estimated with three hidden layers of 512 units: parameters, best
    epoch's, gradients and three optimizer states, and 6 activations per unit and sample.
    """
    if task.population is not None:
        return max(1, task.population)
    size = DTYPES[precision_of(task)].itemsize
    n_weights = 512 * (data.train.x[0].numel() + 2 * 512 + 16)
    n_activations = 6 * 3 * 512 * max(task.batch_size, 512)
    per_trial = size * (6 * n_weights + n_activations)
    return max(1, min(MOST_SLOTS, int(MEMORY_SHARE * free_memory(device) / per_trial)))


class FusedTrainer:
    """Trains trials of one task side by side; implements `sweep.protocols.Trainer`.

    Args:
        task: Settings of the study.
        data: The data, or a function to load it; None: load the task's data.

    Raises:
        ConfigError: The trainer does not support the task's metric or precision.
    """

    def __init__(
        self, task: Task, data: TensorData | Callable[[], TensorData] | None = None
    ) -> None:
        faults = []
        if task.metric not in MLP_METRICS:
            faults.append(must_be_one_of("metric", task.metric, MLP_METRICS))
        if precision_of(task) not in DTYPES:
            faults.append(must_be_one_of("precision", task.precision, DTYPES))
        if faults:
            raise ConfigError(faults)
        self._task = task
        if data is None:
            data = load_search_data(task.data, task.data_dir, task.seed)
        self._data = data

    def train(self, exchange: Exchange) -> None:
        """Train the trials ordered by `exchange`, until is_last is set and none is left.

        Out of memory, training continues with half as many trials at a time, each from its last
        checkpoint (or its beginning); a trial too large to run alone fails.
        """
        data = self._data() if callable(self._data) else self._data
        train_side_by_side(self._task, data, Slots(self._task, exchange), MLP_METRICS)


def train_side_by_side(
    task: Task, data: TensorData, slots: Slots, metrics: tuple[str, ...]
) -> None:
    """Train the trials of `slots` in populations; report `metrics` after each epoch."""
    hush_lightning()
    n_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(task.n_threads or n_threads)
        while True:
            try:
                _fit(_Epochs(task, data, slots, metrics), task)
                return
            except (RuntimeError, MemoryError, OSError) as error:
                failure = classify(error)
                if failure.kind != "oom" or not slots.n_slots:
                    raise
            slots.halve(failure)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    finally:
        torch.set_num_threads(n_threads)


def _fit(epochs: _Epochs, task: Task) -> None:
    trainer = quiet_trainer(
        task.work_dir,
        max_epochs=-1,
        accelerator=task.accelerator,
        devices=lightning_devices(task.devices),
        precision=precision_of(task),
    )
    trainer.fit(epochs, _OneStepEpochs())


class _Epochs(lightning.LightningModule):
    """The module for Lightning: its training step is one epoch of all trials."""

    def __init__(
        self, task: Task, data: TensorData, slots: Slots, metrics: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self._task, self._data, self._slots, self._metrics = task, data, slots, metrics
        self._epoch: tuple[Any, ...] = ({}, 0.0, {})

    def configure_optimizers(self) -> list[Any]:
        """None: the populations have one for each trial."""
        return []

    def on_fit_start(self) -> None:
        """Move the data to the device and request the first trials."""
        task, slots = self._task, self._slots
        data = self._data.to(self.device)
        first = []
        if not slots.n_slots:
            slots.n_slots = population_size(task, data, self.device)
            first = [ready(task, data.info, slots.n_slots)]
        kernel, n_threads = None, 1
        if self.device.type == "cpu":
            kernel, n_threads = self._load_kernel(), torch.get_num_threads()
        self._engine = FusedEngine(task, data, kernel, n_threads, self._metrics)
        slots.begin(self._engine, first)
        self._leave_if_done()

    def _load_kernel(self) -> Kernel | None:
        loaded = load_kernel(DTYPES[precision_of(self._task)].itemsize)
        if loaded.why_not:
            self._slots.say(f"{SLOWER}: {loaded.why_not}")
        return loaded.kernel

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        """One epoch of every trial."""
        began_s = time.perf_counter()
        metrics, outcomes = self._engine.train_epoch()
        self._epoch = metrics, time.perf_counter() - began_s, outcomes

    @torch.no_grad()
    def on_train_epoch_end(self) -> None:
        """Report the epoch, then apply the driver's orders."""
        slots = self._slots
        slots.end_epoch(*self._epoch)
        slots.conclude_ended()
        slots.keep_if_due()
        slots.turn_over()
        self._leave_if_done()

    def _leave_if_done(self) -> None:
        self.trainer.should_stop = not self._slots.running


class _OneStepEpochs:
    """A training set of one dummy minibatch: an epoch is a single step."""

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Tensor]:
        yield torch.zeros(1)


def free_memory(device: torch.device) -> int:
    """Free memory of `device`, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        fields = Path("/proc/meminfo").read_text().split()
        return 1024 * int(fields[fields.index("MemAvailable:") + 1])
    except (OSError, ValueError):
        return UNKNOWN_MEMORY
