"""Whether two objects of a user's are alike: all that they hold, in plain values.

Two trials share minibatches if their loaders are alike, and a step if their modules are.
"""

from __future__ import annotations

import collections
import enum
import functools
import hashlib
import pickle
import random
import types
import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

MOST_LEAVES = 200_000
"""Objects with more values are taken as unlike all others: comparing them takes too long."""
Path = tuple[tuple[str, Any], ...]
"""("attribute", name) and ("item", key) steps from an object to a value in it."""

_NAMED = (type, types.ModuleType, types.BuiltinFunctionType, torch.dtype, torch.device, torch.Size,
          enum.Enum, PurePath, range, slice)  # fmt: skip
_digests: dict[int, tuple[weakref.ref[Tensor], str]] = {}


class UnlikeError(Exception):
    """An object holds something that cannot be compared."""


def fingerprint(value: Any) -> str:
    """Equal for objects that hold the same. Raises UnlikeError."""
    digest = hashlib.blake2b(digest_size=16)
    for path, leaf in leaves(value, is_kept=True):
        digest.update(repr((path, leaf)).encode())
    return digest.hexdigest()


def leaves(
    value: Any, left_out: Sequence[Any] = (), but: Collection[str] = (), *, is_kept: bool = False
) -> Iterator[tuple[Path, Any]]:
    """All values that an object holds, with their paths; tensors as digests.

    Args:
        value: The object.
        left_out: Objects within it that do not count.
        but: Attributes, of any object, that do not count.
        is_kept: Take large tensors for unchanged since they were last looked at.

    Raises UnlikeError.
    """
    seen = {id(one): one for one in left_out}
    for n_found, found in enumerate(_leaves(value, (), seen, but, is_kept)):
        if n_found >= MOST_LEAVES:
            raise UnlikeError(f"more than {MOST_LEAVES} values")
        yield found


def _leaves(
    value: Any, path: Path, seen: dict[int, Any], but: Collection[str], is_kept: bool
) -> Iterator[tuple[Path, Any]]:
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        yield path, (type(value).__name__, value)
        return
    if isinstance(value, _NAMED):
        yield path, ("named", _name(value))
        return
    if id(value) in seen:
        yield path, ("seen", [*seen].index(id(value)))
        return
    seen[id(value)] = value
    if (leaf := _state(value, is_kept)) is not None:
        yield path, leaf
        return
    yield path, ("object", _name(type(value)))
    if isinstance(value, set | frozenset):
        yield (
            path,
            ("set", sorted(repr(list(_leaves(item, (), seen, but, is_kept))) for item in value)),
        )
        return
    for step, part in _parts(value):
        if step[1] not in but:
            yield from _leaves(part, (*path, step), seen, but, is_kept)


def _state(value: Any, is_kept: bool) -> Any:
    """What tells an object of numbers or of random numbers; None: another object."""
    if isinstance(value, Tensor):
        return ("tensor", str(value.dtype), tuple(value.shape), _digest(value, is_kept))
    if isinstance(value, np.ndarray) and (place := _place_in_file(value)) is not None:
        return ("file", repr(place), str(value.dtype), value.shape, value.strides)
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            return ("array", str(value.dtype), value.shape, _hashed(pickle.dumps(value)))
        content = np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
        return ("array", str(value.dtype), value.shape, _hashed(content))
    if isinstance(value, np.generic):
        return ("number", repr(value))
    if isinstance(value, torch.Generator):
        return ("generator", _digest(value.get_state(), False))
    if isinstance(value, np.random.Generator):
        return ("generator", repr(value.bit_generator.state))
    if isinstance(value, random.Random | np.random.RandomState):
        state = value.getstate() if isinstance(value, random.Random) else value.get_state()
        return ("generator", _hashed(pickle.dumps(state)))
    return None


