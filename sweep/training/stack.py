"""Forward and backward of all trials of a population at once, written into kept buffers.

Axes as in `layout`: N trials, R rows of layer 1, B samples, F features, H units, C classes.
Activations lie as (unit, B), so that no product needs a transpose in memory; a hand-written
backward into kept buffers costs a fifth less than autograd.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sweep.training.activations import BACKWARD, FORWARD
from sweep.training.layout import Bucket, Layout
from sweep.training.products import BatchedProduct
from sweep.trial import derive_seed


@dataclass(frozen=True, slots=True)
class Dropout:
    """Dropout of one trial: probability and the trial's seed."""

    p: float
    seed: int


class _Layer:
    """One layer of a bucket after the first, with everything that a step does there.

    All views are made here, once: in a step each would cost a call, and where populations are
    trained side by side a fight for Python's lock.

    Args:
        weights: (n, H_out, H_in + 1), and `grads` alike; `grads` None: only forward.
        x: (n, H_in + 1, B) inputs; the last row is 1, for the bias.
        z: (n, H_out, B) pre-activations, or the logits.
        d: (n, H_out, B) gradients of `z`.
        d_x: (n, H_in, B) gradients of the inputs.
    """

    def __init__(
        self, weights: Tensor, grads: Tensor | None, x: Tensor, z: Tensor, d: Tensor, d_x: Tensor
    ) -> None:
        self.forward = BatchedProduct(weights, x.transpose(1, 2), z)
        self.mask: Tensor | None = None
        """(n, H_out, B), where trials have dropout."""
        self.parts: list[_Part] = []
        """Of a hidden layer: its activations."""
        self.a: Tensor | None = None
        """(n, H_out, B) activations of a hidden layer, in the next one's inputs."""
        self.d = d
        if grads is not None:
            self.differentiate = BatchedProduct(d, x, grads)
            backwards = weights[:, :, :-1].transpose(1, 2)
            self.backward = BatchedProduct(backwards, d.transpose(1, 2), d_x)


@dataclass(frozen=True, slots=True)
class _Part:
    """A range of units with one activation."""

    activation: str
    z: Tensor
    a: Tensor
    d: Tensor

    def forward(self) -> None:
        FORWARD[self.activation](self.z, self.a)

    def backward(self) -> None:
        BACKWARD[self.activation](self.d, self.z, self.d)


