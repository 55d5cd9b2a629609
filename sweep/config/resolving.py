"""Where settings come from: flags, environment and files become one checked RunConfig.

Precedence: flag, environment, file, the study's stored configuration, default. Every fault is
found before anything runs and all are reported at once.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.config import parsers
from sweep.config.settings import RunConfig, flag_name, public_name, setting_names
from sweep.data.catalog import MODULES_OWN
from sweep.databases import sqlite
from sweep.environment.sources import defines
from sweep.errors import ConfigError, must_be_one_of
from sweep.hyperparameters import DEFAULT_MODULE, MLP_METRICS
from sweep.loading import is_of_this_process
from sweep.trial import VALUE, count_devices

if TYPE_CHECKING:
    from sweep.config.file import Node


@dataclass(frozen=True)
class Resolved:
    """A configuration and the origin of each value."""

    config: RunConfig
    origins: Mapping[str, str] = dataclasses.field(repr=False)
    """Field name -> flag, environment NAME, file NAME, study or default."""


def resolve(
    flags: Mapping[str, Any],
    env: Mapping[str, str] | None = None,
    file: Path | None = None,
    stored: Mapping[str, Any] | None = None,
    also: Callable[[RunConfig], Iterable[str]] | None = None,
) -> Resolved:
    """Merge the four sources into one checked configuration.

    Raises ConfigError with all faults: unknown names, wrong types, values out of range. Then
    `also` adds the faults of the space, unless space or module are faulty themselves.
    """
    faults: list[str] = []
    kept = {k: (v, "study", k) for k, v in (stored or {}).items() if v is not None}
    sources: tuple[dict[str, _Given], ...] = (
        _named(flags, "flag", faults),
        _of_environment(os.environ if env is None else env),
        _of_file(file, faults) if file else {},
        kept,
    )
    config_file = next((s["lightning"][0] for s in sources[:3] if "lightning" in s), None)
    if config_file is not None:
        sources = (*sources[:3], _of_lightning(config_file, faults), kept)
    values, wrong = dict[str, Any](), set[str]()
    origins: dict[str, str] = {}
    for field in dataclasses.fields(RunConfig):
        found = [source[field.name] for source in sources if field.name in source]
        origins[field.name] = found[0][1] if found else "default"
        try:
            for value, _, label in found[:1]:
                values[field.name] = field.metadata["parse"](label, value)
        except ConfigError as error:
            faults += error.faults
            wrong.add(field.name)
    is_other_metric = stored and values.get("metric") != stored.get("metric", RunConfig.metric)
    if origins["direction"] == "study" and is_other_metric:
        values["direction"], origins["direction"] = "auto", "default"
    module = values.get("module", DEFAULT_MODULE)
    is_users = module != DEFAULT_MODULE and origins["data"] == "default"
    kind = values.get("kind", "module")
    if is_users and (kind != "module" or defines(module, "train_dataloader")):
        values["data"] = MODULES_OWN
    if kind == "objective" and origins["metric"] == "default":
        values["metric"] = VALUE
    config = RunConfig(**values)  # faulty settings have their defaults here
    faults += _cross_check(config, wrong)
    if faults and also is not None and not wrong & {"space", "module"}:
        faults += also(config)
    if faults:
        raise ConfigError(faults)
    return Resolved(config, origins)


def read_config_file(path: Path) -> dict[str, Node]:
    """The entries of a YAML file of settings. Raises ConfigError with all faults and lines."""
    from sweep.config.file import Faults, read_file

    faults = Faults(str(path), ConfigError)
    root = read_file(path, faults)
    if root.value is not None:
        faults.expect(root, isinstance(root.value, dict), "must hold `setting: value` lines")
    faults.raise_if_any()
    return dict(root.value or {})


_Given = tuple[Any, str, str]
"""(raw value, its source, its name in messages)"""


def _named(
    given: Mapping[str, Any],
    origin: str,
    faults: list[str],
    places: Mapping[str, str] | None = None,
) -> dict[str, _Given]:
    """Values by field; unknown names and second values go to `faults`.

    `places`: FILE:LINE of each name, for messages; None: the names are flags.
    """
    names, first, found = setting_names(), dict[str, str](), dict[str, _Given]()
    for key, value in given.items():
        place = f"{places[key]}: " if places else ""
        name = key.replace("-", "_")
        field = names.get(name, name)
        if field not in names.values():
            faults.append(place + must_be_one_of("a setting", key, names))
        elif field in first:
            twice = f"given twice, as {first[field]} and as {key}"
            faults.append(f"{place}{public_name(field)} is {twice}")
        elif value is not None:
            found[field] = (value, origin, place + key if places else flag_name(field))
        first.setdefault(field, key)
    return found


def _of_environment(env: Mapping[str, str]) -> dict[str, _Given]:
    """MLFLOW_TRACKING_URI comes before SWEEP_TRACKING_URI: other programs read it, too."""
    variables = [("MLFLOW_TRACKING_URI", "tracking_uri")]
    for field in setting_names().values():
        variables += [(f"SWEEP_{name.upper()}", field) for name in (public_name(field), field)]
    found = [(name, field) for name, field in reversed(variables) if env.get(name)]
    return {field: (env[name], f"environment {name}", name) for name, field in found}


def _of_file(file: Path, faults: list[str]) -> dict[str, _Given]:
    try:
        nodes = read_config_file(file)
    except ConfigError as error:
        faults += error.faults
        return {}
    if "model" in nodes:
        faults.append(
            f"{file} is a recipe of `sweep best`: it is for `sweep train --config {file}`"
        )
        return {}
    places = {key: f"{file}:{node.line}" for key, node in nodes.items()}
    return _named({k: _raw(node) for k, node in nodes.items()}, f"file {file}", faults, places)


def _of_lightning(path: Any, faults: list[str]) -> dict[str, _Given]:
    from sweep.config.lightning_file import settings_of

    try:
        found = settings_of(Path(parsers.path("--lightning", path)))
    except ConfigError as error:
        faults += error.faults
        return {}
    return {name: (value, f"file {path}", f"{path}: {name}") for name, value in found.items()}


def _raw(node: Node) -> Any:
    """A scalar as it is spelled: the same parsers read it as read flags and the environment."""
    if isinstance(node.value, list):
        return [_raw(item) for item in node.value]
    if isinstance(node.value, dict):
        return {key: _raw(item) for key, item in node.value.items()}
    return None if node.value is None else node.text


def _cross_check(config: RunConfig, wrong: Collection[str]) -> list[str]:
    """Contradictions between settings; fields in `wrong` are faulty and have defaults here."""
    faults = []
    is_ours = config.module == DEFAULT_MODULE and "module" not in wrong
    if is_ours and config.metric not in MLP_METRICS:
        faults.append(must_be_one_of("--metric", config.metric, MLP_METRICS))
    elif "direction" not in wrong:
        try:
            _ = config.resolved_direction
        except ConfigError as error:
            faults += error.faults
    faults += _kind_faults(config) + _rank_faults(config)
    if config.executor == "inline" and (config.workers or 1) > 1:
        faults.append("--executor inline runs in this process: --workers must be 1")
    if config.deterministic and config.threads not in (None, 1):
        faults.append("--deterministic trains on one thread a worker: leave out --threads")
    if config.executor == "ray" and not config.devices.isdigit():
        faults.append("--executor ray gives out devices itself: --devices must be a number")
    if _same_database(config.storage, config.tracking_uri):
        faults.append(
            "--storage and --tracking-uri name one database: Optuna and MLflow need one each"
        )
    if config.executor == "inline" and config.worker_memory_gb is not None:
        faults.append("--executor inline runs in this process: --worker-memory must be none")
    if not parsers.STUDY_NAME.fullmatch(config.study_name):
        faults.append(
            f"{config.study_name!r} cannot be a study's name: give one with --study NAME"
        )
    return faults


def _kind_faults(config: RunConfig) -> list[str]:
    if config.kind == "module":
        return []
    if config.is_mlp:
        return [f"--kind {config.kind} needs a function: --module FILE.py:NAME"]
    brought = {"--data": config.data != MODULES_OWN, "--lightning": config.lightning is not None,
               "--callback": bool(config.callback)}  # fmt: skip
    said = [flag for flag, is_given in brought.items() if is_given]
    what = "trains by itself" if config.kind == "objective" else "brings its own"
    fault = f"--kind {config.kind}: the function {what}, so leave out {', '.join(said)}"
    return [fault] if said else []


def _rank_faults(config: RunConfig) -> list[str]:
    """Each device of a trial has a process of its own, which imports the trial's objects."""
    paths = (config.module, config.data, *config.callback)
    has_ranks = config.kind != "objective" and count_devices(config.devices) > 1
    if not has_ranks or not any(map(is_of_this_process, paths)):
        return []
    return [
        f"--devices {config.devices} trains a trial in several processes: module, data and "
        "callbacks must be classes or functions at the top of a file"
    ]


def _same_database(storage: str, tracking_uri: str) -> bool:
    """Whether both are one database: Optuna and MLflow have tables of the same names."""
    paths = [sqlite.path_of(url) for url in (storage, tracking_uri)]
    real = [os.path.realpath(path) for path in paths if path is not None]
    return storage == tracking_uri or (len(real) == 2 and real[0] == real[1])
