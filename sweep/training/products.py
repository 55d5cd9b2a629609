"""Matrix products on a CPU: MKL's or oneDNN's, whichever this processor does faster.

torch carries both. `torch.mm` asks MKL, which gives processors of other makers than its own
about half of what they can do; oneDNN asks the processor itself (benchmarks/NOTES.md).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch
from torch import Tensor

WORTH_A_CALL = 3_000_000
"""Floating-point operations from which oneDNN's 10 us a call are worth their while."""
WORTH_TRANSPOSING = 6_000_000
"""From which it is worth two small transposed copies, too."""
MARGIN = 1.15
"""oneDNN is used unless `torch.mm` is faster by this much: where they are alike, the choice, and
with it the last bits of a result, should not depend on the noise of one measurement."""


def product(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b.T`: (M, K) and (N, K) to a new tensor (M, N)."""
    linear = _linear_for(a, b)
    return torch.mm(a, b.t()) if linear is None else linear(a, b)


class Product:
    """`a @ b.mT`, of one trial (M, K) and (N, K) or of n trials (n, M, K) and (n, N, K).

    When called, it gives `out`, or, `is_onednn`, a new tensor: oneDNN cannot be told where to
    write, and a copy would cost up to a fifth of the product. n trials are left to MKL.
    """

    def __init__(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        self._linear = _linear_for(a, b) if a.dim() == 2 else None
        self.is_onednn = self._linear is not None
        self._a, self._b, self._b_t = a, b, b.mT
        self._out = out

    def __call__(self) -> Tensor:
        """Multiply."""
        if self._linear is not None:
            return self._linear(self._a, self._b)
        multiply = torch.mm if self._a.dim() == 2 else torch.bmm
        return multiply(self._a, self._b_t, out=self._out)


class InputGradient:
    """`out = w[..., :-1].mT @ d`: (M, K + 1) and (M, N) into `out` (K, N), when called; all of
    them with n trials in front where there are several."""

    def __init__(self, w: Tensor, d: Tensor, out: Tensor) -> None:
        # oneDNN would copy a transposed `w` on its left; on its right it takes it as it lies.
        self._linear = _linear_for(d.mT, w.mT, WORTH_TRANSPOSING) if w.dim() == 2 else None
        self._d_t, self._w_t, self._out_t = d.mT, w.mT, out.mT
        self._w_own_t, self._d, self._out = w[..., :-1].mT, d, out

    def __call__(self) -> None:
        """Multiply."""
        if self._linear is not None:
            self._out_t.copy_(self._linear(self._d_t, self._w_t)[:, :-1])
            return
        multiply = torch.mm if self._d.dim() == 2 else torch.bmm
        multiply(self._w_own_t, self._d, out=self._out)


def is_for_onednn(a: Tensor, b: Tensor) -> bool:
    """Whether `Product` leaves `a @ b.T`, (M, K) and (N, K), to oneDNN."""
    return _linear_for(a, b) is not None


def _linear_for(
    a: Tensor, b: Tensor, worth: int | None = None
) -> Callable[[Tensor, Tensor], Tensor] | None:
    if a.dtype != torch.float32 or a.device.type != "cpu":
        return None
    n_operations = 2 * a.shape[-2] * a.shape[-1] * b.shape[-2]
    return fastest_linear() if n_operations >= (worth or WORTH_A_CALL) else None


@functools.cache
def fastest_linear() -> Callable[[Tensor, Tensor], Tensor] | None:
    """oneDNN's product on dense float32 matrices; None where it is slower or not to be had.

    Measured once a process, on one thread, with a layer 1 of 256 units on 784 features.
    """
    a, b = torch.randn(256, 784), torch.randn(64, 784)
    n_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        linear = _onednn_linear()
        if not torch.allclose(linear(a, b), a @ b.t(), atol=1e-3):
            return None
        if _seconds(linear, a, b) > MARGIN * _seconds(lambda a, b: torch.mm(a, b.t()), a, b):
            return None
    except (AttributeError, RuntimeError, TypeError):
        return None  # built without oneDNN, or by a torch whose inner operator is another one
    finally:
        torch.set_num_threads(n_threads)
    return linear


def _onednn_linear() -> Callable[[Tensor, Tensor], Tensor]:
    """The operator that torch.compile emits; eager torch has no public way to oneDNN's float32."""
    operator = torch.ops.mkldnn._linear_pointwise.default

    def linear(a: Tensor, b: Tensor) -> Tensor:
        return operator(a, b, None, "none", [], "")  # type: ignore[no-any-return]

    return linear


def _seconds(multiply: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> float:
    """The fastest of a few calls: only that is the product's own."""
    times = []
    for _ in range(10):
        began = time.perf_counter()
        multiply(a, b)
        times.append(time.perf_counter() - began)
    return min(times)