class Buffers:
    """Everything between minibatch and logits, for one minibatch size B.

    Args:
        layout: Where everything lies.
        n_samples: B.
        params: Flat parameters, and `grads` flat gradients; `grads` None: only forward.
        has_dropout: Whether there are masks.
    """

    def __init__(
        self, layout: Layout, n_samples: int, params: Tensor, grads: Tensor | None,
        has_dropout: bool,
    ) -> None:  # fmt: skip
        n_rows, n_trials = layout.n_rows, len(layout.shapes)
        self.n_samples, like = n_samples, params
        self.x = like.new_zeros(n_samples, layout.n_columns)  # (B, columns)
        self.x[:, layout.n_features] = 1.0
        self.x_t = self.x.t()
        self.features = self.x[:, : layout.n_features]  # (B, F)
        self.z = like.new_empty(n_rows, n_samples)  # (R, B) pre-activations
        self.a = like.new_zeros(n_rows + 2, n_samples)  # (R + 2, B): then a row of 0, one of 1
        self.a[n_rows + 1] = 1.0
        self.d = like.new_empty(n_rows, n_samples)  # (R, B) gradients
        self.logits = like.new_empty(n_trials, layout.n_classes, n_samples)  # (N, C, B)
        self.first = BatchedProduct(layout.first(params)[None], self.x[None], self.z[None])
        deep = [bucket for bucket in layout.buckets if bucket.widths]
        n_padded = sum(bucket.n * bucket.widths[0] for bucket in deep)
        n_biases = sum(bucket.n for bucket in deep)
        self.padded = like.new_empty(n_padded + n_biases, n_samples)
        self.d_padded = like.new_empty(n_padded, n_samples)
        self.mask = like.new_ones(n_rows if has_dropout else 0, n_samples)
        self.hidden = self.a[:n_rows]
        self.parts = [
            _Part(activation, self.z[begin:end], self.a[begin:end], self.d[begin:end])
            for activation, begin, end in layout.first_segments()
        ]
        self.linear: list[tuple[Tensor, Tensor, Tensor]] = []
        """(pre-activations, logits, gradients) (n, C, B) of classifiers without a hidden layer."""
        self.layers: list[list[_Layer]] = []
        """Of each bucket, its layers after the first; empty for linear classifiers."""
        row, d_row = 0, 0
        for bucket in layout.buckets:
            if not bucket.widths:
                self._add_linear(layout, bucket)
                continue
            n, first = bucket.n, bucket.widths[0]
            x = self.padded[row : row + n * (first + 1)].view(n, first + 1, n_samples)
            d_x = self.d_padded[d_row : d_row + n * first].view(n, first, n_samples)
            row, d_row = row + n * (first + 1), d_row + n * first
            weights = layout.deeper(params, bucket)
            own_grads = layout.deeper(grads, bucket) if grads is not None else None
            logits = self.logits[bucket.start : bucket.stop]
            layers = _layers(bucket, weights, own_grads, x, d_x, logits)
            for layer in layers[:-1] if has_dropout else ():
                assert layer.a is not None
                layer.mask = torch.ones_like(layer.a)
            self.layers.append(layers)

    def _add_linear(self, layout: Layout, bucket: Bucket) -> None:
        """Classifiers without a hidden layer: layer 1 gives their logits."""
        logits = self.logits[bucket.start : bucket.stop]
        begin = layout.row_starts[bucket.start]
        rows = slice(begin, begin + bucket.n * layout.n_classes)
        shape = logits.shape
        self.linear.append((self.z[rows].view(shape), logits, self.d[rows].view(shape)))
        self.layers.append([])


def _layers(
    bucket: Bucket, weights: Sequence[Tensor], grads: Sequence[Tensor] | None, x: Tensor,
    d_x: Tensor, logits: Tensor,
) -> list[_Layer]:  # fmt: skip
    """The layers of a bucket after the first, from the inputs `x` to the logits."""
    n, b, layers = bucket.n, x.shape[-1], []
    for index, weight in enumerate(weights):
        own_grads = grads[index] if grads is not None else None
        if index == len(weights) - 1:
            layers.append(_Layer(weight, own_grads, x, logits, logits, d_x))
            break
        width = bucket.widths[index + 1]
        z, d, next_x = (
            x.new_ones(n, width, b),
            x.new_ones(n, width, b),
            x.new_ones(n, width + 1, b),
        )
        layer = _Layer(weight, own_grads, x, z, d, d_x)
        layer.a = next_x[:, :-1]
        for part in bucket.segments:
            run = slice(part.start, part.stop)
            layer.parts.append(_Part(part.activation, z[run], layer.a[run], d[run]))
        layers.append(layer)
        x, d_x = next_x, d
    return layers