def _parts(value: Any) -> Iterator[tuple[tuple[str, Any], Any]]:
    """The objects within another, each with the step to it."""
    if isinstance(value, types.FunctionType):
        yield ("code", ""), value.__code__.co_code
        yield ("code", "at"), (value.__code__.co_filename, value.__code__.co_firstlineno)
        yield ("code", "names"), value.__code__.co_names
        yield ("code", "defaults"), (value.__defaults__, value.__kwdefaults__)
        yield ("code", "closure"), tuple(c.cell_contents for c in value.__closure__ or ())
    elif isinstance(value, types.MethodType):
        yield ("attribute", "__func__"), value.__func__
        yield ("attribute", "__self__"), value.__self__
    elif isinstance(value, functools.partial):
        yield ("code", "func"), value.func
        yield ("code", "args"), value.args
        yield ("code", "keywords"), value.keywords
    elif isinstance(value, Mapping):
        for key, item in value.items():
            is_plain = isinstance(key, str | int)
            yield ("item", key if is_plain else fingerprint(key)), item
        yield from _attributes(value)
    elif isinstance(value, list | tuple | collections.deque):
        for index, item in enumerate(value):
            yield ("item", index), item
        yield from _attributes(value)
    elif hasattr(value, "__dict__") or hasattr(type(value), "__slots__"):
        yield from _attributes(value)
    else:
        try:
            yield ("pickle", ""), _hashed(pickle.dumps(value))
        except Exception as error:
            raise UnlikeError(f"a {type(value).__name__} cannot be compared") from error


def _attributes(value: Any) -> Iterator[tuple[tuple[str, Any], Any]]:
    names = dict.fromkeys(getattr(value, "__dict__", ()))
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        names |= dict.fromkeys([slots] if isinstance(slots, str) else slots)
    for name in names:
        if name not in ("__dict__", "__weakref__") and hasattr(value, name):
            yield ("attribute", name), getattr(value, name)


def _place_in_file(array: np.ndarray[Any, Any]) -> tuple[Any, int] | None:
    """File and first byte of an array that looks at a file; None for one that may be changed."""
    whole: Any = array
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    if not isinstance(whole, np.memmap) or whole.filename is None or whole.mode != "r":
        return None
    return whole.filename, whole.offset + array.ctypes.data - whole.ctypes.data


def _name(value: Any) -> str:
    if isinstance(value, type | types.BuiltinFunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    return repr(value)


def _digest(tensor: Tensor, is_kept: bool) -> str:
    known = _digests.get(id(tensor)) if is_kept else None
    if known is not None and known[0]() is tensor:
        return known[1]
    plain = tensor.detach().cpu().contiguous()
    content = _hashed(plain.reshape(-1).view(torch.uint8).numpy().data)
    if is_kept and tensor.numel() > 10_000:
        _digests[id(tensor)] = weakref.ref(tensor), content
    return content


def _hashed(content: bytes | memoryview) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def copied(batch: Any) -> Any:
    """A minibatch with tensors of its own."""
    return apply_to_collection(batch, Tensor, lambda tensor: tensor.clone())


def tensors_in(found: Any) -> list[Tensor]:
    """The tensors of nested lists, tuples and dicts, in order."""
    tensors: list[Tensor] = []
    apply_to_collection(found, Tensor, tensors.append)
    return tensors


def equal(a: Any, b: Any) -> bool:
    """Whether all tensors of two minibatches hold the same; one that is no number is itself."""
    return all(
        x.shape == y.shape
        and (torch.equal(x, y) or bool(((x == y) | ((x != x) & (y != y))).all()))
        for x, y in zip(tensors_in(a), tensors_in(b), strict=False)
    )


def tensors_of(batch: Any) -> list[Tensor] | None:
    """The tensors of a minibatch, in order; None if it is made of other things, too."""
    if isinstance(batch, Tensor):
        return [batch]
    parts = list(batch.values()) if isinstance(batch, dict) else batch
    if not isinstance(parts, list | tuple):
        return None
    found: list[Tensor] = []
    for part in parts:
        if (tensors := tensors_of(part)) is None:
            return None
        found += tensors
    return found


def shapes_of(batch: Any) -> Any:
    """Equal for minibatches of the same shapes."""
    if isinstance(batch, Tensor):
        return tuple(batch.shape), batch.dtype
    if isinstance(batch, Mapping):
        return tuple((str(key), shapes_of(value)) for key, value in batch.items())
    if isinstance(batch, list | tuple):
        return tuple(shapes_of(value) for value in batch)
    return type(batch)
