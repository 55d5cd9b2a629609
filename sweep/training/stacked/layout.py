"""Where each trial's parameters lie in a shard's flat buffers.

Axes: N trials, R rows of layer 1 over all trials, B samples of a minibatch, F input features,
H units of a hidden layer, C classes. Every layer carries its bias as one more input column
whose input is always 1, so that a bias costs no operation of its own.

Layer 1 of all trials is one matrix (R, F + 1) without padding: it holds most of the arithmetic.
Deeper layers are stacks (n, H_out, H_in + 1) per bucket: trials of one depth and of similar
widths, padded with zeros to the widest of the bucket.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

PADDING_WORTH_A_BUCKET = {"cpu": 12_000, "other": 1_000_000}
"""Padded weights per layer taken to cost as much as one more bucket's launches: an estimate (40 us
at 120 GFLOP/s and batch 64 on a CPU), not tuned; the GPU's was never measured."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides where a trial may lie."""

    hidden: tuple[int, ...]
    activation: str


@dataclass(frozen=True, slots=True)
class Segment:
    """A contiguous range with one activation."""

    start: int
    stop: int
    activation: str


@dataclass(frozen=True, slots=True)
class Bucket:
    """Trials `start` to `stop` of the order, with all their deeper layers padded alike."""

    start: int
    stop: int
    widths: tuple[int, ...]
    """Padded widths of the hidden layers; () for linear classifiers."""
    layers: tuple[tuple[int, int, int], ...]
    """(offset in the flat buffer, outputs, inputs + 1) of each layer after the first."""
    segments: tuple[Segment, ...]
    """Ranges of one activation, counted from `start`."""

    @property
    def n(self) -> int:
        """Trials in it."""
        return self.stop - self.start


class Layout:
    """Offsets of the trials `shapes` in a flat buffer of `n_values` values.

    `order[k]` is the index in `shapes` of the trial that lies at position k.
    """

    def __init__(
        self, shapes: Sequence[Shape], n_features: int, n_classes: int, device_type: str
    ) -> None:
        self.n_features, self.n_classes = n_features, n_classes
        self.n_columns = n_columns(n_features)
        padding = PADDING_WORTH_A_BUCKET.get(device_type, PADDING_WORTH_A_BUCKET["other"])
        groups = _group(shapes, n_classes, padding)
        self.order = [index for group in groups for index in group]
        self.shapes = [shapes[index] for index in self.order]
        first_rows = [(*shape.hidden, n_classes)[0] for shape in self.shapes]
        self.row_starts = [0, *itertools.accumulate(first_rows)]
        self.n_rows = self.row_starts[-1]
        self.n_values = self.n_rows * self.n_columns
        self.buckets: list[Bucket] = []
        start = 0
        for group in groups:
            self.buckets.append(self._bucket(start, start + len(group)))
            start += len(group)
        self._bucket_of = [bucket for bucket in self.buckets for _ in range(bucket.n)]

    def first(self, flat: Tensor) -> Tensor:
        """Layer 1 of all trials: (R, columns); column F is the bias, the rest are zero."""
        return flat[: self.n_rows * self.n_columns].view(self.n_rows, self.n_columns)

    def first_segments(self) -> list[tuple[str, int, int]]:
        """(activation, begin, end) of the rows of layer 1 that have one; those of linear
        classifiers have none."""
        segments: list[tuple[str, int, int]] = []
        for bucket in self.buckets:
            for part in bucket.segments if bucket.widths else ():
                begin = self.row_starts[bucket.start + part.start]
                end = self.row_starts[bucket.start + part.stop]
                if segments and segments[-1][::2] == (part.activation, begin):
                    begin = segments.pop()[1]
                segments.append((part.activation, begin, end))
        return segments

    def deeper(self, flat: Tensor, bucket: Bucket) -> list[Tensor]:
        """The layers after the first, each (n, H_out, H_in + 1); the last column is the bias."""
        return [
            flat[offset : offset + bucket.n * n_out * n_in].view(bucket.n, n_out, n_in)
            for offset, n_out, n_in in bucket.layers
        ]

    def chunks(self, flat: Tensor, position: int) -> list[Tensor]:
        """A trial's parameters with its padding, one contiguous matrix per layer."""
        bucket = self._bucket_of[position]
        rows = self.row_starts[position], self.row_starts[position + 1]
        n_first = (rows[1] - rows[0]) * self.n_columns
        chunks = [flat.narrow(0, rows[0] * self.n_columns, n_first).view(-1, self.n_columns)]
        for offset, n_out, n_in in bucket.layers:
            begin = offset + (position - bucket.start) * n_out * n_in
            chunks.append(flat.narrow(0, begin, n_out * n_in).view(n_out, n_in))
        return chunks

    def linears(self, flat: Tensor, position: int) -> list[tuple[Tensor, Tensor]]:
        """A trial's own (weight (H_out, H_in), bias (H_out)) of each layer, as views."""
        widths = (self.n_features, *self.shapes[position].hidden, self.n_classes)
        padded = (self.n_features, *self._bucket_of[position].widths)
        return [
            (chunk[:n_out, :n_in], chunk[:n_out, bias_column])
            for chunk, (n_in, n_out), bias_column in zip(
                self.chunks(flat, position), itertools.pairwise(widths), padded, strict=True
            )
        ]

    def _bucket(self, start: int, stop: int) -> Bucket:
        hidden = [self.shapes[k].hidden for k in range(start, stop)]
        widths = tuple(max(column) for column in zip(*hidden, strict=True))
        layers = []
        for n_in, n_out in itertools.pairwise((*widths, self.n_classes)):
            layers.append((self.n_values, n_out, n_in + 1))
            self.n_values += (stop - start) * n_out * (n_in + 1)
        activations = [self.shapes[k].activation for k in range(start, stop)]
        return Bucket(start, stop, widths, tuple(layers), _segments(activations))