class Stack:
    """The networks of a population over one flat parameter buffer.

    Args:
        layout: Where everything lies.
        params: Flat parameters (layout.n_values,).
        grads: Flat gradients of the same size; `backward` fills the layers after the first.
        dropouts: One per trial in layout order.
    """

    def __init__(
        self, layout: Layout, params: Tensor, grads: Tensor, dropouts: Sequence[Dropout]
    ) -> None:
        self.layout, self._params, self._grads = layout, params, grads
        self.has_dropout = any(dropout.p > 0.0 for dropout in dropouts)
        self._buffers: dict[tuple[int, bool], Buffers] = {}
        device = params.device
        self._to_padded, self._from_padded = (m.to(device) for m in _maps(layout))
        self._dropouts, self._device = dropouts, device
        self._generators: list[tuple[int, list[torch.Generator]]] = []

    def buffers(self, n_samples: int, is_training: bool) -> Buffers:
        """The kept buffers for minibatches of `n_samples`."""
        key = (n_samples, is_training)
        if key not in self._buffers:
            grads = self._grads if is_training else None
            has_masks = is_training and self.has_dropout
            self._buffers[key] = Buffers(self.layout, n_samples, self._params, grads, has_masks)
        return self._buffers[key]

    def start_epoch(self, epochs: Sequence[int]) -> None:
        """Restart the dropout streams; `epochs` are the trials' own, from 0, in layout order."""
        self._generators = []
        for position, (dropout, epoch) in enumerate(zip(self._dropouts, epochs, strict=True)):
            hidden = self.layout.shapes[position].hidden
            if dropout.p == 0.0 or not hidden:
                continue
            streams = []
            for index in range(len(hidden)):
                streams.append(torch.Generator(self._device))
                layer_seed = derive_seed(dropout.seed, "layer", index)
                streams[-1].manual_seed(derive_seed(layer_seed, "dropout", epoch))
            self._generators.append((position, streams))

    def forward(self, at: Buffers, is_training: bool) -> None:
        """From `at.x` to `at.logits`."""
        has_masks = is_training and self.has_dropout
        if has_masks:
            self._draw_masks(at)
        at.first()
        for part in at.parts:
            part.forward()
        if has_masks:
            at.hidden.mul_(at.mask)
        torch.index_select(at.a, 0, self._to_padded, out=at.padded)
        for z, logits, _ in at.linear:
            logits.copy_(z)
        for layers in at.layers:
            for layer in layers:
                layer.forward()
                for part in layer.parts:
                    part.forward()
                if layer.mask is not None and layer.a is not None:
                    layer.a.mul_(layer.mask)

    def backward(self, at: Buffers) -> None:
        """From the gradient in `at.logits` to `at.d` (R, B) and the deeper layers' gradients.

        The gradient of layer 1 is `at.d @ at.x`: whoever updates it asks for it.
        """
        for layers in at.layers:
            for layer in reversed(layers):
                if layer.mask is not None:
                    layer.d.mul_(layer.mask)
                for part in layer.parts:
                    part.backward()
                layer.differentiate()
                layer.backward()
        if len(at.d_padded):
            torch.index_select(at.d_padded, 0, self._from_padded, out=at.d)
        if self.has_dropout:
            at.d.mul_(at.mask)
        for part in at.parts:
            part.backward()
        for _, logits, d in at.linear:
            d.copy_(logits)

    def _draw_masks(self, at: Buffers) -> None:
        """Masks as SeededDropout draws them, (H, B) of each trial from its own stream."""
        starts = self.layout.row_starts
        buckets = [
            (bucket, layers)
            for bucket, layers in zip(self.layout.buckets, at.layers, strict=True)
            for _ in range(bucket.n)
        ]
        for position, streams in self._generators:
            p = self._dropouts[position].p
            bucket, layers = buckets[position]
            targets = [at.mask[starts[position] : starts[position + 1]]]
            for layer, width in zip(
                layers[:-1], self.layout.shapes[position].hidden[1:], strict=True
            ):
                assert layer.mask is not None
                targets.append(layer.mask[position - bucket.start, :width])
            for target, stream in zip(targets, streams, strict=True):
                draws = torch.rand(target.shape, generator=stream, device=target.device)
                torch.mul(draws >= p, 1.0 / (1.0 - p), out=target)


def _maps(layout: Layout) -> tuple[Tensor, Tensor]:
    """Row numbers: of `a` for each row of `padded`, and of `d_padded` for each row of `d`."""
    to_padded: list[int] = []
    from_padded = [0] * layout.n_rows
    zero, one, d_row = layout.n_rows, layout.n_rows + 1, 0
    for bucket in layout.buckets:
        for position in range(bucket.start, bucket.stop) if bucket.widths else ():
            begin, end = layout.row_starts[position], layout.row_starts[position + 1]
            n_missing = bucket.widths[0] - (end - begin)
            to_padded += [*range(begin, end), *[zero] * n_missing, one]
            from_padded[begin:end] = range(d_row, d_row + end - begin)
            d_row += bucket.widths[0]
    return torch.tensor(to_padded, dtype=torch.long), torch.tensor(from_padded, dtype=torch.long)
