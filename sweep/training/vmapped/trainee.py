"""A trial in a group, and what its own Trainer is given once the group has taken its steps.

Axes: N trials.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import lightning
import torch
from torch import Tensor

from sweep.training.vmapped.stand_in import CannotStackError


class Trainee(Protocol):
    """A trial in a group."""

    module: lightning.LightningModule
    trainer: Any
    """Its `lightning.Trainer`."""
    n_ahead: int
    """Steps that a group took for it."""

    @property
    def generator(self) -> Tensor:
        """State of the trial's torch generator on the CPU."""
        ...

    @generator.setter
    def generator(self, state: Tensor) -> None: ...

    def log_by_step(self, metrics: Mapping[str, float], step: int) -> None:
        """Keep values of a training step."""
        ...


class Means:
    """What the steps of an epoch logged for its end: sums (N,) by name."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[Tensor, int, dict[str, Any]]] = {}

    def add(self, name: str, value: Tensor, how: Mapping[str, Any], size: int) -> None:
        """Add values (N,) of a minibatch of `size` samples."""
        kind = reduction(how)
        value = value.to(torch.float64, copy=True)
        if kind == "mean":
            value = value * size
        if name in self._found:
            before, n, _ = self._found[name]
            combined = {"min": torch.minimum, "max": torch.maximum}.get(kind, torch.add)
            self._found[name] = combined(before, value), n + size, dict(how)
        else:
            self._found[name] = value, size, dict(how)

    def of(self, positions: Sequence[int]) -> Means:
        """The same of some of the trials."""
        found = Means()
        found._found = {n: (v[positions], size, how) for n, (v, size, how) in self._found.items()}
        return found

    def give(self, k: int, member: Trainee) -> None:
        """Let the trial's Trainer log it in the next training step."""
        logs = []
        for name, (total, n, how) in self._found.items():
            value = total[k] / n if reduction(how) == "mean" else total[k]
            logs.append((name, value, how | {"batch_size": n}))
        if logs:
            log_before_next_step(member, logs)


def reduction(how: Mapping[str, Any]) -> str:
    """ "mean", "sum", "min" or "max". Raises CannotStackError."""
    given = how.get("reduce_fx", "mean")
    name = given if isinstance(given, str) else getattr(given, "__name__", "")
    kind = {"amin": "min", "amax": "max"}.get(name, name)
    if kind not in ("mean", "sum", "min", "max"):
        raise CannotStackError(f"it logs with a reduction of its own, {given}")
    return kind


def log_before_next_step(member: Trainee, logs: Sequence[tuple[str, Tensor, Any]]) -> None:
    """Let the trial's Trainer log these in its next training step, before the step itself."""
    strategy = member.trainer.strategy
    original = type(strategy).training_step

    def training_step(*args: Any, **kwargs: Any) -> Any:
        del strategy.training_step
        dtype = torch.get_default_dtype()
        for name, value, how in logs:
            member.module.log(name, value.to(dtype), **how)
        return original(strategy, *args, **kwargs)

    strategy.training_step = training_step


def skip(trainer: lightning.Trainer, n: int) -> None:
    """Count n training steps, as the Trainer's own loop would have."""
    loop = trainer.fit_loop.epoch_loop
    loop.batch_progress.increment_by(n)
    optimizer = loop.automatic_optimization.optim_progress.optimizer
    optimizer.step.increment_by(n)
    optimizer.zero_grad.increment_by(n)
    state = loop.on_save_checkpoint()
    state["_batches_that_stepped"] += n
    loop.on_load_checkpoint(state)