def n_columns(n_features: int) -> int:
    """Columns of layer 1: the features, the bias, and zeros up to a whole cache line (16 float32);
    those cost at most 2 % at 784 features."""
    return -(-(n_features + 1) // 16) * 16


def transfer(
    source: Layout, values: Tensor, from_position: int,
    target: Layout, into: Tensor, to_position: int,
) -> None:  # fmt: skip
    """Copy one trial's values from a buffer laid out as `source` to one laid out as `target`."""
    old = source.chunks(values, from_position)
    new = target.chunks(into, to_position)
    if all(a.shape == b.shape for a, b in zip(old, new, strict=True)):
        for a, b in zip(old, new, strict=True):
            b.copy_(a)
        return
    for pair, other in zip(
        source.linears(values, from_position), target.linears(into, to_position), strict=True
    ):
        other[0].copy_(pair[0])
        other[1].copy_(pair[1])


def _segments(activations: Sequence[str]) -> tuple[Segment, ...]:
    segments, start = [], 0
    for activation, run in itertools.groupby(activations):
        stop = start + len(list(run))
        segments.append(Segment(start, stop, activation))
        start = stop
    return tuple(segments)


def _group(shapes: Sequence[Shape], n_classes: int, worth_a_bucket: int) -> list[list[int]]:
    """Indices of `shapes` by bucket: one depth each, neighbours in width merged while it pays."""
    by_hidden: dict[tuple[int, ...], list[int]] = {}
    for index in sorted(range(len(shapes)), key=lambda i: (shapes[i].hidden, i)):
        by_hidden.setdefault(shapes[index].hidden, []).append(index)
    groups: list[list[int]] = []
    depth_of = len
    for depth in sorted({depth_of(hidden) for hidden in by_hidden}):
        runs = [([hidden], ids) for hidden, ids in by_hidden.items() if len(hidden) == depth]
        groups += _merge(runs, n_classes, worth_a_bucket * max(1, depth))
    return [sorted(group, key=lambda i: (shapes[i].activation, i)) for group in groups]


def _merge(
    runs: list[tuple[list[tuple[int, ...]], list[int]]], n_classes: int, worth_a_bucket: int
) -> list[list[int]]:
    """Merge the two neighbours that cost least extra padding until none is worth it."""
    boxes = [(tuple(map(max, zip(*hidden, strict=True))), ids) for hidden, ids in runs]

    def extra(left: int) -> int:
        (a, ids_a), (b, ids_b) = boxes[left], boxes[left + 1]
        both = tuple(map(max, a, b))
        grown = len(ids_a) * (_weights(both, n_classes) - _weights(a, n_classes))
        return grown + len(ids_b) * (_weights(both, n_classes) - _weights(b, n_classes))

    costs = [extra(k) for k in range(len(boxes) - 1)]
    while costs and (cheapest := min(costs)) <= worth_a_bucket:
        k = costs.index(cheapest)
        (a, ids_a), (b, ids_b) = boxes[k], boxes.pop(k + 1)
        boxes[k] = (tuple(map(max, a, b)), ids_a + ids_b)
        costs.pop(k)
        for near in (k - 1, k):
            if 0 <= near < len(costs):
                costs[near] = extra(near)
    return [ids for _, ids in boxes]


def _weights(hidden: tuple[int, ...], n_classes: int) -> int:
    """Weights after the first layer."""
    return sum(a * b for a, b in itertools.pairwise((*hidden, n_classes)))
