"""The trainer of any LightningModule: each trial has a lightning.Trainer of its own.

With a population of 1 trials train one after the other, as in the user's own script; that is the
reference in tests of all other engines.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from sweep.data.catalog import is_custom
from sweep.errors import ConfigError
from sweep.hyperparameters import DEFAULT_MODULE
from sweep.protocols import Data, Exchange
from sweep.training.devices import missing_devices, ready
from sweep.training.engine_choice import why_plain
from sweep.training.lightning_trainer import hush_lightning
from sweep.training.mlflow_calls import FluentCalls
from sweep.training.plain.engine import PlainEngine
from sweep.training.plain.ladder import Ladder, climb
from sweep.training.plain.several import train_on_devices
from sweep.training.process_state import current_folder, undisturbed
from sweep.training.project.check import preflight
from sweep.training.project.project import Built, Project
from sweep.training.slot_loop import Slots, train_in_turns, train_one_by_one
from sweep.trial import Task

SMALL_FEATURES = 256
"""Most features of a built-in network for training on one thread: its matrix products are too
small to share (digits: 2.5 s of work on one thread, 3.1 on two)."""


class PlainTrainer:
    """Trains the ordered trials; implements `sweep.protocols.Trainer`.

    Args:
        task: Settings of the study.
        data: The data, or a function to load it; None: load the task's data.
        notice: A line for the user, sent at the start.

    Raises:
        ConfigError: The module does not accept the hyperparameters of the search space.
    """

    def __init__(
        self, task: Task, data: Data | Callable[[], Data] | None = None, *, notice: str = ""
    ) -> None:
        self._notice = notice
        if task.n_threads:
            torch.set_num_threads(task.n_threads)
        self._calls = FluentCalls(task.work_dir)
        self._is_users = task.module != DEFAULT_MODULE or is_custom(task.data)
        self._task = task
        if fault := missing_devices(task):
            raise ConfigError(fault)
        # Reports a wrong name before the first trial.
        with self._caught():
            self._project = Project(task, data() if callable(data) else data)
        is_checked = task.module != DEFAULT_MODULE and task.names is not None
        if is_checked and (faults := self._project.faults(task.names or ())):
            raise ConfigError(faults)

    def train(self, exchange: Exchange) -> None:
        """Train the trials ordered by `exchange`, until is_last is set and none is left."""
        slots = Slots(self._task, exchange)
        slots.say(self._notice)
        try:
            is_sound = self._look_ahead(slots)
            if self._task.n_devices > 1:
                train_on_devices(self._task, slots, self._project.info)
                return
            ladder = self._ladder(is_sound=is_sound)
            slots.say(ladder.said)
            train_plainly(
                self._task, self._project, slots, self._calls, self._caught, ladder=ladder
            )
        finally:
            self._calls.remove()

    def _look_ahead(self, slots: Slots) -> bool:
        """Before the study's first trial; whether a minibatch could be trained, as far as is
        known. Raises ConfigError."""
        if not self._task.probes or Path(self._task.work_dir, "trials").exists():
            return True
        hush_lightning()
        with undisturbed(current_folder()), self._caught():
            found = preflight(self._project, self._task)
        if found.faults:
            raise ConfigError(found.faults)
        slots.say(*found.notices)
        return found.error is None

    def _ladder(self, *, is_sound: bool) -> Ladder:
        """How many trials train at a time, and how."""
        task = self._task
        n_slots = task.population or 1
        is_alone = task.module == DEFAULT_MODULE or task.is_deterministic
        if is_alone or why_plain(task) is not None:
            return Ladder(1, 1, "", is_shared=False)
        if not task.probes or not is_sound:
            return Ladder(n_slots, 1, "", may_share_steps=task.may_share_steps)
        hush_lightning()
        with undisturbed(current_folder()), self._caught():
            return climb(task, self._project)

    def _caught(self) -> contextlib.AbstractContextManager[None]:
        return self._calls.caught() if self._is_users else contextlib.nullcontext()


def train_plainly(
    task: Task, project: Project, slots: Slots, calls: FluentCalls,
    caught: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    given: Built | None = None, ladder: Ladder | None = None,
) -> None:  # fmt: skip
    """Train the trials of `slots`, each within `caught`; `given` are the first one's objects."""
    ladder = ladder or Ladder(1, 1, "", is_shared=False)
    hush_lightning()
    n_threads = torch.get_num_threads()
    info = project.info
    shape = info.feature_shape if info is not None else ()
    if task.module == DEFAULT_MODULE and math.prod(shape) <= SMALL_FEATURES:
        torch.set_num_threads(1)
    if ladder.n_threads is not None:
        torch.set_num_threads(ladder.n_threads)
    make = partial(
        PlainEngine, task, project, slots, calls, given, is_shared=ladder.is_shared,
        in_turns=ladder.n_slots > 1, may_share_steps=ladder.may_share_steps,
    )  # fmt: skip
    first = dataclasses.replace(
        ready(task, info, ladder.n_slots), n_workers=ladder.n_workers,
        n_threads=ladder.n_threads, may_share_steps=ladder.may_share_steps,
    )  # fmt: skip
    try:
        if ladder.n_slots > 1:
            train_in_turns(slots, make, first, ladder.n_slots, caught)
        else:
            train_one_by_one(slots, make(), first, caught)
    finally:
        torch.set_num_threads(n_threads)
