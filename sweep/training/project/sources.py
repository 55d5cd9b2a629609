"""The data of a study that are the user's: a LightningDataModule, or what a function returns."""

from __future__ import annotations

import fcntl
import functools
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden

from sweep.data.catalog import is_custom
from sweep.data.rows import GivenData
from sweep.environment.sources import digest_of
from sweep.errors import ConfigError, DataError
from sweep.loading import import_object, one_line, raised_by_user_code
from sweep.protocols import Data
from sweep.training.project.arguments import Arguments, Tree
from sweep.trial import DatasetInfo, Task

PREPARED = "prepared"
"""File of a study: the arguments whose data its last search has prepared."""
FinalData = Literal["", "joined", "apart"]


class ModuleData:
    """A LightningDataModule as a `sweep.protocols.Data`."""

    def __init__(self, datamodule: lightning.LightningDataModule, info: DatasetInfo) -> None:
        self.datamodule, self.info = datamodule, info

    def fit_arguments(self, batch_size: int, first_epoch: int = 0) -> dict[str, Any]:
        """The DataModule itself; its batch size is among its own arguments."""
        return {"datamodule": self.datamodule}

    def test_arguments(self) -> dict[str, Any]:
        """The DataModule itself."""
        return {"datamodule": self.datamodule}

    def tensors(self) -> None:
        """None: nothing is resident."""

    def to(self, device: torch.device | str) -> ModuleData:
        """The same: Lightning moves each batch."""
        return self


class DataSource:
    """Makes a trial's data: anew where an argument varies, else the same object again.

    Args:
        task: Settings of the study; its `data` names a class, a function or an instance.
        end: How the final training divides a function's data: "joined" (train and validation
            together) or "apart"; "": a search, whose test data stay sealed.

    Raises ConfigError for an object of another kind.
    """

    def __init__(self, task: Task, end: FinalData = "") -> None:
        made_by = import_object(task.data, "--data")
        if isinstance(made_by, type) and not issubclass(made_by, lightning.LightningDataModule):
            raise ConfigError(
                f"--data {task.data} must be a LightningDataModule or a function, but is the "
                f"class {made_by.__name__}"
            )
        self.arguments = Arguments("data", task.data, made_by)
        self.is_datamodule = not inspect.isroutine(made_by)
        self._task, self._end = task, end
        self._last: tuple[str, Data] | None = None
        self.info = _unknown_info(task)

    def data(self, tree: Tree) -> Data:
        """The data made with these arguments. Raises ConfigError, DataError."""
        key = json.dumps(tree, sort_keys=True, default=str)
        if self._last is None or self._last[0] != key:
            self._last = key, self._made(tree, key)
        return self._last[1]

    def _made(self, tree: Tree, key: str) -> Data:
        name = self._task.data
        try:
            made = self.arguments.call(tree)
        except BaseException as error:  # also sys.exit
            told = one_line(raised_by_user_code(error), name)
            raise DataError(f"{name} raised {told}") from error
        data = data_of(made, f"--data {name}", self._task, self._end)
        if isinstance(data, ModuleData):
            if self._task.session:
                _prepare_once(data.datamodule, self._task, key)
            _set_up_once(data.datamodule)
        self.info = data.info
        return data


def data_of(made: Any, name: str, task: Task, end: FinalData = "") -> ModuleData | GivenData:
    """What a user's class or function made, as data. Raises ConfigError for anything else."""
    if isinstance(made, lightning.LightningDataModule):
        return ModuleData(made, _unknown_info(task))
    if not isinstance(made, Mapping):
        raise ConfigError(
            f"{name} must be a LightningDataModule, or return one or a mapping with "
            f'"train", and optionally "val" and "test", but got {type(made).__name__}'
        )
    data = GivenData.of(name.removeprefix("--data "), made, task.seed, has_test=bool(end))
    return data.joined() if end == "joined" else data


def _unknown_info(task: Task) -> DatasetInfo:
    """Of data that only their minibatches describe."""
    origin = task.data if is_custom(task.data) else task.module  # a function that builds all
    return DatasetInfo(origin, origin, digest_of(origin) or "0" * 32, (), 0, 0, 0)


def _prepare_once(datamodule: lightning.LightningDataModule, task: Task, key: str) -> None:
    """Call `prepare_data` for the first of a search's workers on this machine alone.

    The others wait for it. Not for one that leaves something in the DataModule, against
    Lightning's advice.
    """
    prepare, file = datamodule.prepare_data, Path(task.machine_dir or task.work_dir, PREPARED)

    @functools.wraps(prepare)
    def once() -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a+") as known:  # its first line is the search, the others arguments
            fcntl.flock(known, fcntl.LOCK_EX)
            known.seek(0)
            session, *done = known.read().splitlines() or [""]
            done = done if session == task.session else []
            if key in done:
                return
            before = dict(vars(datamodule))
            prepare()
            after = vars(datamodule)
            if before.keys() == after.keys() and all(before[k] is after[k] for k in before):
                known.truncate(0)
                known.write("\n".join([task.session, *done, key]))

    datamodule.prepare_data = once  # type: ignore[method-assign]


def _set_up_once(datamodule: lightning.LightningDataModule) -> None:
    """Skip `setup` in later fits with the same DataModule: its data are there.

    Not for a `setup` that draws from torch's global generator (each trial has its own seed, as in
    a script), nor where `teardown` may undo it.
    """
    setup, done = datamodule.setup, set[str]()

    @functools.wraps(setup)
    def once(stage: str) -> None:
        if stage in done:
            return
        before = torch.get_rng_state()
        setup(stage)
        is_undone = is_overridden("teardown", datamodule)
        if not is_undone and torch.equal(before, torch.get_rng_state()):
            done.add(stage)

    datamodule.setup = once  # type: ignore[method-assign]
