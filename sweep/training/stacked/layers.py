"""One layer of a shard after the first, for a bucket's trials at once or for one trial.

Axes as in `layout`: n trials of a bucket, B samples, H units.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sweep.training.stacked.activations import BACKWARD, FORWARD

Run = tuple[str, slice | None]
"""An activation's name and the range that has it; None: everything."""


class Layer:
    """One layer after the first, of a bucket's trials or of one, with all that a step does there.

    All views are made here, once: in a step each would cost a call, and where populations are
    trained side by side a fight for Python's lock.

    Args:
        weights: (n, H_out, H_in + 1), and `grads` alike; `grads` None: only forward. Without n
            where the layer is one trial's, here and below.
        x: (n, H_in + 1, B) inputs; the last row is 1, for the bias.
        out: (n, H_out, B) pre-activations, or the logits.
        d: (n, H_out, B) gradients of the pre-activations.
        d_x: (n, H_in, B) gradients of the inputs.
    """

    def __init__(
        self, weights: Tensor, grads: Tensor | None, x: Tensor, out: Tensor, d: Tensor, d_x: Tensor
    ) -> None:
        self._product = torch.mm if weights.dim() == 2 else torch.bmm
        self._weights, self._x, self._z, self._a = weights, x, out, out
        self._weights_t, self._x_t = weights[..., :-1].mT, x.mT
        self._grads, self._d, self._d_x = grads, d, d_x
        self._mask: Tensor | None = None
        self._parts: list[Part] = []

    def hide(self, a: Tensor, mask: Tensor | None, runs: Sequence[Run]) -> None:
        """Make it a hidden layer: (n, H_out, B) activations in the next one's inputs, dropout's
        `mask` alike (None: none), and which units have which activation."""
        self._a, self._mask = a, mask
        self._parts = [Part(run, a, self._d) for run in runs]

    def forward(self) -> None:
        """From the inputs to the activations or logits."""
        self._product(self._weights, self._x, out=self._z)
        for part in self._parts:
            part.forward(self._z)
        if self._mask is not None:
            self._a.mul_(self._mask)

    def backward(self) -> None:
        """From the gradient of the activations or logits to those of weights and inputs."""
        if self._mask is not None:
            self._d.mul_(self._mask)
        for part in self._parts:
            part.backward(self._z)
        self._product(self._d, self._x_t, out=self._grads)
        self._product(self._weights_t, self._d, out=self._d_x)


class Part:
    """A range of units (or trials) with one activation.

    Args:
        run: The activation's name and the range along the first axis; None: everything.
        a: Activations, and `d` the gradients of pre-activations.
    """

    def __init__(self, run: Run, a: Tensor, d: Tensor) -> None:
        name, self._range = run
        self._forward, self._backward = FORWARD[name], BACKWARD[name]
        whole = self._range is None
        self._a, self._d = (a, d) if whole else (a[self._range], d[self._range])

    def forward(self, z: Tensor) -> None:
        """From pre-activations to activations."""
        self._forward(z if self._range is None else z[self._range], self._a)

    def backward(self, z: Tensor) -> None:
        """From the gradient of the activations to that of the pre-activations, in place."""
        self._backward(self._d, z if self._range is None else z[self._range], self._d)
