"""Loading code: objects named as `package.module:name`, and large libraries in less time."""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import importlib.util
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeGuard

from sweep.environment.launchers import importable
from sweep.errors import (
    ConfigError,
    Interruption,
    causes,
    did_you_mean,
    os_error_text,
    shown,
)
from sweep.redact import redacted


def import_object(path: str, what: str) -> Any:
    """The object that `package.module:name` or `file.py:name` names, also in the current folder.

    Raises ConfigError for a missing name, and with file and line for errors during the import.
    """
    module_name, _, name = path.rpartition(":")
    if module_name == GIVEN:
        if name not in _given:
            raise ConfigError(
                f"{what} was an object of the program that began the study: run that again"
            )
        return _given[name]
    try:
        module = _imported(module_name)
    except Interruption:
        raise
    except BaseException as error:  # also sys.exit() at the top of a file
        raise ConfigError(f"{what} {path!r} cannot be imported: {_told(error)}") from error
    try:
        return getattr(module, name)
    except AttributeError:
        hint = did_you_mean(name, vars(module))
        raise ConfigError(f"{what} {path!r}: module {module_name} has no {name!r}{hint}") from None


def in_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with names in place of objects.

    `callbacks` becomes `callback`, `trainer` part of `set`; `build` and `objective` are the module
    of that kind. Classes and functions at the top of a file have names that any process can
    import. Other objects (instances, closures, what a notebook's cell defines) get one of this
    process, whose executor is then inline. Raises ConfigError for two modules, or another
    executor.
    """
    named = dict(settings)
    given = [key for key in ("module", "build", "objective") if named.get(key) is not None]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} are two ways to say what trains: give one")
    for kind in ("build", "objective"):
        if (made_by := named.pop(kind, None)) is not None:
            named |= {"module": made_by, "kind": kind}
    if "callbacks" in named:
        named["callback"] = [*named.pop("callbacks")]
    if "trainer" in named:
        own = {f"trainer.{key}": value for key, value in named.pop("trainer").items()}
        named["set"] = {**named.get("set", {}), **own}
    for key in ("module", "data", "sampler"):
        if named.get(key) is not None:
            named[key] = _name_of(key, named[key])
    if isinstance(named.get("callback"), list | tuple):
        named["callback"] = [
            _name_of("callbacks", item, place) for place, item in enumerate(named["callback"])
        ]
    paths = [named.get("module"), named.get("data"), *(named.get("callback") or ())]
    is_ours = any(is_of_this_process(str(path)) for path in paths)
    if is_ours and named.setdefault("executor", "inline") != "inline":
        raise ConfigError(
            "module, data and callbacks must be classes or functions at the top of a file for "
            f"executor={named['executor']!r}: leave it out to train in this process"
        )
    return named


def is_of_this_process(path: str) -> bool:
    """Whether no other process can import what `path` names (`in_names`)."""
    return path.startswith(("__main__:", f"{GIVEN}:"))


GIVEN = "given"
"""In place of a module's name: an object of this process."""
_given: dict[str, Any] = {}


def _name_of(key: str, value: Any, place: int = 0) -> str:
    """`package.module:name` of a class or function; `file.py:name` in a script."""
    if isinstance(value, str):
        return value
    name, module = getattr(value, "__qualname__", None), getattr(value, "__module__", None)
    if name is None or module is None or not name.isidentifier():
        if key == "sampler" or not (callable(value) or hasattr(value, "__dict__")):
            raise ConfigError(f"{key} must be a class or a function, but got {shown(value)}")
        kind = re.sub(r"\W+", "_", name or type(value).__qualname__).strip("_")
        name = f"{key}_{kind}" if key != "callbacks" else f"callback_{place}_{kind}"
        _given[name] = value
        return f"{GIVEN}:{name}"
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    if module == "__main__" and file is not None:
        module = os.path.relpath(file)
    return f"{module}:{name}"


def _imported(name: str) -> ModuleType:
    """A module by its name, or by its file: then its neighbours are found, too."""
    try:
        folder = str(Path.cwd())
    except OSError:  # user code removed it
        folder = ""
    if not name.endswith(".py"):
        with importable(folder) if folder else contextlib.nullcontext():
            return importlib.import_module(name)
    file = Path(folder, name).resolve()
    known = sys.modules.get(file.stem)
    if known is not None and getattr(known, "__file__", None) == str(file):
        return known
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None or not file.is_file():
        raise ImportError(f"there is no file {name}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # where pickle and dataclasses look for it
    _being_read.append(file.stem)
    try:
        with importable(str(file.parent)), contextlib.suppress(SearchWithin):
            spec.loader.exec_module(module)
    finally:
        _being_read.pop()
    return module


class SearchWithin(BaseException):
    """A script that a trial's module comes from begins its own search: it is read no further."""


_being_read: list[str] = []
"""Files that are being executed for the sake of an object in them."""


def end_if_being_read() -> None:
    """Raises SearchWithin while a user's file is executed for an object in it."""
    if _being_read:
        raise SearchWithin(_being_read[-1])


def _told(error: BaseException) -> str:
    """The error in one line: file, line, class and message."""
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    text, name, place = " ".join(said.split()), type(error).__name__, place_of(error)
    told = f"{name}: {text}" if text and not isinstance(error, ImportError) else text or name
    return f"{place}: {told}" if place else told


def place_of(error: BaseException, module: str = "") -> str:
    """`file:line` of the deepest frame in the user's own code; "" if no frame is.

    Frames of sweep, of Python's library and of installed packages are not the user's, except
    those of the package of `module` (`package.module:name`).
    """
    top = sys.modules.get(module.partition(":")[0].partition(".")[0])
    package = [Path(folder) for folder in getattr(top, "__path__", ())]
    for link in causes(error):
        frames = [
            (f.f_code.co_filename, line) for f, line in traceback.walk_tb(link.__traceback__)
        ]
        if isinstance(link, SyntaxError) and link.filename and link.lineno:
            frames.append((link.filename, link.lineno))
        for file, line in reversed(frames):
            if is_users_file(file) or any(Path(file).is_relative_to(folder) for folder in package):
                return f"{_shown(file)}:{line}"
    return ""


def is_users_file(file: str) -> bool:
    """Whether a source file is neither sweep's, nor Python's, nor an installed package's."""
    path, library = Path(file), sysconfig.get_path("stdlib")
    is_installed = bool({"site-packages", "dist-packages"} & set(path.parts))
    is_ours = path.is_relative_to(library) or path.is_relative_to(Path(__file__).parent)
    return not file.startswith("<") and not is_installed and not is_ours


def _shown(file: str) -> str:
    """The file, relative to the current folder if it is below it."""
    with contextlib.suppress(OSError, ValueError):
        return str(Path(file).relative_to(Path.cwd()))
    return file


def one_line(error: BaseException, module: str = "") -> str:
    """Class, message and place of an exception."""
    message = os_error_text(error) if _is_nameless(error) else str(error)
    name, message = type(error).__name__, " ".join(redacted(message).split())
    told, place = (f"{name}: {message}" if message else name)[:500], place_of(error, module)
    return f"{told} ({place})" if place else told


def raised_by_user_code(error: BaseException) -> BaseException:
    """`error`, or the KeyboardInterrupt behind Lightning's `sys.exit(1)`.

    Raises Interruption if it is the cause: the user's Ctrl-C is no failure of a trial.
    """
    for link in causes(error):
        if isinstance(link, Interruption):
            raise link
    before = error.__context__
    is_lightnings = isinstance(error, SystemExit) and error.code == 1
    return before if is_lightnings and isinstance(before, KeyboardInterrupt) else error


def _is_nameless(error: BaseException) -> TypeGuard[OSError]:
    return isinstance(error, OSError) and error.errno is not None and error.filename is None


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Within, large libraries load faster: the garbage collector rests.

    An import makes hundreds of thousands of objects and next to no garbage: without the collector
    `import lightning` takes 2.4 s instead of 3.1, MLflow with its store 1.2 s instead of 1.5.
    Afterwards the objects count as old (a first round over them takes 0.1 s). They are frozen at
    exit: one more round takes a third of the import's time.
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
def libraries_set_aside() -> Iterator[None]:
    """Within, the garbage collector skips all objects of before.

    A full round through MLflow and SQLAlchemy takes 0.2 s. Does nothing if objects are frozen
    already.
    """
    is_ours = gc.get_freeze_count() == 0
    if is_ours:
        gc.freeze()
    try:
        yield
    finally:
        if is_ours:
            gc.unfreeze()
