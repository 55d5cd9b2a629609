"""Objects named as `package.module:name`: modules, samplers and data of the user's own."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from sweep.errors import ConfigError


def import_object(path: str, what: str) -> Any:
    """The object that `package.module:name` names, looked up from the current folder too.

    Raises ConfigError where the module cannot be imported or has no such name.
    """
    module_name, _, name = path.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return getattr(importlib.import_module(module_name), name)
    except ImportError as error:
        raise ConfigError(f"{what} {path!r} cannot be imported: {error}") from error
    except AttributeError:
        raise ConfigError(f"{what} {path!r}: module {module_name} has no {name!r}") from None
