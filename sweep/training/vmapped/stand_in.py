"""A module that stands in for many trials' modules in one call of their training step.

It is a copy of one of them. Within a step its weights and buffers are all trials' (stacked), a
number that differs between the trials is a tensor with one value each, and `log` only remembers.
Whatever else differs, or needs a Trainer, raises `CannotStackError` as it is used.
"""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from sweep.training.likeness import Path, UnlikeError, leaves

NOT_COMPARED = {
    "_parameters", "_buffers", "configure_optimizers", "prepare_data", "setup", "train_dataloader",
    "val_dataloader", "test_dataloader", "predict_dataloader",
    *(vars(lightning.LightningModule()).keys() - vars(nn.Module()).keys()),
}  # fmt: skip
"""Attributes that are stacked, that are for data, or Lightning's own."""


class CannotStackError(Exception):
    """Why trials cannot share a step."""


class Unlike:
    """In place of a value that is not the same in all trials: any use of it raises."""

    def __init__(self, path: Path) -> None:
        object.__setattr__(self, "_name", readable(path))

    def _raise(self, *_: Any, **__: Any) -> Any:
        name = object.__getattribute__(self, "_name")
        raise CannotStackError(f"its step uses {name}, which differs between trials")

    __getattr__ = __call__ = __bool__ = __float__ = __int__ = __index__ = __iter__ = _raise
    __len__ = __getitem__ = __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __str__ = _raise
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = _raise
    __rtruediv__ = __pow__ = __neg__ = __format__ = __contains__ = _raise
    __hash__ = None  # type: ignore[assignment]


def readable(path: Path) -> str:
    """A path as a user would write it."""
    hidden = ("_modules", "_hparams", "__dict__")
    steps = [str(step) for kind, step in path if step not in hidden and kind != "code"]
    return ".".join(steps) or "it"


def state_of(module: lightning.LightningModule) -> dict[Path, Any]:
    """All that a module holds but weights, buffers and metrics, by path. Raises UnlikeError."""
    left_out = [m for m in module.modules() if isinstance(m, Metric)]
    return dict(leaves(module, left_out=[module.trainer, *left_out], but=NOT_COMPARED))


def shape_of(module: nn.Module) -> tuple[Any, ...]:
    """Names, shapes and kinds of a module's weights and buffers."""
    weights = [
        (name, tuple(p.shape), str(p.dtype), p.requires_grad)
        for name, p in module.named_parameters()
    ]
    return tuple(weights), tuple(
        (name, tuple(b.shape), str(b.dtype)) for name, b in module.named_buffers()
    )


class StandIn:
    """Stands in for N modules of the same shapes.

    Args:
        modules: Of the trials.
        states: `state_of` each.

    Raises CannotStackError.
    """

    def __init__(
        self, modules: Sequence[lightning.LightningModule], states: Sequence[Mapping[Path, Any]]
    ) -> None:
        lead = modules[0]
        memo: dict[int, Any] = {id(lead.trainer): None}
        for tensor in (*lead.parameters(), *lead.buffers()):  # not the whole stack of a view
            own = tensor.detach().clone()
            is_weight = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(own, tensor.requires_grad) if is_weight else own
        try:
            self.module = copy.deepcopy(lead, memo)
        except Exception as error:
            raise CannotStackError(f"it cannot be copied ({type(error).__name__})") from error
        self.logged = Logged()
        self._of_numbers: list[tuple[Path, list[float]]] = []
        self._set_unlike(states)
        self._wrapper = _Wrapper(self.module)
        self._takes_index = len(inspect.signature(lead.training_step).parameters) > 1
        metrics = {name: m for name, m in self.module.named_modules() if isinstance(m, Metric)}
        self.metrics = {name: m for name, m in metrics.items() if not any(
            name.startswith(f"{other}.") for other in metrics)}  # fmt: skip
        for name in self.metrics:
            parent, _, last = name.rpartition(".")
            owner = self.module.get_submodule(parent)
            owner._modules[last] = _MetricCalls(name, self.logged)
        for part in self.module.modules():
            if isinstance(part, lightning.LightningModule):
                kind = type(part)
                part.__class__ = type(kind.__name__, (_Detached, kind), {})
                vars(part)["log"] = self.logged.log if part is self.module else _refused

    @property
    def numbers(self) -> list[list[float]]:
        """The numbers that differ between trials: a list of N each."""
        return [values for _, values in self._of_numbers]

    def follow(self, lead: lightning.LightningModule) -> None:
        """Take over which parts of the module are in training mode."""
        modes = {name: part.training for name, part in lead.named_modules()}
        for name, part in self.module.named_modules():
            part.training = modes.get(name, part.training)

    def step(
        self, tensors: Mapping[str, Tensor], numbers: Sequence[Any], batch: Any, batch_idx: int
    ) -> Tensor:
        """The loss of a training step with these weights, buffers and numbers."""
        self.logged.clear()
        for (path, _), value in zip(self._of_numbers, numbers, strict=True):
            _put(self.module, path, value)
        arguments = (batch, batch_idx) if self._takes_index else (batch,)
        named = {f"module.{name}": tensor for name, tensor in tensors.items()}
        given = dict(named)
        output = torch.func.functional_call(self._wrapper, named, arguments)
        if any(named[name] is not tensor for name, tensor in given.items()):
            raise CannotStackError("its step puts another tensor in a buffer's place")
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if not isinstance(loss, Tensor) or loss.dim():
            raise CannotStackError("its step returns no loss")
        return loss

    def see_that_it_keeps_nothing(self, step: Callable[[], Any]) -> None:
        """Run `step` twice. Raises CannotStackError if it leaves something new in the module each
        time, or draws random numbers that are not torch's."""
        before = "", random.getstate(), repr(np.random.get_state())
        step()
        kept = self._plain()
        step()
        if self._plain() != kept:
            raise CannotStackError("its step keeps values in the module")
        if (random.getstate(), repr(np.random.get_state())) != before[1:]:
            raise CannotStackError("its step draws random numbers outside of torch")

    def put_numbers(self) -> None:
        """Put the first trial's numbers back into the module."""
        for path, values in self._of_numbers:
            _put(self.module, path, values[0])

    def _plain(self) -> Any:
        self.put_numbers()
        try:
            return dict(leaves(self.module, left_out=[self.logged], but=NOT_COMPARED))
        except UnlikeError as error:
            raise CannotStackError(str(error)) from error

    def _set_unlike(self, states: Sequence[Mapping[Path, Any]]) -> None:
        if any(state.keys() != states[0].keys() for state in states):
            raise CannotStackError("trials hold different things in their modules")
        for path, (kind, *_) in states[0].items():
            if kind == "seen" and ("code", "closure") in path[:-1]:  # no copy: the first trial's
                raise CannotStackError("a function in it has a hold of the module's own parts")
        for path, leaf in states[0].items():
            found = [state[path] for state in states]
            if all(other == leaf for other in found):
                continue
            if all(kind == "float" for kind, *_ in found) and _is_settable(self.module, path):
                self._of_numbers.append((path, [value for _, value in found]))
                continue
            whole = path[:-1] if _is_in_tuple(self.module, path) else path
            if not _is_settable(self.module, whole):
                raise CannotStackError(f"{readable(path)} differs between trials")
            _put(self.module, whole, Unlike(path))


