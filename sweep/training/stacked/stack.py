"""Forward and backward of all trials of a shard at once, written into kept buffers.

Axes as in `layout`: N trials, R rows of layer 1, B samples, F features, H units, C classes.
Activations lie as (unit, B), so that no product needs a transpose in memory; a hand-written
backward into kept buffers costs a fifth less than autograd.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sweep.training.stacked.layers import Layer, Part, Run
from sweep.training.stacked.layout import Bucket, Layout, n_columns
from sweep.trial import derive_seed


@dataclass(frozen=True, slots=True)
class Dropout:
    """Dropout of one trial: probability and the trial's seed."""

    p: float
    seed: int


def dropout_stream(
    dropout: Dropout, index: int, epoch: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """The stream that masks of hidden layer `index` are drawn from in a trial's epoch `epoch`
    (from 0), as SeededDropout has it."""
    stream = torch.Generator(device)
    layer_seed = derive_seed(dropout.seed, "layer", index)
    stream.manual_seed(derive_seed(layer_seed, "dropout", epoch))
    return stream


class Inputs:
    """What minibatches are written into: one matrix for each of their sizes B, which all shards of
    a population read, one after the other.

    Args:
        n_features: F.
        like: An empty tensor of the type and on the device that they are to have.
    """

    def __init__(self, n_features: int, like: Tensor) -> None:
        self._n_features, self._like = n_features, like
        self._matrices: dict[int, Tensor] = {}

    def of(self, n_samples: int) -> Tensor:
        """(B, columns): column F is 1, for the bias, those after it are 0."""
        if n_samples not in self._matrices:
            x = self._like.new_zeros(n_samples, n_columns(self._n_features))
            x[:, self._n_features] = 1.0
            self._matrices[n_samples] = x
        return self._matrices[n_samples]


class Buffers:
    """Everything between minibatch and logits, for one minibatch size B.

    Args:
        layout: Where everything lies.
        x: (B, columns) inputs.
        params: Flat parameters, and `grads` flat gradients; `grads` None: only forward.
        has_dropout: Whether there are masks.
    """

    def __init__(
        self, layout: Layout, x: Tensor, params: Tensor, grads: Tensor | None, has_dropout: bool
    ) -> None:
        n_rows, n_trials, n_samples = layout.n_rows, len(layout.shapes), len(x)
        like, self.x = params, x
        self.features = self.x[:, : layout.n_features]  # (B, F)
        self.a = like.new_zeros(n_rows + 2, n_samples)  # (R + 2, B): then a row of 0, one of 1
        self.a[n_rows + 1] = 1.0
        self.d = like.new_empty(n_rows, n_samples)  # (R, B) gradients
        self.logits = like.new_empty(n_trials, layout.n_classes, n_samples)  # (N, C, B)
        self.first = layout.first(params)  # (R, columns) weights of layer 1
        self.z = like.new_empty(n_rows, n_samples)  # (R, B) pre-activations of layer 1
        deep = [bucket for bucket in layout.buckets if bucket.widths]
        n_padded = sum(bucket.n * bucket.widths[0] for bucket in deep)
        n_biases = sum(bucket.n for bucket in deep)
        self.padded = like.new_empty(n_padded + n_biases, n_samples)
        self.d_padded = like.new_empty(n_padded, n_samples)
        self.mask = like.new_ones(n_rows if has_dropout else 0, n_samples)
        self.hidden = self.a[:n_rows]
        self.parts = [
            Part((activation, slice(begin, end)), self.a, self.d)
            for activation, begin, end in layout.first_segments()
        ]
        self.linear: list[tuple[slice, Tensor, Tensor]] = []
        """Of linear classifiers, (their rows of layer 1, logits and gradients (n C, B))."""
        self.layers: list[Layer] = []
        """All layers after the first, those of a trial in their order."""
        self.masks: dict[tuple[int, int], Tensor] = {}
        """(position, hidden layer) -> (H, B): the trial's own units, where trials have dropout."""
        for k, (begin, end) in enumerate(itertools.pairwise(layout.row_starts)):
            self.masks[k, 0] = self.mask[begin:end]
        row, d_row = 0, 0
        for bucket in layout.buckets:
            if not bucket.widths:
                self._add_linear(layout, bucket)
                continue
            n, first = bucket.n, bucket.widths[0]
            a = self.padded[row : row + n * (first + 1)].view(n, first + 1, n_samples)
            d_a = self.d_padded[d_row : d_row + n * first].view(n, first, n_samples)
            row, d_row = row + n * (first + 1), d_row + n * first
            weights = layout.deeper(params, bucket)
            own_grads = layout.deeper(grads, bucket) if grads is not None else None
            self._add_layers(layout, bucket, weights, own_grads, a, d_a, has_dropout)

    def _add_linear(self, layout: Layout, bucket: Bucket) -> None:
        """Classifiers without a hidden layer: layer 1 gives their logits."""
        logits = self.logits[bucket.start : bucket.stop].flatten(0, 1)
        begin = layout.row_starts[bucket.start]
        rows = slice(begin, begin + len(logits))
        self.linear.append((rows, logits, self.d[rows]))

    def _add_layers(
        self, layout: Layout, bucket: Bucket, weights: Sequence[Tensor],
        grads: Sequence[Tensor] | None, x: Tensor, d_x: Tensor, has_dropout: bool,
    ) -> None:  # fmt: skip
        """The layers of a bucket after the first, from the inputs `x` to the logits."""
        for index, weight in enumerate(weights, 1):
            is_last, own_grads = index == len(weights), grads[index - 1] if grads else None
            shape = (bucket.n, weight.shape[1], x.shape[-1])
            out = self.logits[bucket.start : bucket.stop] if is_last else x.new_empty(shape)
            d = out if is_last else x.new_ones(shape)
            next_x = x.new_ones(0 if is_last else shape[0], shape[1] + 1, shape[2])
            a = next_x[:, :-1]
            mask = torch.ones_like(a) if has_dropout and not is_last else None
            for which, runs in _shares(layout, bucket):
                layer = Layer(
                    weight[which], None if own_grads is None else own_grads[which],
                    x[which], out[which], d[which], d_x[which],
                )  # fmt: skip
                if not is_last:
                    layer.hide(a[which], None if mask is None else mask[which], runs)
                self.layers.append(layer)
            for k in range(bucket.n) if mask is not None else ():
                width = layout.shapes[bucket.start + k].hidden[index]
                self.masks[bucket.start + k, index] = mask[k, :width]  # type: ignore[index]
            x, d_x = next_x, d


def _shares(layout: Layout, bucket: Bucket) -> list[tuple[Any, list[Run]]]:
    """(index into the bucket's tensors, activations): one for each trial, or one for them all."""
    if bucket.n == 1:
        shapes = layout.shapes[bucket.start : bucket.stop]
        return [(k, [(shape.activation, None)]) for k, shape in enumerate(shapes)]
    runs: list[Run] = [(part.activation, slice(part.start, part.stop)) for part in bucket.segments]
    return [(slice(None), runs)]


class Stack:
    """The networks of a shard over one flat parameter buffer.

    Args:
        layout: Where everything lies.
        inputs: Where its minibatches will be.
        params: Flat parameters (layout.n_values,).
        grads: Flat gradients of the same size; `backward` fills the layers after the first.
        dropouts: One per trial in layout order.
    """

    def __init__(
        self, layout: Layout, inputs: Inputs, params: Tensor, grads: Tensor,
        dropouts: Sequence[Dropout],
    ) -> None:  # fmt: skip
        self.layout, self._inputs, self._params, self._grads = layout, inputs, params, grads
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
            x = self._inputs.of(n_samples)
            self._buffers[key] = Buffers(self.layout, x, self._params, grads, has_masks)
        return self._buffers[key]

    def start_epoch(self, epochs: Sequence[int]) -> None:
        """Restart the dropout streams; `epochs` are the trials' own, from 0, in layout order."""
        self._generators = []
        for position, (dropout, epoch) in enumerate(zip(self._dropouts, epochs, strict=True)):
            hidden = self.layout.shapes[position].hidden
            if dropout.p == 0.0 or not hidden:
                continue
            streams = [
                dropout_stream(dropout, index, epoch, self._device) for index in range(len(hidden))
            ]
            self._generators.append((position, streams))

    def forward(self, at: Buffers, is_training: bool) -> None:
        """From `at.x` to `at.logits`."""
        has_masks = is_training and self.has_dropout
        if has_masks:
            self._draw_masks(at)
        torch.mm(at.first, at.x.t(), out=at.z)
        for part in at.parts:
            part.forward(at.z)
        if has_masks:
            at.hidden.mul_(at.mask)
        torch.index_select(at.a, 0, self._to_padded, out=at.padded)
        for rows, logits, _ in at.linear:
            logits.copy_(at.z[rows])
        for layer in at.layers:
            layer.forward()

    def backward(self, at: Buffers) -> None:
        """From the gradient in `at.logits` to `at.d` (R, B) and the deeper layers' gradients.

        The gradient of layer 1 is `at.d @ at.x`: whoever updates its weights multiplies.
        """
        for layer in reversed(at.layers):
            layer.backward()
        if len(at.d_padded):
            torch.index_select(at.d_padded, 0, self._from_padded, out=at.d)
        if self.has_dropout:
            at.d.mul_(at.mask)
        for part in at.parts:
            part.backward(at.z)
        for _, logits, d in at.linear:
            d.copy_(logits)

    def _draw_masks(self, at: Buffers) -> None:
        """Masks as SeededDropout draws them, (H, B) of each trial from its own stream."""
        for position, streams in self._generators:
            p = self._dropouts[position].p
            for index, stream in enumerate(streams):
                mask = at.masks[position, index]
                draws = torch.rand(mask.shape, generator=stream, device=mask.device)
                torch.mul(draws >= p, 1.0 / (1.0 - p), out=mask)


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
