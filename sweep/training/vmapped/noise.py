"""Random numbers in a step of many trials: each trial draws from its own generator.

`torch.func.vmap` has one stream for all trials. So the random calls of a step are listed first
(`listed`), and in a step of all trials each call gets what each trial's generator draws for it
(`drawn`, `replaced`): the numbers that the trial alone would get, whatever its neighbours do.

Axes: N trials.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Draw = Callable[[torch.Generator, int], Tensor]
"""Draws for a trial, given its generator and its position among the N."""

_FACTORIES = (torch.rand, torch.randn, torch.randint, torch.randperm)
_LIKE = {torch.rand_like: "uniform_", torch.randn_like: "normal_"}
_FILLING = (Tensor.normal_, Tensor.uniform_, Tensor.exponential_)
_CHANNELS = {functional.dropout1d: 3, functional.dropout2d: 4, functional.dropout3d: 5}
"""Dropout of whole channels, and the axes of its input."""


class CannotDrawError(Exception):
    """A random call that cannot be divided among trials."""


class _Calls(TorchFunctionMode):
    """Handles the random calls within.

    Args:
        number_of: The per-trial values of an argument, if it is one; else None.
        noise: Takes the draw of each call; returns the numbers to use.
    """

    def __init__(self, noise: Callable[[Draw], Tensor], values_of: Callable[[Any], Any]) -> None:
        super().__init__()
        self._noise, self._values_of = noise, values_of

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("generator") is not None:
            return func(*args, **kwargs)  # the module's own
        if func is functional.dropout:
            return self._dropout(*args, **kwargs)
        if func in _CHANNELS:
            return self._channels(_CHANNELS[func], *args, **kwargs)
        if func in _FACTORIES:
            return self._noise(lambda g, k: func(*args, **kwargs, generator=g))
        if func in _LIKE:
            return self._like(_LIKE[func], *args, **kwargs)
        if func in _FILLING:
            return self._filled(func, *args, **kwargs)
        if func is torch.normal:
            return self._normal(*args, **kwargs)
        return func(*args, **kwargs)

    def _dropout(
        self, input: Tensor, p: Any = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        return self._dropped(input, tuple(input.shape), p, training, inplace)

    def _channels(
        self, n_axes: int, input: Tensor, p: Any = 0.5, training: bool = True,
        inplace: bool = False,
    ) -> Tensor:  # fmt: skip
        if input.dim() != n_axes:
            raise CannotDrawError("dropout of channels without an axis of samples")
        shape = (*input.shape[:2], *(1,) * (n_axes - 2))
        return self._dropped(input, shape, p, training, inplace)

    def _dropped(
        self, input: Tensor, shape: tuple[int, ...], p: Any, training: bool, inplace: bool
    ) -> Tensor:
        values = self._values_of(p)
        if not training or (values is None and p == 0.0):
            return input
        dtype, device = input.dtype, input.device

        def draw(generator: torch.Generator, k: int) -> Tensor:
            dropped = p if values is None else values[k]
            if dropped == 0.0:
                return torch.ones(shape, dtype=dtype, device=device)
            kept = torch.empty(shape, dtype=dtype, device=device)
            kept.bernoulli_(1.0 - dropped, generator=generator)
            return kept.div_(1.0 - dropped) if dropped < 1.0 else kept

        noise = self._noise(draw)
        return input.mul_(noise) if inplace else input * noise

    def _like(self, fill: str, input: Tensor, **kwargs: Any) -> Tensor:
        kwargs.pop("memory_format", None)
        dtype, device = kwargs.pop("dtype", input.dtype), kwargs.pop("device", input.device)
        requires_grad = kwargs.pop("requires_grad", False)
        shape = tuple(input.shape)

        def draw(generator: torch.Generator, k: int) -> Tensor:
            empty = torch.empty(shape, dtype=dtype or input.dtype, device=device)
            return getattr(empty, fill)(generator=generator)  # type: ignore[no-any-return]

        if requires_grad or kwargs:
            raise CannotDrawError(f"random numbers with {requires_grad=} {kwargs}")
        return self._noise(draw)

    def _filled(self, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        shape, dtype, device = tuple(input.shape), input.dtype, input.device

        def draw(generator: torch.Generator, k: int) -> Tensor:
            empty = torch.empty(shape, dtype=dtype, device=device)
            return func(empty, *args, **kwargs, generator=generator)  # type: ignore[no-any-return]

        return input.copy_(self._noise(draw))

    def _normal(self, mean: Any, std: Any = 1.0, size: Any = None, **kwargs: Any) -> Tensor:
        if size is not None or kwargs:
            raise CannotDrawError("torch.normal with a size")
        like = torch.broadcast_tensors(*[t for t in (mean, std) if isinstance(t, Tensor)])[0]
        shape, dtype, device = tuple(like.shape), like.dtype, like.device

        def draw(generator: torch.Generator, k: int) -> Tensor:
            empty = torch.empty(shape, dtype=dtype, device=device)
            return empty.normal_(generator=generator)

        return self._noise(draw) * std + mean


@contextlib.contextmanager
def listed(values_of: Callable[[Any], Any]) -> Iterator[list[Draw]]:
    """Within, a step of one trial: lists its random calls, and draws zeros.

    Args:
        values_of: The values of all N trials, if an argument stands for one of each; else None.
    """
    draws: list[Draw] = []
    before = torch.get_rng_state()

    def noise(draw: Draw) -> Tensor:
        draws.append(draw)
        generator = torch.Generator()
        generator.set_state(before)
        return draw(generator, 0)

    with _Calls(noise, values_of):
        yield draws


def drawn(draws: Sequence[Draw], generators: Sequence[torch.Generator]) -> list[Tensor]:
    """The numbers of N trials for each call of a step: (N, ...) each."""
    found: list[list[Tensor]] = [[] for _ in draws]
    for k, generator in enumerate(generators):
        for call, draw in zip(found, draws, strict=True):
            call.append(draw(generator, k))
    return [torch.stack(call) for call in found]


@contextlib.contextmanager
def replaced(noises: Sequence[Tensor], values_of: Callable[[Any], Any]) -> Iterator[None]:
    """Within, a step: its random calls get `noises`, in order."""
    left = list(noises)

    def noise(draw: Draw) -> Tensor:
        if not left:
            raise CannotDrawError("a step draws more often than another")
        return left.pop(0)

    with _Calls(noise, values_of):
        yield
    if left:
        raise CannotDrawError("a step draws less often than another")
