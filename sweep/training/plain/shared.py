"""One pass over the data for all trials that see the same minibatches.

A trial's loaders are wrapped where Lightning lets a strategy do so; a wrapped loader asks for the
next minibatch (`Want`), and `Streams` loads it once for all that want it. The order is the
population epoch's: what a loader draws comes from (study seed, population epoch), never from the
trials.
"""

from __future__ import annotations

import collections
import inspect
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from sweep.training.likeness import copied, equal
from sweep.training.plain.lanes import Generators, Raised
from sweep.training.plain.resumable import WrappedLoader, generators_of, is_lightnings
from sweep.training.resuming import seed_everything
from sweep.trial import derive_seed

END: Any = object()
"""In place of a minibatch: there are no more."""
PAUSE: Any = object()
"""In place of a minibatch: some were trained ahead, and the driver may have orders."""


@dataclass
class Ahead:
    """A trial that can train an epoch's minibatches but the last together with others."""

    shape: Hashable
    """Trials of equal shape can share steps."""
    near: Callable[[Any], Hashable]
    """Given an epoch's first minibatch: equal for trials that can if they are padded; or None."""
    n_steps: int
    member: Any
    """See `sweep.training.vmapped.trainee.Trainee`."""
    chosen: Hashable = None
    """Of these two, in this epoch."""


@dataclass
class Want:
    """A trial waits for a minibatch."""

    data: Hashable
    """Of the trial's train loader: trials with equal ones keep in step."""
    source: Hashable
    """Of this loader: equal ones give the same minibatches."""
    epoch: int
    """Of the population."""
    n_taken: int
    """Minibatches of the epoch that the trial has trained on."""
    is_train: bool
    loader_index: int
    """Which of the trial's train or validation loaders."""
    cycle: int
    """Earlier iterations over this loader in this epoch, or this validation."""
    index: int
    """Of the minibatch in its iteration."""
    loader: Any
    """The trial's own loader."""
    ahead: Ahead | None = None
    """How the trial can train minibatches with others, this one and those after it."""

    @property
    def time(self) -> tuple[Any, ...]:
        """Who is earlier is served first, so that all come together."""
        return self.epoch, self.n_taken, self.is_train, self.loader_index, self.cycle, self.index

    @property
    def stream(self) -> tuple[Any, ...]:
        """Whose minibatch it is."""
        at = None if self.is_train else self.n_taken
        return self.source, self.epoch, at, self.is_train, self.loader_index, self.cycle


class Streams:
    """Loads each minibatch once for all trials that want it.

    The global generators are left to the loader (see `sweep.training.plain.lanes.Generators`).

    Args:
        seed: Of the study.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._open: dict[Any, _Stream] = {}
        self.loads: collections.deque[tuple[float, float]] = collections.deque(maxlen=64)
        """(`time.perf_counter` at its end, seconds) of loading each of the latest minibatches of
        the training, but an epoch's first."""

    def serve(self, wants: Mapping[int, Want]) -> list[tuple[Any, list[int]]]:
        """Load what the earliest of each data set's trials want.

        Returns each minibatch, or a loader's error as `Raised`, with the numbers of its trials.
        """
        by_data: dict[Hashable, list[int]] = {}
        for number, want in wants.items():
            by_data.setdefault(want.data, []).append(number)
        served = []
        for numbers in by_data.values():
            earliest = min(wants[number].time for number in numbers)
            by_stream: dict[Any, list[int]] = {}
            for number in numbers:
                if wants[number].time == earliest:
                    by_stream.setdefault(wants[number].stream, []).append(number)
            for chosen in by_stream.values():
                try:
                    served.append((self._next(wants[chosen[0]]), chosen))
                except BaseException as error:  # noqa: BLE001 - user code, of these trials
                    served.append((Raised(error), chosen))
        self._close_others({want.stream for want in wants.values()})
        return served

    def batch(self, want: Want) -> Any:
        """A minibatch for a trial alone, whose random generators stay as they are."""
        self._close_others({want.stream})
        holder = Generators.holder()
        try:
            return self._next(want)
        finally:
            holder.hold()

    def _next(self, want: Want) -> Any:
        stream = self._open.get(want.stream)
        if stream is None or stream.n_loaded > want.index:
            seed = derive_seed(self._seed, "minibatches", str(want.stream[1:]))
            stream = self._open[want.stream] = _Stream(want.loader, seed)
        while stream.n_loaded < want.index:
            stream.load()
        began_s = time.perf_counter()
        batch = stream.load()
        if want.is_train and want.index:
            ended_s = time.perf_counter()
            self.loads.append((ended_s, ended_s - began_s))
        return batch

    def _close_others(self, wanted: set[Any]) -> None:
        # A trial may go on with a loader's iteration after it has validated.
        epochs = {(stream[0], stream[1]) for stream in wanted}
        for key in [k for k in self._open if k not in wanted]:
            if not key[3] or (key[0], key[1]) not in epochs:
                del self._open[key]


