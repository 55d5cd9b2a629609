"""The plain trainer: one trial at a time, each in a lightning.Trainer of its own.

Accepts any LightningModule, and is the reference in tests of the fused trainer.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path

import lightning
import torch

from sweep.data.catalog import is_custom
from sweep.data.tensors import TensorData, load_search_data
from sweep.errors import ConfigError
from sweep.hyperparameters import DEFAULT_MODULE
from sweep.loading import import_object
from sweep.protocols import Data, Exchange
from sweep.training.devices import ready
from sweep.training.lightning_trainer import hush_lightning
from sweep.training.mlflow_calls import FluentCalls
from sweep.training.modules import argument_faults, has_own_loaders
from sweep.training.plain.engine import PlainEngine
from sweep.training.process_state import current_folder, undisturbed
from sweep.training.run import Run
from sweep.training.slot_loop import Slots
from sweep.trial import Task

SMALL_FEATURES = 256
"""Most features of a built-in network for training on one thread: its matrix products are too
small to share (digits: 2.5 s of work on one thread, 3.1 on two)."""


class PlainTrainer:
    """Trains the ordered trials one after the other; implements `sweep.protocols.Trainer`.

    Args:
        task: Settings of the study.
        data: The data, or a function to load it; None: load the task's data.
        notice: A line for the user, sent at the start.

    Raises:
        ConfigError: The module does not accept the hyperparameters of the search space.
    """

    def __init__(
        self,
        task: Task,
        data: TensorData | Callable[[], TensorData] | None = None,
        *,
        notice: str = "",
    ) -> None:
        self._notice = notice
        if task.n_threads:
            torch.set_num_threads(task.n_threads)
        self._calls = FluentCalls(task.work_dir)
        self._is_users = task.module != DEFAULT_MODULE or is_custom(task.data)
        # Reports a wrong name before the first trial.
        with self._caught():
            made_by = import_object(task.module, "--module")
        is_checked = task.module != DEFAULT_MODULE and task.names is not None
        if is_checked and (faults := argument_faults(task.module, made_by, task.names or ())):
            raise ConfigError([*faults, *_where_names_are_from(task.space)])
        self._task = task
        given = data() if callable(data) else data
        with self._caught():
            self._data = given or load_search_data(task.data, task.data_dir, task.seed)

    def train(self, exchange: Exchange) -> None:
        """Train the trials ordered by `exchange`, until is_last is set and none is left."""
        slots = Slots(self._task, exchange)
        slots.say(self._notice)
        try:
            train_one_by_one(self._task, self._data, slots, self._calls, self._caught)
        finally:
            self._calls.remove()

    def _caught(self) -> contextlib.AbstractContextManager[None]:
        return self._calls.caught() if self._is_users else contextlib.nullcontext()


def train_one_by_one(
    task: Task, data: Data, slots: Slots, calls: FluentCalls,
    caught: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    given: lightning.LightningModule | None = None,
) -> None:  # fmt: skip
    """Train the trials of `slots`, each within `caught`; `given` is the first one's module."""
    hush_lightning()
    folder, n_threads, slots.n_slots = current_folder(), torch.get_num_threads(), 1
    if task.module == DEFAULT_MODULE and math.prod(data.info.feature_shape) <= SMALL_FEATURES:
        torch.set_num_threads(1)
    engine = PlainEngine(task, data, slots, calls, given)
    try:
        slots.begin(engine, data.info.feature_shape, [ready(task, data, 1)])
        while slots.running:
            (run,) = slots.running.values()
            with undisturbed(folder), caught():
                _train(engine, run, slots, task)
            slots.turn_over()
    finally:
        torch.set_num_threads(n_threads)


def _train(engine: PlainEngine, run: Run, slots: Slots, task: Task) -> None:
    """Train one trial: a user's bug fails the trial, not the search."""
    try:
        engine.fit(run)
        if not slots.keeps_end and has_own_loaders(engine.module(run, "last")):
            slots.say(
                f"{task.module} trains on loaders of its own: what is named after --data "
                f"{task.data} (the study, MLflow's data set) is not what it saw"
            )
    except BaseException as error:  # noqa: BLE001 - `fail` re-raises the driver's errors
        slots.fail(run, error)
    slots.conclude(run)


def _where_names_are_from(space: str) -> list[str]:
    """A hint about a shipped search space: a module's user may have got it by default."""
    if not space or Path(space).suffix:
        return []
    return [
        f"these hyperparameters come from search space {space}: name one of yours with --space"
    ]
