"""Trials of different widths in one group: their weights are padded with zeros to one shape.

A trial's own weights are a corner of the padded ones. Within a step only such operations are done
to a padded axis whose result is the trial's own, with zeros in its padding; any other raises
CannotStackError. Then the gradients of the padding are zeros, too, and no optimizer changes it.

Axes: N trials, W units of the widest trial in a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sweep.training.likeness import tensors_in
from sweep.training.vmapped.stand_in import CannotStackError

CALLS = 600_000
"""Multiplications (a weight with a sample) that take as long as what a step calls for a weight
tensor: some 0.1 ms each on a thread of a CPU."""
Widths = tuple[int, ...]
"""The own sizes of N trials of an axis."""
Axes = tuple[Widths | None, ...]
"""The same of a tensor's last axes; None: the same size in all trials."""

_PADDABLE = (nn.Linear, nn.LayerNorm)
"""Modules with weights that may be padded."""
_ZERO_OF_ZERO = {
    functional.relu, torch.relu, Tensor.relu, torch.relu_, functional.relu6, functional.leaky_relu,
    functional.elu, functional.selu, functional.celu, functional.gelu, functional.silu,
    functional.mish, functional.hardswish, functional.softsign, functional.tanhshrink,
    functional.tanh, torch.tanh, Tensor.tanh,
}  # fmt: skip
"""Element by element, f(0) = 0 whatever the settings."""
_NOT_ZERO_OF_ZERO = {
    functional.sigmoid, torch.sigmoid, Tensor.sigmoid, functional.softplus, functional.logsigmoid,
}  # fmt: skip
_SUMS = {torch.add, Tensor.add, Tensor.add_, torch.sub, Tensor.sub}
_PRODUCTS = {torch.mul, Tensor.mul}