class Logged:
    """What a step logs: tensors by name, and how each is to be logged."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}
        self.constants: dict[str, float] = {}
        self.how: dict[str, dict[str, Any]] = {}
        self.metrics: dict[str, str] = {}
        """Logged name -> name of the metric."""
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        """(metric, arguments) of each call of a metric."""

    def clear(self) -> None:
        """Forget the last step."""
        self.values, self.constants, self.how = {}, {}, {}
        self.metrics, self.calls = {}, []

    def log(self, name: str, value: Any, **how: Any) -> None:
        """In place of `LightningModule.log`."""
        if name in self.how:
            raise CannotStackError(f"its step logs {name} twice")
        self.how[name] = how
        if isinstance(value, _MetricCalls):
            self.metrics[name] = value.name
        elif isinstance(value, Tensor):
            if value.numel() != 1:
                raise CannotStackError(f"it logs {name}, which is no single number")
            self.values[name] = value.detach().clone().reshape(())  # weights go on changing
        elif isinstance(value, int | float):
            self.constants[name] = float(value)
        else:
            raise CannotStackError(f"it logs a {type(value).__name__} as {name}")


class _MetricCalls(nn.Module):
    """In place of a metric: remembers its calls."""

    def __init__(self, name: str, logged: Logged) -> None:
        super().__init__()
        self.name, self._logged = name, logged

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """A call, whose value may only be logged."""
        self.update(*args, **kwargs)
        return Unlike((("attribute", f"the value of {self.name}"),))

    def update(self, *args: Any, **kwargs: Any) -> None:
        """A call without a value."""
        if kwargs or not all(isinstance(arg, Tensor) for arg in args):
            raise CannotStackError(f"it calls {self.name} with other things than tensors")
        self._logged.calls.append((self.name, tuple(arg.detach().clone() for arg in args)))


def _refused(name: str, *_: Any, **__: Any) -> None:
    raise CannotStackError(f"a module within it logs {name}")


class _Detached:
    """Mixed into a stand-in's class: what belongs to a Trainer is not there."""

    def _raise(self) -> Any:
        raise CannotStackError("its step asks its Trainer (for the epoch, the step or a logger)")

    trainer = current_epoch = global_step = logger = loggers = property(_raise)


class _Wrapper(nn.Module):
    """Calls `training_step` as `forward`, for `functional_call`."""

    def __init__(self, module: lightning.LightningModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any) -> Any:
        return self.module.training_step(*args)


def _is_in_tuple(module: nn.Module, path: Path) -> bool:
    """Whether a value is in a tuple, or was in one that is `Unlike` by now."""
    try:
        return path[-1][0] == "item" and isinstance(_owner(module, path), tuple | Unlike)
    except (AttributeError, KeyError, IndexError, TypeError):
        return False


def _is_settable(module: nn.Module, path: Path) -> bool:
    try:
        owner = _owner(module, path)
    except (AttributeError, KeyError, IndexError, TypeError):
        return False
    kind, step = path[-1]
    if kind == "attribute":
        return hasattr(owner, "__dict__") and step in vars(owner)
    return kind == "item" and isinstance(owner, dict | list)


def _owner(module: nn.Module, path: Path) -> Any:
    found: Any = module
    for kind, step in path[:-1]:
        if kind == "item":
            found = found[step]
        else:  # of an object, or of a partial
            found = getattr(found, step)
    return found


def _put(module: nn.Module, path: Path, value: Any) -> None:
    owner, (kind, step) = _owner(module, path), path[-1]
    if kind == "attribute":
        vars(owner)[step] = value
    else:
        owner[step] = value
