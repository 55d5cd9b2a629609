"""A worker on a node of a Ray cluster: the actor, with one worker process as a local search has.

It hands on the worker's messages with the files that changed, and has a folder of its own.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray

from sweep.data.catalog import prepare
from sweep.errors import SweepError
from sweep.executors.crew import Message
from sweep.executors.devices import VISIBLE
from sweep.executors.luggage import Luggage, Parcel
from sweep.executors.process import ProcessLink
from sweep.trial import Failure, Orders, Task, TrialResult


@dataclass(frozen=True)
class Packet:
    """An actor's answer."""

    message: Message
    parcels: Sequence[Parcel] = ()
    n_bytes: int | None = None
    is_too_large: bool = False
    last_words: str = ""


class Station:
    """The actor: a worker process on this node, and what of its folder has been handed over."""

    def __init__(self, task: Task, cpus: int) -> None:
        folder, node = _own_folder(), ray.get_runtime_context().get_node_id()[:16]
        self._task = dataclasses.replace(
            task, work_dir=folder, log_file=str(Path(folder, "sweep.log")),
            machine_dir=str(Path(tempfile.gettempdir(), f"sweep-{node}-{task.session}")),
            n_threads=task.n_threads or cpus,
        )  # fmt: skip
        self._luggage = Luggage(folder, logs=["sweep.log"], hold=ray.put)
        self._link: ProcessLink | None = None
        self._numbers: set[int] = set()

    def step(self, orders: Orders | None, parcels: Sequence[Parcel]) -> Packet:
        """Hand over orders; returns the worker's next message and the files that changed."""
        try:
            self._luggage.unpack(parcels, fetched)
            if self._link is None:
                self._prepare()
                self._link = ProcessLink(self._task, _devices())
        except SweepError as error:
            return Packet(error)
        if orders is not None:
            self._numbers |= {spec.number for spec in orders.start}
            self._link.send(orders)
        message = self._link.receive()
        packet = Packet(
            message, self._luggage.packed(sorted(self._numbers)), self._link.resident_bytes(),
            self._link.is_too_large, self._link.last_words(),
        )  # fmt: skip
        for report in message[0] if isinstance(message, tuple) else ():
            if isinstance(report, TrialResult):
                self._numbers.discard(report.number)
                self._luggage.forget(report.number)
        if isinstance(message, Failure):
            shutil.rmtree(self._task.work_dir, ignore_errors=True)
        return packet

    def _prepare(self) -> None:
        """Fetch a data set into the node's cache, one worker at a time."""
        folder = Path(self._task.machine_dir)
        folder.mkdir(exist_ok=True)
        with (folder / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            prepare(self._task.data, self._task.data_dir)


def fetched(piece: Any) -> bytes:
    """A piece of a file, from Ray's object store where it lies there."""
    return cast(bytes, ray.get(piece) if isinstance(piece, ray.ObjectRef) else piece)


def _devices() -> dict[str, str]:
    """The GPUs that Ray gave this actor: with none, Ray itself would hide none."""
    found = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    return {VISIBLE: ",".join(found)}


def _own_folder() -> str:
    """A new folder for this process; those of this node's processes that are gone are removed.

    A folder for temporary files may be shared: other nodes' processes are not seen here.
    """
    above, node = Path(tempfile.gettempdir()), ray.get_runtime_context().get_node_id()[:16]
    for left in above.glob(f"sweep-ray-{node}-*-*"):
        if not Path("/proc", left.name.split("-")[3]).exists():
            shutil.rmtree(left, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"sweep-ray-{node}-{os.getpid()}-", dir=above)
