"""What a study trains: module, data, Trainer settings and callbacks, built anew for each trial.

Names are LightningCLI's: `model.lr`, `data.batch_size`, `trainer.gradient_clip_val`,
`optimizer.lr`. A bare name belongs to whoever takes it: the module, the data, or both.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningCLI, instantiate_class

from sweep.data.catalog import MODULES_OWN, is_custom
from sweep.data.tensors import load_final_data, load_search_data
from sweep.errors import ConfigError, did_you_mean
from sweep.hyperparameters import DEFAULT_MODULE, TRAINING_ARGUMENTS
from sweep.loading import import_object
from sweep.protocols import Data
from sweep.training.mlp import MLPClassifier
from sweep.training.modules import build_mlp
from sweep.training.project.arguments import Arguments, Tree, put
from sweep.training.project.reading import ignored_names
from sweep.training.project.sources import DataSource, FinalData, data_of
from sweep.trial import SECTIONS, DatasetInfo, Task, TrialSpec, trainers_fault


@dataclass(frozen=True)
class Built:
    """One trial's own objects."""

    module: lightning.LightningModule
    data: Data | None
    """None: the module's own loaders."""
    batch_size: int
    """For resident data; a DataModule's and a module's own is among their arguments."""
    trainer: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the Trainer."""
    callbacks: tuple[Callback, ...] = ()
    pace: str = ""
    """Trials with the same arguments of their data have epochs of the same length."""


class Project:
    """Builds the module, data and Trainer settings of each trial of a study.

    Args:
        task: Settings of the study.
        data: The study's data, if they are loaded already.
        end: See `DataSource`.

    Raises ConfigError for objects that cannot be imported or are of another kind, DataError.
    """

    def __init__(self, task: Task, data: Data | None = None, end: FinalData = "") -> None:
        self._task = task
        self._parts: dict[str, Arguments] = {}
        self._build: Any = None
        if task.kind == "build":
            self._build = import_object(task.module, "--module")
        elif task.module != DEFAULT_MODULE:
            self._parts["model"] = _module_arguments(task.module)
        self._source = None
        self._end, self._given = end, data
        if data is None and is_custom(task.data):
            self._source = DataSource(task, end)
            self._parts["data"] = self._source.arguments
        self._takes_datamodule = self._source is not None and self._source.is_datamodule
        names = task.names or ()
        if any(name.startswith("trainer.") for name in names) or "trainer" in task.config:
            self._parts["trainer"] = Arguments("trainer", "Trainer", lightning.Trainer)
        self._callbacks = [import_object(path, "--callback") for path in task.callbacks]

    @functools.cached_property
    def _resident(self) -> Data | None:
        """Data that no trial changes; None: the module's own loaders, or a `DataSource`."""
        where = self._task.data, self._task.data_dir, self._task.seed
        if self._given is not None:
            return self._given
        if self._source is not None or where[0] == MODULES_OWN:
            return None
        if self._end:
            return load_final_data(*where, keeps_val=self._end == "apart")
        return load_search_data(*where)

    @property
    def parts(self) -> Mapping[str, Arguments]:
        """The constructors by section: model, data, trainer."""
        return self._parts

    @property
    def info(self) -> DatasetInfo | None:
        """The data as MLflow names them; None if nothing is known before a trial.

        Raises ConfigError or DataError if they cannot be loaded.
        """
        if self._source is not None:
            varies = [section for n in self._task.names or () for section, _ in self._places(n)]
            if not self._source.is_datamodule and "data" not in varies:
                self._source.data(self.trees({})["data"])  # a bug in it is told at once
            return self._source.info
        return self._resident.info if self._resident is not None else None

    def trees(self, hyperparameters: Mapping[str, Any]) -> dict[str, Tree]:
        """The arguments of each section: the study's fixed ones, then a trial's."""
        config = self._task.config
        trees: dict[str, Tree] = {s: copy.deepcopy(dict(config.get(s, {}))) for s in SECTIONS}
        for name in sorted(hyperparameters, key=lambda name: name.count(".")):
            for section, path in self._places(name):
                put(trees[section], path, hyperparameters[name])
        return {
            name: self._parts[name].completed(tree) if name in self._parts else tree
            for name, tree in trees.items()
        }

    def built(self, spec: TrialSpec) -> Built:
        """The objects of one trial. Raises any error of the user's code."""
        given, task = spec.hyperparameters, self._task
        if self._build is not None:
            return self._built_by_function(given)
        trees = self.trees(given)
        if task.module == DEFAULT_MODULE:
            data = self._resident if self._source is None else self._source.data(trees["data"])
            module: lightning.LightningModule = self._mlp(given, data, spec.seed)
        else:
            module = self._module(trees)
            data = self._resident if self._source is None else self._source.data(trees["data"])
        trainer = self._parts["trainer"].values(trees["trainer"]) if trees["trainer"] else {}
        return Built(
            module, data, int(given.get("batch_size", task.batch_size)), trainer,
            tuple(_built_callback(made_by) for made_by in self._callbacks),
            json.dumps([trees["data"], given.get("batch_size")], default=str, sort_keys=True),
        )  # fmt: skip

    def made_data(self, hyperparameters: Mapping[str, Any]) -> Any:
        """What the user's class or function makes of a trial's arguments; None: nothing."""
        if self._build is not None:
            return self._returned(hyperparameters)[1]
        if self._source is None:
            return None
        return self._source.arguments.call(self.trees(hyperparameters)["data"])

    def _returned(self, hyperparameters: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        made = self._build(dict(hyperparameters))
        module, data, trainer = (*(made if isinstance(made, tuple) else (made,)), None, None)[:3]
        return module, data, trainer

    def _built_by_function(self, given: Mapping[str, Any]) -> Built:
        """What a function of the parameters returns: module, data, Trainer arguments."""
        name = self._task.module
        module, data, trainer = self._returned(given)
        if not isinstance(module, lightning.LightningModule):
            kind = type(module).__name__
            raise TypeError(f"{name} must return a LightningModule first, but returned a {kind}")
        trainer = dict(trainer or {})
        is_object = not isinstance(trainer.get("strategy"), str)
        own = ("callbacks", "strategy") if is_object else ("callbacks",)
        others = [key for key in trainer if key not in own]
        if faults := [fault for key in others if (fault := trainers_fault(key))]:
            raise TypeError(f"{name}: {'; '.join(faults)}")
        known = None if data is None else data_of(data, name, self._task, self._end)
        return Built(module, known, int(given.get("batch_size", self._task.batch_size)), trainer)

    def plain_arguments(self, hyperparameters: Mapping[str, Any]) -> Tree:
        """The arguments of a user's module as plain values, for its checkpoint."""
        if self._build is not None:
            return dict(hyperparameters)
        if self._task.module == DEFAULT_MODULE:
            return {}  # all are among its saved hyperparameters
        return self.trees(hyperparameters)["model"]

    def faults(self, names: Collection[str]) -> list[str]:
        """One sentence for each name that nobody takes, and each argument that nobody gives."""
        if self._build is not None:
            return ignored_names(self._build, self._task)
        found = [fault for name in sorted(names) if (fault := self._name_fault(name))]
        for section, part in self._parts.items():
            paths = [path for name in names for taker, path in self._places(name)
                     if taker == section]  # fmt: skip
            given = {*self._task.config.get(section, {}), *(p.partition(".")[0] for p in paths)}
            found += part.name_faults([name for name in given if part.takes(name)])
        return found

    def type_faults(self, hyperparameters: Mapping[str, Any]) -> list[str]:
        """One sentence for each argument of another type than its annotation's."""
        if self._build is not None:
            return []
        trees = self.trees(hyperparameters)
        parts = self._parts.items()
        return [fault for section, part in parts for fault in part.type_faults(trees[section])]

    def makers(self, name: str) -> list[tuple[Any, str]]:
        """(class or function, its argument) of each taker of a name; none for nested objects."""
        return [
            (self._parts[section].made_by, path)
            for section, path in self._places(name)
            if section in ("model", "data") and "." not in path
        ]

    def module(self, hyperparameters: Mapping[str, Any]) -> lightning.LightningModule:
        """A new module of the user's. Raises TypeError, and any error of the user's code."""
        if self._build is not None:
            return self._built_by_function(hyperparameters).module
        return self._module(self.trees(hyperparameters))

    def _module(self, trees: Mapping[str, Tree]) -> lightning.LightningModule:
        module = self._parts["model"].call(trees["model"])
        if not isinstance(module, lightning.LightningModule):
            kind = type(module).__name__
            raise TypeError(f"{self._task.module} must be a LightningModule, but is a {kind}")
        if trees["optimizer"]:
            _give_optimizer(module, trees["optimizer"], trees["lr_scheduler"])
        return module

    def _mlp(self, given: Mapping[str, Any], data: Data | None, seed: int) -> MLPClassifier:
        tensors = data.tensors() if data is not None else None
        if tensors is None:
            raise ConfigError(
                f"MLPClassifier needs samples and classes, but --data {self._task.data} gives "
                "something else: name a module of yours with --module"
            )
        return build_mlp(given, tensors.info, seed)

    def _places(self, name: str) -> list[tuple[str, str]]:
        """(section, path) of each argument that a name sets."""
        section, _, path = name.partition(".")
        if path and section in SECTIONS:
            return [(section, path)]
        takers = [s for s in ("model", "data") if s in self._parts and self._parts[s].takes(name)]
        return [(taker, name) for taker in takers]

    def _name_fault(self, name: str) -> str | None:
        section, _, path = name.partition(".")
        if not path or section not in SECTIONS:
            return None if self._is_taken(name) else self._untaken(name)
        if section == "trainer" and (fault := trainers_fault(path)):
            return fault
        if section in ("optimizer", "lr_scheduler"):
            return None
        if section not in self._parts:
            what = f"--data {self._task.data}" if section == "data" else "MLPClassifier"
            return f"{name}: {what} takes no dotted names"
        part = self._parts[section]
        return None if part.takes(path) else part.name_faults([path])[0]

    def _is_taken(self, name: str) -> bool:
        is_ours = name in TRAINING_ARGUMENTS and self._task.data != MODULES_OWN
        return bool(self._places(name)) or (is_ours and not self._takes_datamodule)

    def _untaken(self, name: str) -> str:
        if len(self._parts) == 1:
            return next(iter(self._parts.values())).name_faults([name])[0]
        known = [n for part in self._parts.values() for n in part.names]
        takers = " or ".join(part.name for part in self._parts.values())
        hint = did_you_mean(name, known)
        return f"no argument {name!r} of {takers}{hint}"


def _module_arguments(path: str) -> Arguments:
    made_by = import_object(path, "--module")
    is_other_class = isinstance(made_by, type) and not issubclass(
        made_by, lightning.LightningModule
    )
    is_made = callable(made_by) or isinstance(made_by, lightning.LightningModule)
    if is_other_class or not is_made:
        what = "a LightningModule of the package lightning"
        raise ConfigError(f"{path} must be {what}, but is none")
    return Arguments("model", path, made_by)


def _built_callback(made_by: Any) -> Callback:
    """A new callback of a class or function, a copy of an instance."""
    made = copy.deepcopy(made_by) if isinstance(made_by, Callback) else made_by()
    if not isinstance(made, Callback):
        raise TypeError(f"a callback must be a Lightning Callback, but is {type(made).__name__}")
    return made


def _give_optimizer(module: lightning.LightningModule, optimizer: Tree, scheduler: Tree) -> None:
    """Let the module configure this optimizer (and schedule), as LightningCLI does."""
    if "class_path" not in optimizer:
        raise ConfigError("optimizer needs its class: --set optimizer.class_path=torch.optim.Adam")

    def configure_optimizers(self: lightning.LightningModule) -> Any:
        made = instantiate_class(self.parameters(), optimizer)
        schedule = instantiate_class(made, scheduler) if scheduler else None
        return LightningCLI.configure_optimizers(self, made, schedule)

    functools.update_wrapper(configure_optimizers, lightning.LightningModule.configure_optimizers)
    module.configure_optimizers = MethodType(configure_optimizers, module)  # type: ignore[method-assign]


def monitors_validation(built: Built) -> bool:
    """Whether a callback or a schedule looks at a metric other than of the training.

    A `configure_optimizers` that needs a Trainer cannot be asked: then only callbacks count.
    """
    callbacks = [*built.callbacks, *listed(built.module.configure_callbacks())]
    callbacks += listed(built.trainer.get("callbacks"))
    watched = [getattr(callback, "monitor", None) for callback in callbacks]
    try:
        configured = built.module.configure_optimizers()
    except Exception:  # noqa: BLE001 - user code, asked out of its turn
        configured = None
    watched += [schedule.get("monitor", "val_loss") for schedule in _plateaus(configured)]
    return any(name and not str(name).startswith("train") for name in watched)


def _plateaus(configured: Any) -> list[Mapping[str, Any]]:
    """The schedules of `configure_optimizers` that follow a metric."""
    if isinstance(configured, Mapping):
        schedules = listed(configured.get("lr_scheduler"))
    elif isinstance(configured, tuple) and len(configured) == 2:
        schedules = listed(configured[1])
    else:
        return []
    found = [s if isinstance(s, Mapping) else {"scheduler": s} for s in schedules]
    of_metric = torch.optim.lr_scheduler.ReduceLROnPlateau
    return [s for s in found if isinstance(s.get("scheduler"), of_metric)]


def listed(value: Any) -> list[Any]:
    """Lightning's "one or several, or none" as a list."""
    if value is None or isinstance(value, bool):
        return []
    return [*value] if isinstance(value, list | tuple) else [value]


def module_faults(path: str, names: Collection[str]) -> list[str]:
    """One sentence for each hyperparameter that a user's module does not take, or lacks.

    Names of other sections, and `batch_size`, may belong to the data.
    """
    part = _module_arguments(path)
    own = {
        name.removeprefix("model.")
        for name in names
        if "." not in name or name.startswith("model.")
    }
    return part.name_faults([n for n in own if part.takes(n) or n not in TRAINING_ARGUMENTS])
