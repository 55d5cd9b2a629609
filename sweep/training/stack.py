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
from sweep.trial import derive_seed


@dataclass(frozen=True, slots=True)
class Dropout:
    """Dropout of one trial: probability and the trial's seed."""

    p: float
    seed: int


@dataclass(slots=True)
class BucketBuffers:
    """A bucket's activations; lists run over its layers after the first."""

    inputs: list[Tensor]
    """(n, H_in + 1, B); the last row is 1, for the bias."""
    hidden: list[Tensor]
    """(n, H_out, B) pre-activations of hidden layers after the first."""
    d_inputs: list[Tensor]
    """(n, H_in, B) gradients."""
    masks: list[Tensor]
    """(n, H_out, B) of hidden layers after the first; empty without dropout."""
    logits: Tensor
    """(n, C, B)."""


class Buffers:
    """Everything between minibatch and logits, for one minibatch size B."""

    def __init__(self, layout: Layout, n_samples: int, like: Tensor, has_dropout: bool) -> None:
        n_rows, n_trials = layout.n_rows, len(layout.shapes)
        self.n_samples = n_samples
        self.x = like.new_zeros(n_samples, layout.n_columns)  # (B, columns)
        self.x[:, layout.n_features] = 1.0
        self.features = self.x[:, : layout.n_features]  # (B, F)
        self.z = like.new_empty(n_rows, n_samples)  # (R, B) pre-activations
        self.a = like.new_zeros(n_rows + 2, n_samples)  # (R + 2, B): then a row of 0, one of 1
        self.a[n_rows + 1] = 1.0
        self.d = like.new_empty(n_rows, n_samples)  # (R, B) gradients
        self.logits = like.new_empty(n_trials, layout.n_classes, n_samples)  # (N, C, B)
        deep = [bucket for bucket in layout.buckets if bucket.widths]
        n_padded = sum(bucket.n * bucket.widths[0] for bucket in deep)
        n_biases = sum(bucket.n for bucket in deep)
        self.padded = like.new_empty(n_padded + n_biases, n_samples)
        self.d_padded = like.new_empty(n_padded, n_samples)
        self.mask = like.new_ones(n_rows if has_dropout else 0, n_samples)
        self.buckets: list[BucketBuffers] = []
        row, d_row = 0, 0
        for bucket in layout.buckets:
            self.buckets.append(self._of(bucket, row, d_row, has_dropout))
            if bucket.widths:
                row += bucket.n * (bucket.widths[0] + 1)
                d_row += bucket.n * bucket.widths[0]

    def _of(self, bucket: Bucket, row: int, d_row: int, has_dropout: bool) -> BucketBuffers:
        n, b, new = bucket.n, self.n_samples, self.z.new_ones
        logits = self.logits[bucket.start : bucket.stop]
        if not bucket.widths:
            return BucketBuffers([], [], [], [], logits)
        first, rest = bucket.widths[0], bucket.widths[1:]
        padded = self.padded[row : row + n * (first + 1)].view(n, first + 1, b)
        d_padded = self.d_padded[d_row : d_row + n * first].view(n, first, b)
        return BucketBuffers(
            inputs=[padded, *(new(n, width + 1, b) for width in rest)],
            hidden=[new(n, width, b) for width in rest],
            d_inputs=[d_padded, *(new(n, width, b) for width in rest)],
            masks=[new(n, width, b) for width in rest] if has_dropout else [],
            logits=logits,
        )


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
        self.layout, self.params = layout, params
        self.has_dropout = any(dropout.p > 0.0 for dropout in dropouts)
        self._first = layout.first(params)
        self._weights = [layout.deeper(params, bucket) for bucket in layout.buckets]
        self._grads = [layout.deeper(grads, bucket) for bucket in layout.buckets]
        self._buffers: dict[tuple[int, bool], Buffers] = {}
        starts = layout.row_starts
        self._segments: list[tuple[str, int, int]] = []
        for bucket in layout.buckets:
            for part in bucket.segments if bucket.widths else ():
                begin, end = starts[bucket.start + part.start], starts[bucket.start + part.stop]
                if self._segments and self._segments[-1][::2] == (part.activation, begin):
                    begin = self._segments.pop()[1]
                self._segments.append((part.activation, begin, end))
        device = params.device
        self._to_padded, self._from_padded = (m.to(device) for m in _maps(layout))
        self._dropouts = dropouts
        self._generators: list[tuple[int, list[torch.Generator]]] = []

    def buffers(self, n_samples: int, is_training: bool) -> Buffers:
        """The kept buffers for minibatches of `n_samples`."""
        key = (n_samples, is_training)
        if key not in self._buffers:
            has_masks = is_training and self.has_dropout
            self._buffers[key] = Buffers(self.layout, n_samples, self.params, has_masks)
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
                streams.append(torch.Generator(self.params.device))
                layer_seed = derive_seed(dropout.seed, "layer", index)
                streams[-1].manual_seed(derive_seed(layer_seed, "dropout", epoch))
            self._generators.append((position, streams))

    def forward(self, at: Buffers, is_training: bool) -> None:
        """From `at.x` to `at.logits`."""
        has_masks = is_training and self.has_dropout
        if has_masks:
            self._draw_masks(at)
        torch.mm(self._first, at.x.t(), out=at.z)
        for activation, begin, end in self._segments:
            FORWARD[activation](at.z[begin:end], at.a[begin:end])
        if has_masks:
            at.a[: self.layout.n_rows].mul_(at.mask)
        torch.index_select(at.a, 0, self._to_padded, out=at.padded)
        for bucket, own, weights in zip(
            self.layout.buckets, at.buckets, self._weights, strict=True
        ):
            if not bucket.widths:
                begin = self.layout.row_starts[bucket.start]
                rows = at.z[begin : begin + bucket.n * self.layout.n_classes]
                own.logits.copy_(rows.view_as(own.logits))
                continue
            for index, z in enumerate(own.hidden):
                torch.bmm(weights[index], own.inputs[index], out=z)
                a = own.inputs[index + 1][:, :-1]
                for part in bucket.segments:
                    FORWARD[part.activation](z[part.start : part.stop], a[part.start : part.stop])
                if has_masks:
                    a.mul_(own.masks[index])
            torch.bmm(weights[-1], own.inputs[-1], out=own.logits)

    def backward(self, at: Buffers) -> None:
        """From the gradient in `at.logits` to `at.d` (R, B) and the deeper layers' gradients.

        The gradient of layer 1 is `at.d @ at.x`: whoever updates it asks for it.
        """
        for bucket, own, weights, grads in zip(
            self.layout.buckets, at.buckets, self._weights, self._grads, strict=True
        ):
            d = own.logits
            for index in reversed(range(len(weights))):
                torch.bmm(d, own.inputs[index].transpose(1, 2), out=grads[index])
                d_input = own.d_inputs[index]
                torch.bmm(weights[index][:, :, :-1].transpose(1, 2), d, out=d_input)
                if index > 0:
                    if self.has_dropout:
                        d_input.mul_(own.masks[index - 1])
                    for part in bucket.segments:
                        run = slice(part.start, part.stop)
                        BACKWARD[part.activation](
                            d_input[run], own.hidden[index - 1][run], d_input[run]
                        )
                d = d_input
        if len(at.d_padded):
            torch.index_select(at.d_padded, 0, self._from_padded, out=at.d)
        if self.has_dropout:
            at.d.mul_(at.mask)
        for activation, begin, end in self._segments:
            BACKWARD[activation](at.d[begin:end], at.z[begin:end], at.d[begin:end])
        for bucket, own in zip(self.layout.buckets, at.buckets, strict=True):
            if not bucket.widths:
                begin = self.layout.row_starts[bucket.start]
                rows = at.d[begin : begin + bucket.n * self.layout.n_classes]
                rows.view_as(own.logits).copy_(own.logits)

    def _draw_masks(self, at: Buffers) -> None:
        """Masks as SeededDropout draws them, (H, B) of each trial from its own stream."""
        starts = self.layout.row_starts
        buckets = [
            (bucket, own)
            for bucket, own in zip(self.layout.buckets, at.buckets, strict=True)
            for _ in range(bucket.n)
        ]
        for position, streams in self._generators:
            p = self._dropouts[position].p
            bucket, own = buckets[position]
            targets = [at.mask[starts[position] : starts[position + 1]]]
            for mask, width in zip(
                own.masks, self.layout.shapes[position].hidden[1:], strict=True
            ):
                targets.append(mask[position - bucket.start, :width])
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
