"""What is said of settings: changes that a study refuses, variables that nothing reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from sweep.config.settings import OTHER_VARIABLES, RunConfig, flag_name, setting_names
from sweep.errors import did_you_mean


def unknown_variables(env: Mapping[str, str]) -> list[str]:
    """One sentence for each variable of `env` named SWEEP_* without being a setting."""
    names = setting_names()
    known = [f"SWEEP_{name.upper()}" for name in (*names, *names.values())] + [*OTHER_VARIABLES]
    return [
        f"{name} is not a setting{did_you_mean(name, known)}: it is ignored"
        for name in sorted(env)
        if name.startswith("SWEEP_") and name not in known
    ]


def identity_changes(config: RunConfig, stored: Mapping[str, Any]) -> list[str]:
    """One sentence for each setting of the stored search that cannot change, but did."""
    changes = []
    now = dataclasses.asdict(config) | {"direction": config.resolved_direction}
    for field in dataclasses.fields(RunConfig):
        if not field.metadata["is_identity"] or field.name == "space":
            continue
        before = stored.get(field.name, field.default)
        before = tuple(before) if isinstance(before, list) else before  # JSON has no tuples
        if before != now[field.name] and (field.name, before) != ("direction", "auto"):
            flag = flag_name(field.name)
            changes.append(f"{flag} was {before!r} and is now {now[field.name]!r}")
    return changes
