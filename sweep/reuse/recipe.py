"""A recipe: everything to train one configuration again, as in `best.yaml`."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from sweep.config import parsers
from sweep.config.file import Node, plain, show, write_document
from sweep.config.resolving import read_config_file
from sweep.config.settings import RunConfig
from sweep.data.catalog import dataset_names
from sweep.errors import ConfigError, must_be_one_of
from sweep.hyperparameters import DEFAULT_MODULE
from sweep.reporting.tables import plain as json_ready
from sweep.space.rules import RULES, TRAINING_RULES
from sweep.trial import Kind

EXPLICIT_ARGUMENTS = (
    "in_features", "n_classes", "hidden", "activation", "dropout", "optimizer", "lr", "schedule",
    "clip_norm", "input_mean", "input_std", "seed",
)  # fmt: skip
"""Named arguments of MLPClassifier; the optimizer's own are its **optimizer_arguments."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training: module, hyperparameters, data, epochs and seed."""

    model: Mapping[str, Any]
    """Hyperparameters of the module."""
    data: str = "digits"
    module: str = DEFAULT_MODULE
    kind: Kind = "module"
    """How `module` is called."""
    epochs: int = 10
    """Epochs to train: the best epoch of the recipe's trial."""
    batch_size: int = 64
    seed: int = 0
    precision: str = "32-true"
    study: str | None = None
    trial: int | None = None
    run_id: str | None = None
    """MLflow run of the trial."""
    score: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the trial on validation data."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Fixed arguments by section, in LightningCLI's form."""
    callbacks: tuple[str, ...] = ()
    """`package.module:name` of each callback."""
    data_arguments: Mapping[str, Any] = field(default_factory=dict)
    """MLPClassifier's arguments from the data (in_features, ...); `sweep train` finds its own."""


def read_recipe(path: Path) -> Recipe:
    """The recipe in a YAML or JSON file. Raises ConfigError with all its faults."""
    nodes, faults = read_config_file(path), list[str]()
    content: dict[str, Any] = {}
    for key, node in nodes.items():
        try:
            if key not in READERS:
                raise ConfigError(must_be_one_of("a setting", key, READERS))
            content[key] = READERS[key](key, node)
        except ConfigError as error:
            faults += [f"{path}:{node.line}: {fault}" for fault in error.faults]
    if "model" not in nodes:
        faults.append(f"{path}: model must be a mapping of hyperparameters, but it is missing")
    if content.get("module", DEFAULT_MODULE) == DEFAULT_MODULE:
        faults += [f"{path}: {fault}" for fault in _model_faults(content.get("model", {}))]
    if faults:
        raise ConfigError(faults)
    return Recipe(**{key: value for key, value in content.items() if value is not None})


def as_yaml(recipe: Recipe) -> str:
    """YAML for `sweep train --config`."""
    score = ", ".join(f"{k} {v:.4f}" for k, v in recipe.score.items() if k.startswith("val"))
    head = f"# Trial {recipe.trial} of study {recipe.study}: {score}\n"
    return head + write_document(_plain(recipe))


def as_json(recipe: Recipe) -> str:
    """The same as JSON; NaN and infinity are null."""
    content = json_ready({**_plain(recipe), "score": recipe.score})
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def as_lightning(recipe: Recipe) -> str:
    """A LightningCLI config: `python train.py fit --config FILE` with `LightningCLI()`.

    Model and data are named by class path; the optimizer's own arguments are `dict_kwargs`,
    since MLPClassifier takes them as keyword arguments.
    """
    if recipe.kind != "module":
        raise ConfigError(f"{recipe.module} is a function: LightningCLI has no form for it")
    trainer = {"max_epochs": recipe.epochs, "precision": recipe.precision}
    content: dict[str, Any] = {"seed_everything": recipe.seed, "trainer": trainer}
    if recipe.module == DEFAULT_MODULE:
        arguments = {**_plain(recipe)["model"], **recipe.data_arguments, "seed": recipe.seed}
        extra = {k: v for k, v in arguments.items() if k not in EXPLICIT_ARGUMENTS}
        init = {k: v for k, v in arguments.items() if k in EXPLICIT_ARGUMENTS}
        content["model"] = {"class_path": class_path(recipe.module), "init_args": init}
        content["model"] |= {"dict_kwargs": extra} if extra else {}
    else:
        from sweep.reuse.loading import sections  # loads the user's code

        given = sections(recipe)
        content |= {**given, "trainer": {**given.get("trainer", {}), **trainer}}
    if recipe.data in dataset_names() or recipe.module == DEFAULT_MODULE:
        where = {"name": recipe.data, "batch_size": recipe.batch_size, "seed": recipe.seed}
        content["data"] = {"class_path": "sweep.data.datamodule.SweepData", "init_args": where}
    return write_document(content)