class Padding:
    """Knows which axes of a step's tensors are padded.

    Args:
        weights: Padded weights of a trial.
        tables: `table_of` each of their padded axes, of that trial: (4, W).
    """

    def __init__(
        self, weights: Sequence[tuple[Tensor, Axes]], tables: Mapping[Widths, Tensor]
    ) -> None:
        self._tables = tables
        self._known = {id(tensor): (tensor, axes) for tensor, axes in weights}
        """With the tensors, whose ids no others have as long as they live."""

    def concerns(self, given: Any) -> bool:
        """Whether any of the arguments of a call is padded."""
        return bool(self._known) and any(id(tensor) in self._known for tensor in tensors_in(given))

    def widths_of(self, tensor: Any) -> Widths | None:
        """Of the last axis; None: it is not padded. Raises CannotStackError."""
        return self._axes(tensor, 1)[0]

    def marked(self, tensor: Tensor, widths: Widths | None) -> Tensor:
        """The same tensor, whose last axis is padded."""
        if widths is not None:
            self._known[id(tensor)] = tensor, (widths,)
        return tensor

    def call(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call a function with padded tensors. Raises CannotStackError."""
        own: Mapping[Any, Callable[..., Tensor]] = {
            functional.linear: self._linear, functional.layer_norm: self._layer_norm,
        }  # fmt: skip
        if func in own:
            return own[func](*args, **kwargs)
        widths = self.widths_of(args[0]) if args and isinstance(args[0], Tensor) else None
        if func in _ZERO_OF_ZERO:
            return self.marked(func(*args, **kwargs), widths)
        if func in _NOT_ZERO_OF_ZERO and widths is not None:
            return self.marked(func(*args, **kwargs) * self._tables[widths][0], widths)
        if func in _SUMS | _PRODUCTS and len(args) == 2 and not kwargs:
            return self._combined(func, *args)
        raise CannotStackError(f"it calls {getattr(func, '__name__', func)} with padded tensors")

    def _axes(self, tensor: Any, n: int) -> Axes:
        axes = self._known[id(tensor)][1] if id(tensor) in self._known else (None,) * n
        if len(axes) != n:
            raise CannotStackError("it uses padded weights in a way of its own")
        return axes

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        out, inner = self._axes(weight, 2)
        if self.widths_of(input) != inner or (bias is not None and self.widths_of(bias) != out):
            raise CannotStackError("a Linear's input is padded in another way than its weights")
        return self.marked(functional.linear(input, weight, bias), out)

    def _layer_norm(
        self, input: Tensor, normalized_shape: Any, weight: Tensor | None = None,
        bias: Tensor | None = None, eps: float = 1e-5,
    ) -> Tensor:  # fmt: skip
        """Of w own units in W: those of the padding get the mean of the own ones, and all are
        multiplied by sqrt(W / w). That leaves mean and variance over W to be as the own ones'."""
        widths = self.widths_of(input)
        parts = [weight] if bias is None else [weight, bias]
        if widths is None or weight is None or any(self.widths_of(p) != widths for p in parts):
            raise CannotStackError("a LayerNorm without weights, or over several axes")
        _, scaled, filling, unscaled = self._tables[widths].unbind(0)
        own = input * scaled
        filled = own + own.sum(-1, keepdim=True) * filling
        made = functional.layer_norm(filled, filling.shape, weight * unscaled, bias, eps)
        return self.marked(made, widths)

    def _combined(self, func: Any, a: Any, b: Any) -> Tensor:
        found = [self.widths_of(one) if isinstance(one, Tensor) else None for one in (a, b)]
        widths = found[0] or found[1]
        if found[0] != found[1]:
            other = b if found[1] is None else a
            is_number = None in found and not (isinstance(other, Tensor) and other.dim())
            if func in _SUMS or not is_number:
                raise CannotStackError("it combines padded with other tensors")
        return self.marked(func(a, b), widths)


def axes_of(shapes: Sequence[Sequence[int]]) -> Axes:
    """Of the shapes of N trials' tensors."""
    return tuple(
        None if len(set(sizes)) == 1 else tuple(sizes) for sizes in zip(*shapes, strict=True)
    )


def corner(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """The own part of a padded tensor."""
    return tensor[tuple(slice(size) for size in shape)]


def table_of(widths: Widths, like: Tensor) -> Tensor:
    """What multiplies a padded axis (N, 4, W): ones and zeros; LayerNorm's factors of the own
    units, of the mean in the padding, and of the weights."""
    n = torch.tensor(widths, dtype=like.dtype, device=like.device)[:, None]
    most = max(widths)
    ones = (torch.arange(most, device=like.device) < n).to(like.dtype)
    scale = (most / n).sqrt()
    return torch.stack([ones, ones * scale, (1 - ones) / n, ones / scale], 1)


def near_shape(module: nn.Module, alike: Hashable, batch: Any) -> Hashable:
    """Equal for modules that may be padded to one shape; None: it may not be padded.

    Args:
        module: As a minibatch's training step begins.
        alike: What has to be equal, too.
        batch: The minibatch.

    Trials that share steps save what a step calls, and pay for arithmetic with zeros. So the
    multiplications of those of a near shape differ by half of what a step's calls take.
    """
    weights = list(module.named_parameters())
    owners = [p for p in module.modules() if next(p.parameters(recurse=False), None) is not None]
    if any(type(part) not in _PADDABLE for part in owners):
        return None
    if not all(p.requires_grad for _, p in weights):
        return None  # an infinite unit would show in no gradient of its own
    tensors = [tensor for tensor in tensors_in(batch) if tensor.dim()]
    n_samples = max((t.numel() // (t.shape[-1] if t.dim() > 1 else 1) for t in tensors), default=0)
    if not weights or not n_samples:
        return None
    n_weights = sum(p.numel() for _, p in weights if p.dim() > 1)
    return (
        alike,
        2 * n_samples * n_weights // (CALLS * len(weights)),
        tuple(type(part) for part in module.modules()),
        tuple((name, p.dim(), str(p.dtype)) for name, p in weights),
        tuple((name, tuple(b.shape), str(b.dtype)) for name, b in module.named_buffers()),
    )
