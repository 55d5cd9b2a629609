"""Random numbers in a step of many trials: each trial draws from its own generator.

`torch.func.vmap` has one stream for all trials. So the random calls of a step are listed first
(`listed`), and in a step of all trials each call gets what each trial's generator draws for it
(`drawn`, `replaced`): the numbers that the trial alone would get, whatever its neighbours do.

Axes: N trials.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from sweep.training.vmapped.padding import Padding, Widths, corner


@dataclass(frozen=True)
class Draw:
    """A random call of a step, for one trial."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    fill: Callable[[Tensor, torch.Generator, int], Any]
    """Draws into a tensor of that shape with the generator of trial k."""
    divisors: Sequence[float] | None = None
    """What the numbers are divided by: one number for all trials, or N."""
    widths: Widths | None = None
    """The last axis's own sizes of N trials, if it is padded."""


_FACTORIES = (torch.rand, torch.randn, torch.randint, torch.randperm)
_LIKE = {torch.rand_like: "uniform_", torch.randn_like: "normal_"}
_FILLING = (Tensor.normal_, Tensor.uniform_, Tensor.exponential_)
_CHANNELS = {functional.dropout1d: 3, functional.dropout2d: 4, functional.dropout3d: 5}
"""Dropout of whole channels, and the axes of its input."""


_VALUES = (Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.data_ptr, Tensor.item)
"""What makes values of tensors Python's: in a traced step they would be the first minibatch's."""


class CannotDrawError(Exception):
    """A random call that cannot be divided among trials."""