class _Stream:
    """An iteration over a loader, with random generators of its own."""

    def __init__(self, loader: Any, seed: int) -> None:
        self._generators = Generators()
        self._generators.hold()
        seed_everything(seed)
        for generator in generators_of(loader):
            generator.manual_seed(seed)
        self._batches = iter(loader)
        self.n_loaded, self._has_ended = 0, False

    def load(self) -> Any:
        self.n_loaded += 1
        if self._has_ended:
            return END
        self._generators.hold()
        try:
            return next(self._batches)
        except StopIteration:
            self._has_ended = True
            return END


class SharedLoader(WrappedLoader):
    """A trial's loader, whose minibatches come from `Streams`.

    Args:
        loader: A DataLoader or any other iterable.
        take: Waits for a minibatch.
        want: A `Want` for the trial's next minibatch of this loader; its `cycle` and `index` are
            filled in here.
        between: Called before the next minibatch, but not before an epoch's first.
        first: Index to go on from, in the first iteration.
    """

    OWN = (*WrappedLoader.OWN, "_take", "_want", "_between", "_first", "_index", "_cycle",
           "_ended_at", "_changes", "_iterator")  # fmt: skip

    def __init__(
        self, loader: Any, take: Callable[[Want], Any], want: Callable[[Any], Want],
        between: Callable[[], None] | None = None, first: int = 0,
    ) -> None:  # fmt: skip
        self.loader, self._take, self._want, self._between = loader, take, want, between
        self._first, self._index, self._cycle = first, 0, 0
        self._ended_at: Any = None
        """The epoch, or validation, in which an iteration came to its end."""
        self._changes: bool | None = None
        """Whether the trial changes its minibatches; None: not known yet."""

    def __iter__(self) -> Iterator[Any]:
        """An iteration for Lightning's loops; for all others, such as a user's hook, over the
        loader itself."""
        if not is_lightnings(inspect.currentframe()):
            return iter(self.loader)
        return self._iteration()

    def place(self, *, is_ahead: bool) -> dict[str, Any]:
        """Where the iteration stands, in plain values.

        `is_ahead`: the last minibatch is fetched, but not trained yet.
        """
        return {"shared": self._index - is_ahead}

    def _iteration(self) -> Iterator[Any]:
        # A generator: Lightning makes its iterator before the epoch that it is for begins.
        at = self._moment()
        self._cycle = self._cycle + 1 if at == self._ended_at else 0
        self._index, self._first = self._first, 0
        is_first = True
        while True:
            if not is_first and self._between is not None:
                self._between()
            is_first = False
            want = self._want(self.loader)
            want.cycle, want.index = self._cycle, self._index
            while (batch := self._take(want)) is PAUSE:
                self._index, ahead = want.index, want.ahead
                if self._between is not None:
                    self._between()
                want = self._want(self.loader)
                want.cycle, want.index, want.ahead = self._cycle, self._index, ahead
            if batch is END:
                self._ended_at = at
                return
            self._index = want.index + 1  # several, if others were trained ahead
            if self._changes is None:
                given = copied(batch)
                yield given
                self._changes = not equal(given, batch)
            else:
                yield copied(batch) if self._changes else _repacked(batch)

    def _moment(self) -> Any:
        want = self._want(self.loader)
        return (want.epoch, None if want.is_train else want.n_taken)


def _repacked(batch: Any) -> Any:
    """The same tensors in containers of the trial's own."""
    return apply_to_collection(batch, Tensor, lambda tensor: tensor)
