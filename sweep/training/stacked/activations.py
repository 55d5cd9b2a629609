"""Activations with their derivatives, written into kept buffers.

The same kernels that autograd calls, so that a hand-written backward pass rounds alike. All of
them map 0 to 0, which keeps padded units at zero.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

aten = torch.ops.aten
Forward = Callable[[Tensor, Tensor], None]
Backward = Callable[[Tensor, Tensor, Tensor], None]


def _tanh(saved: Tensor, out: Tensor) -> None:
    saved.tanh_()  # its derivative needs the value, before dropout touches `out`
    out.copy_(saved)


FORWARD: dict[str, Forward] = {
    "relu": lambda saved, out: torch.clamp(saved, min=0.0, out=out),  # type: ignore[dict-item]
    "gelu": lambda saved, out: aten.gelu.out(saved, out=out),
    "silu": lambda saved, out: aten.silu.out(saved, out=out),
    "tanh": _tanh,
    "leaky_relu": lambda saved, out: aten.leaky_relu.out(saved, 0.01, out=out),
    "elu": lambda saved, out: aten.elu.out(saved, out=out),
}
"""name -> f(saved, out): `saved` holds pre-activations; what the backward needs stays in it."""

BACKWARD: dict[str, Backward] = {
    "relu": lambda d, saved, out: aten.threshold_backward.grad_input(d, saved, 0, grad_input=out),
    "gelu": lambda d, saved, out: aten.gelu_backward.grad_input(d, saved, grad_input=out),
    "silu": lambda d, saved, out: aten.silu_backward.grad_input(d, saved, grad_input=out),
    "tanh": lambda d, saved, out: aten.tanh_backward.grad_input(d, saved, grad_input=out),
    "leaky_relu": lambda d, saved, out: aten.leaky_relu_backward.grad_input(
        d, saved, 0.01, False, grad_input=out
    ),
    "elu": lambda d, saved, out: aten.elu_backward.grad_input(
        d, 1.0, 1.0, 1.0, False, saved, grad_input=out
    ),
}
"""name -> f(d, saved, out): gradient `d` of the output becomes that of the input in `out`."""
