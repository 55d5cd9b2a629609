"""Who may plug in: what a trainer, a listener and an executor are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from sweep.trial import DatasetInfo, Orders, Record, Report, StudyInfo, Task


class Exchange(Protocol):
    """The seam: reports go in, orders come out. A trainer cannot tell what is behind it."""

    def __call__(self, reports: Sequence[Report], n_free: int) -> Orders:
        """Hand over `reports`; `n_free` is how many trials could be started right now.

        A trial that the orders stop frees its slot at once, so up to `n_free + len(stop)`
        trials may come back. A worker that gives its trials back has fewer than none free.
        """
        ...


class Data(Protocol):
    """What trials train on."""

    @property
    def info(self) -> DatasetInfo:
        """Name, digest, shape and size, for MLflow and for networks that fit them."""
        ...

    def loaders(self, batch_size: int, first_epoch: int = 0) -> tuple[Any, Any]:
        """Training and validation loaders as `Trainer.fit` takes them (validation: or None).

        Epoch e of the loader has the data order of the study's epoch `first_epoch` + e.
        """
        ...

    def test_loader(self) -> Any:
        """The test loader. Raises SealedTestSplitError during a search."""
        ...

    def tensors(self) -> Any:
        """Everything as tensors (`sweep.data.tensors.TensorData`); None if it is not resident."""
        ...

    def to(self, device: Any) -> Any:
        """The same data on a torch device, as far as it is resident."""
        ...


class Trainer(Protocol):
    """How a population is trained."""

    def train(self, exchange: Exchange) -> None:
        """Train what `exchange` orders, until it says is_last and nothing is left."""
        ...


class Listener(Protocol):
    """Who wants to know: the tracker (MLflow) and the display are both one."""

    def open(self, study: StudyInfo) -> None:
        """A study begins or goes on. Raises StoreError where it cannot be kept."""
        ...

    def write(self, records: Sequence[Record]) -> None:
        """Take records, in order. Must return at once; slow work belongs behind a queue.

        A thread of the driver's calls it, or the one that called `sweep.run`; that one calls
        `open` and `close`. Never two of them at once.
        """
        ...

    def close(self) -> None:
        """Deliver what is left. Raises UndeliveredError where that failed."""
        ...


class Executor(Protocol):
    """Where populations are trained."""

    def warm_up(self, task: Task) -> None:
        """Begin to get workers ready; returns at once, so that the driver loads meanwhile."""
        ...

    def run(self, exchange: Exchange) -> None:
        """Let workers train until `exchange` told each that nothing more will come.

        They may still be leaving when it returns.
        A worker that died is replaced; its trials come back as failed with kind "killed". A
        worker that has to go is told to interrupt its trials: they come back as stopped though
        the driver did not order it, and go on elsewhere.
        """
        ...

    def kill(self) -> None:
        """End all workers now, and wait for those that are leaving. Harmless without any."""
        ...