def class_path(path: str) -> str:
    """`package.module:name` or `folder/file.py:name` with dots, as LightningCLI writes it."""
    return path.replace(".py:", ".").replace(":", ".").replace("/", ".").lstrip(".")


def as_python(recipe: Recipe) -> str:
    """One line of Python to build the module, untrained."""
    module, _, name = recipe.module.partition(":")
    given = {**recipe.model, **recipe.data_arguments}
    if recipe.kind == "build":
        return f"from {module} import {name}; model, *others = {name}({given!r})\n"
    if recipe.kind == "objective":
        return f"from {module} import {name}; params = {given!r}\n"
    arguments = ", ".join(f"{k}={v!r}" for k, v in given.items())
    return f"from {module} import {name}; model = {name}({arguments})\n"


FORMATS: Mapping[str, Callable[[Recipe], str]] = {
    "yaml": as_yaml,
    "json": as_json,
    "lightning": as_lightning,
    "lightning-cli": as_lightning,
    "python": as_python,
}


def _plain(recipe: Recipe) -> dict[str, Any]:
    content = {k: v for k, v in dataclasses.asdict(recipe).items() if v not in (None, {}, ())}
    content["model"] = {k: list(v) if isinstance(v, tuple) else v for k, v in recipe.model.items()}
    content["score"] = {k: v for k, v in recipe.score.items() if math.isfinite(v)}
    content.pop("data_arguments", None)
    content.pop("kind", None) if recipe.kind == "module" else None
    return content


def _mapping(name: str, node: Node) -> dict[str, Any]:
    value = plain(node)
    if not isinstance(value, dict):
        raise ConfigError(f"{name} must be a mapping of names to values, but got {show(value)}")
    return value


def _numbers(name: str, node: Node) -> dict[str, Any]:
    found = _mapping(name, node)
    for key, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{name}: {key} must be a number, but got {show(value)}")
    return found


def _by(parse: parsers.Parser) -> Callable[[str, Node], Any]:
    """The reader of a scalar, by the parser of the flag of that name; null is left out."""

    def read(name: str, node: Node) -> Any:
        value = plain(node) if node.text is None else node.text
        return None if node.value is None else parse(name, value)

    return read


_SETTINGS = ("data", "module", "kind", "epochs", "batch_size", "seed", "precision", "study")
READERS: Mapping[str, Callable[[str, Node], Any]] = {
    "model": _mapping,
    **{f.name: _by(f.metadata["parse"]) for f in fields(RunConfig) if f.name in _SETTINGS},
    "trial": _by(parsers.count(0)),
    "run_id": _by(parsers.text),
    "score": _numbers,
    "config": _mapping,
    "callbacks": lambda name, node: tuple(plain(node)),
}
"""How each entry of a recipe file is read; the settings as their flags are."""


def _model_faults(model: Mapping[str, Any]) -> list[str]:
    known = dict.fromkeys((*EXPLICIT_ARGUMENTS, *(n for n in RULES if n not in TRAINING_RULES)))
    faults = [must_be_one_of("model", name, known) for name in model if name not in known]
    given = {name: value for name, value in model.items() if name in RULES and value is not None}
    found = (RULES[name].complaint(name, value) for name, value in given.items())
    return faults + [fault for fault in found if fault]
