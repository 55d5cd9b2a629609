"""A LightningCLI config file: the settings it stands for, and the arguments that it fixes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweep.config.file import Faults, plain, read_file
from sweep.errors import ConfigError
from sweep.trial import SECTIONS, TRAINER_SETTINGS


def settings_of(path: Path) -> dict[str, Any]:
    """Settings of sweep that the file stands for: module, data, epochs, seed, ...

    Raises ConfigError if it cannot be read.
    """
    whole = _read(path)
    found: dict[str, Any] = {}
    for section, setting in (("model", "module"), ("data", "data")):
        class_path = _mapping(whole, section).get("class_path")
        if isinstance(class_path, str):
            package, _, name = class_path.rpartition(".")
            found[setting] = f"{package}:{name}"
    trainer = _mapping(whole, "trainer")
    found |= {TRAINER_SETTINGS[key]: trainer[key] for key in trainer if _is_setting(trainer, key)}
    if isinstance(seed := whole.get("seed_everything"), int) and not isinstance(seed, bool):
        found["seed"] = seed
    return found


def sections_of(path: Path) -> dict[str, dict[str, Any]]:
    """The fixed arguments of each section. Raises ConfigError if the file cannot be read."""
    whole, found = _read(path), dict[str, dict[str, Any]]()
    for section in SECTIONS:
        values = _mapping(whole, section)
        if section in ("model", "data") and "class_path" in values:
            values = {**values.get("init_args", {}), **values.get("dict_kwargs", {})}
        if section == "trainer":
            values = {k: v for k, v in values.items()
                      if v is not None and not _is_setting(values, k)}  # fmt: skip
        if values:
            found[section] = values
    return found


def _is_setting(trainer: Mapping[str, Any], name: str) -> bool:
    """Whether an argument of the Trainer is a setting of sweep; a class, such as a strategy's, is
    made anew for each trial instead."""
    value = trainer[name]
    return name in TRAINER_SETTINGS and value is not None and not isinstance(value, Mapping)


def _read(path: Path) -> Mapping[str, Any]:
    faults = Faults(str(path), ConfigError)
    root = read_file(path, faults)
    faults.expect(root, isinstance(root.value, dict), "must hold the sections of a LightningCLI")
    faults.raise_if_any()
    whole: Mapping[str, Any] = _lists(plain(root))
    return whole


def _mapping(whole: Mapping[str, Any], section: str) -> dict[str, Any]:
    value = whole.get(section)
    return dict(value) if isinstance(value, Mapping) else {}


def _lists(value: Any) -> Any:
    """Tuples as lists, which jsonargparse expects."""
    if isinstance(value, Mapping):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, tuple) else value
