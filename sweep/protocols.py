"""Interfaces of plug-ins: Trainer, Listener, Executor, and the seam between driver and trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from sweep.trial import DatasetInfo, Orders, Record, Report, StudyInfo, Task


class Exchange(Protocol):
    """The seam: a trainer passes reports and receives orders. Inline or across a socket."""

    def __call__(self, reports: Sequence[Report], n_free: int) -> Orders:
        """Pass `reports` to the driver and return its orders.

        `n_free` is the number of free slots. A stopped trial frees its slot at once, so the orders
        may start up to `n_free + len(stop)` trials. A negative `n_free` asks for no new trials in
        the slots of stopped ones. Errors of the driver pass through `train` and `run` unchanged.
        """
        ...


class Data(Protocol):
    """What trials train on: resident tensors, what a user's function returns, a DataModule."""

    @property
    def info(self) -> DatasetInfo:
        """Name, digest, shape and size, for MLflow and for networks that fit them."""
        ...

    def fit_arguments(self, batch_size: int, first_epoch: int = 0) -> dict[str, Any]:
        """Keyword arguments of `Trainer.fit`: loaders or a DataModule.

        Epoch e has the data order of the study's epoch `first_epoch` + e, if the order is ours.
        """
        ...

    def test_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `Trainer.test`. Raises SealedTestSplitError during a search."""
        ...

    def tensors(self) -> Any:
        """Everything as tensors (`sweep.data.tensors.TensorData`); None if it is not resident."""
        ...

    def to(self, device: Any) -> Any:
        """The same data on a torch device, as far as it is resident."""
        ...


class Trainer(Protocol):
    """Trains the trials of one worker."""

    def train(self, exchange: Exchange) -> None:
        """Train the ordered trials until the orders say is_last and no trial is left."""
        ...


class Listener(Protocol):
    """Receives the records of a search: the MLflow tracker and the terminal display."""

    def open(self, study: StudyInfo) -> None:
        """Begin or continue a study. Raises StoreError if the listener cannot record it."""
        ...

    def write(self, records: Sequence[Record]) -> None:
        """Take records, in order. Must return at once: slow work belongs in a thread or queue.

        Called by a thread of the driver or by the thread that called `sweep.run`, never by two at
        the same time. `open` and `close` are called by the latter.
        """
        ...

    def close(self) -> None:
        """Deliver the remaining records. Raises UndeliveredError if that fails."""
        ...


class Executor(Protocol):
    """Starts the workers and connects their trainers to the driver."""

    def warm_up(self, task: Task) -> None:
        """Start the workers and return at once; they load while the driver does. Repeatable."""
        ...

    def run(self, exchange: Exchange) -> None:
        """Let the workers train until each of them received orders with is_last.

        Workers may still be exiting at the return. A dead worker is replaced and its trials are
        reported as failed with kind "killed". A worker that the executor has to replace gives its
        trials back as stopped, without an order of the driver, which then hands them out again.
        """
        ...

    def kill(self) -> None:
        """End all workers now; wait for exiting ones. Does nothing without workers."""
        ...

    def pids(self) -> Sequence[int]:
        """Process ids of the workers on this machine."""
        ...
