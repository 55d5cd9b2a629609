"""Loading code: objects named as `package.module:name`, and large libraries in less time."""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from sweep.errors import ConfigError
from sweep.surroundings import importable


def import_object(path: str, what: str) -> Any:
    """The object that `package.module:name` names, looked up from the current folder too.

    Raises ConfigError where the module cannot be imported or has no such name.
    """
    module_name, _, name = path.partition(":")
    try:
        with importable(str(Path.cwd())):
            return getattr(importlib.import_module(module_name), name)
    except ImportError as error:
        raise ConfigError(f"{what} {path!r} cannot be imported: {error}") from error
    except AttributeError:
        raise ConfigError(f"{what} {path!r}: module {module_name} has no {name!r}") from None


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Load large libraries within: the garbage collector rests, and skips them at the exit.

    An import makes hundreds of thousands of objects and next to no garbage, and the collector
    walks them again and again: `import lightning` takes 2.4 s instead of 3.1, MLflow with its
    store 1.2 s instead of 1.5. Afterwards they count as old, else it would begin with all of
    them (0.1 s). At the exit Python walks them once more, which takes as long as a third of the
    import; what is frozen then is left to the operating system.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
    try:
        yield
    finally:
        if gc.get_freeze_count() == 0:
            gc.freeze()
            gc.unfreeze()  # everything is of the oldest generation now
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def deferred(name: str, **known: object) -> Iterator[None]:
    """Within, `import name` waits until something of the module is asked for.

    Afterwards nothing stands in for the module any more; who took a name of `known` keeps that.

    Args:
        name: A module. Modules below it cannot be imported meanwhile where something is `known`.
        known: Names that it has without being loaded, and what they stand for.
    """
    if name in sys.modules:
        yield
        return
    stand_in = _Deferred(name, has_known=bool(known))
    vars(stand_in).update(known)
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        stand_in._leave()


class _Deferred(ModuleType):
    """Stands for a module until something of it is asked for."""

    def __init__(self, name: str, *, has_known: bool) -> None:
        super().__init__(name)
        self._has_known = has_known

    def __getattr__(self, attribute: str) -> Any:
        # That loads nothing: whoever walks through sys.modules asks each module for its __file__,
        # and whoever imports a known name for its __path__.
        if attribute.startswith("__") and (attribute != "__path__" or self._has_known):
            raise AttributeError(attribute)
        self._leave()
        return getattr(importlib.import_module(self.__name__), attribute)

    def _leave(self) -> None:
        if sys.modules.get(self.__name__) is self:
            sys.modules.pop(self.__name__, None)


@contextlib.contextmanager
def libraries_set_aside() -> Iterator[None]:
    """Within, the garbage collector leaves alone what is there now; afterwards all is as before.

    One of its full rounds through MLflow and SQLAlchemy takes 0.2 s. Where somebody set objects
    aside already, it is left at that.
    """
    is_ours = gc.get_freeze_count() == 0
    if is_ours:
        gc.freeze()
    try:
        yield
    finally:
        if is_ours:
            gc.unfreeze()