class _Calls(TorchFunctionMode):
    """Handles the random calls within.

    Args:
        number_of: The per-trial values of an argument, if it is one; else None.
        noise: Takes the draw of each call; returns the numbers to use.
        padding: Of the weights within.
        is_traced: Values of tensors may not be asked for.
    """

    def __init__(
        self, noise: Callable[[Draw], Tensor], values_of: Callable[[Any], Any], padding: Padding,
        *, is_traced: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self._noise, self._values_of, self._is_traced = noise, values_of, is_traced
        self._padding = padding

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if self._is_traced and func in _VALUES:
            raise CannotDrawError("a traced step asks for values")
        if kwargs.get("generator") is not None:
            return func(*args, **kwargs)  # the module's own
        if func is functional.dropout:
            return self._dropout(*args, **kwargs)
        if self._padding.concerns((args, kwargs)):
            return self._padding.call(func, args, kwargs)
        if func in _CHANNELS:
            return self._channels(_CHANNELS[func], *args, **kwargs)
        if func in _FACTORIES:
            return self._made(partial(func, *args, **kwargs))
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
        shares = [1.0 - float(p)] if values is None else [1.0 - value for value in values]

        def fill(out: Tensor, generator: torch.Generator, k: int) -> None:
            kept = shares[k if len(shares) > 1 else 0]
            if kept == 1.0:  # torch draws nothing then
                out.fill_(1.0)
            else:
                out.bernoulli_(kept, generator=generator)

        divisors, widths = [kept or 1.0 for kept in shares], self._padding.widths_of(input)
        noise = self._noise(Draw(shape, input.dtype, input.device, fill, divisors, widths))
        return self._padding.marked(input.mul_(noise) if inplace else input * noise, widths)

    def _made(self, make: Callable[..., Tensor]) -> Tensor:
        like = make(generator=torch.Generator())

        def fill(out: Tensor, generator: torch.Generator, k: int) -> None:
            out.copy_(make(generator=generator))

        return self._noise(Draw(tuple(like.shape), like.dtype, like.device, fill))

    def _like(self, fill: str, input: Tensor, **kwargs: Any) -> Tensor:
        kwargs.pop("memory_format", None)
        dtype, device = kwargs.pop("dtype", None), kwargs.pop("device", None)
        requires_grad = kwargs.pop("requires_grad", False)
        if requires_grad or kwargs:
            raise CannotDrawError(f"random numbers with {requires_grad=} {kwargs}")
        draw = Draw(tuple(input.shape), dtype or input.dtype, device or input.device,
                    partial(_filled_by, fill, (), {}))  # fmt: skip
        return self._noise(draw)

    def _filled(self, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        fill = partial(_filled_by, func.__name__, args, kwargs)
        noise = self._noise(Draw(tuple(input.shape), input.dtype, input.device, fill))
        return input.copy_(noise)

    def _normal(self, mean: Any, std: Any = 1.0, size: Any = None, **kwargs: Any) -> Tensor:
        tensors = [value for value in (mean, std) if isinstance(value, Tensor)]
        if size is not None or kwargs or not tensors:
            raise CannotDrawError("torch.normal with a size")
        shapes = [tuple(tensor.shape) for tensor in tensors]
        if len(set(shapes)) != 1:
            raise CannotDrawError("torch.normal of several shapes")
        fill = partial(_filled_by, "normal_", (), {})
        noise = self._noise(Draw(shapes[0], tensors[0].dtype, tensors[0].device, fill))
        found: Tensor = noise * std + mean
        return found


def _filled_by(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], out: Tensor,
    generator: torch.Generator, k: int,
) -> None:  # fmt: skip
    getattr(out, name)(*args, **kwargs, generator=generator)


@contextlib.contextmanager
def listed(values_of: Callable[[Any], Any], padding: Padding) -> Iterator[list[Draw]]:
    """Within, a step of one trial: lists its random calls, and draws zeros.

    Args:
        values_of: The values of all N trials, if an argument stands for one of each; else None.
        padding: Of the trial's weights.
    """
    draws: list[Draw] = []

    def noise(draw: Draw) -> Tensor:
        draws.append(draw)
        return drawn([draw], [torch.Generator(draw.device)])[0][0]

    with _Calls(noise, values_of, padding):
        yield draws


def drawn(draws: Sequence[Draw], generators: Sequence[torch.Generator]) -> list[Tensor]:
    """The numbers of N trials for each call of a step: (N, ...) each."""
    found = []
    for draw in draws:
        noise = torch.zeros((len(generators), *draw.shape), dtype=draw.dtype, device=draw.device)
        for k, (out, generator) in enumerate(zip(noise.unbind(0), generators, strict=True)):
            if draw.widths is None or draw.widths[k] == draw.shape[-1]:
                draw.fill(out, generator, k)
            else:  # as many as the trial alone would draw
                own = out.new_empty((*draw.shape[:-1], draw.widths[k]))
                draw.fill(own, generator, k)
                corner(out, own.shape).copy_(own)
        if draw.divisors is not None and len(draw.divisors) == 1:
            noise.div_(draw.divisors[0])
        elif draw.divisors is not None:
            column = noise.new_tensor(draw.divisors[: len(noise)])
            noise.div_(column.view(-1, *(1,) * len(draw.shape)))
        found.append(noise)
    return found


@contextlib.contextmanager
def replaced(
    noises: Sequence[Tensor], values_of: Callable[[Any], Any], padding: Padding,
    *, is_traced: bool = False,
) -> Iterator[None]:  # fmt: skip
    """Within, a step with padded weights: its random calls get `noises`, in order.

    `is_traced`: asking for a tensor's values raises CannotDrawError.
    """
    left = list(noises)

    def noise(draw: Draw) -> Tensor:
        if not left:
            raise CannotDrawError("a step draws more often than another")
        return left.pop(0)

    with _Calls(noise, values_of, padding, is_traced=is_traced):
        yield
    if left:
        raise CannotDrawError("a step draws less often than another")


@contextlib.contextmanager
def drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Within, a step of one trial as it is alone: it draws from `generator`."""
    with _Calls(lambda draw: drawn([draw], [generator])[0][0], lambda _: None, Padding([], {})):
        yield
