"""Workers on a Ray cluster: Ray Core alone, an actor a device, no shared disk.

An actor has one worker process, as a local search has, and hands on its messages: the driver calls
`step(orders)`, one call at a time, and the answer is the worker's next message with the files that
changed. A worker that dies is its trials' failure, as on one machine; an actor that dies took its
machine along, and its trials go elsewhere from the last files that came. Nothing is restarted or
repeated by Ray. What an actor says after it was given up is never heard: its call is forgotten.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import socket
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any, cast

import ray
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
)

from sweep.environment import signals
from sweep.errors import ConfigError, StoreError
from sweep.executors.crew import LEAVE_S, Crew, Link, Message
from sweep.executors.luggage import Luggage
from sweep.executors.station import Packet, Station, fetched
from sweep.trial import Failure, Orders, Task, notice

LOOK_S = 2.0
"""Time between two looks at the nodes of the cluster."""
LONG_S = 45.0
"""Without a worker for so long, the user is told what is waited for."""
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Variable of a job of Ray's own."""
CONNECT_S = 5.0
"""Time for a cluster's address to answer."""
LEFT_AT_HOME = (
    ".[!.]*", "mlruns/", "mlartifacts/", "lightning_logs/", "wandb/", "outputs/", "checkpoints/",
    "__pycache__/", "venv/", "node_modules/", "*.ckpt", "*.db", "*.db-*",
)  # fmt: skip
"""Not sent to the nodes, besides what .gitignore and .rayignore name. ".*" would be all of it: Ray
asks for the folder itself, too, which is "."."""


class RayExecutor(Crew):
    """Workers on the nodes of a Ray cluster.

    Args:
        n_workers: Number of workers; None: as many as the nodes have room for, at any time.
        address: Of the cluster: "auto" or HOST:PORT; "local" starts one on this machine.
        gpus: GPUs of a worker, e.g. 0.5; None: those of a trial where the cluster has any, else 0.
        cpus: CPUs of a worker; None: 1 beside a GPU, else those of the smallest node.
    """

    def __init__(
        self, n_workers: int | None, address: str = "auto", gpus: float | None = None,
        cpus: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(n_workers or 0)
        self._n_fixed, self._address, self._gpus, self._cpus = n_workers, address, gpus, cpus
        self._is_joined = self._has_said = False
        self._looked = self._alone_s = 0.0

    def warm_up(self, task: Task) -> None:
        """Join the cluster, send it the current folder, start actors. Raises ConfigError."""
        if not self._is_joined:
            self._join()
            self._share_out(task)
        super().warm_up(_without_home(task))

    def kill(self) -> None:
        """End all workers and leave the cluster."""
        super().kill()
        if self._is_joined:
            self._is_joined = False
            ray.shutdown()

    def _adjust(self) -> None:
        """As any crew; after a while without workers, say what they need."""
        super()._adjust()
        if any(w.is_ready for w in (*self._workers, *self._leaving)):
            self._alone_s, self._has_said = self._now, False
        elif self._now - self._alone_s > LONG_S and self._is_last:
            self.kill_workers()  # nothing is left to do, and they find no room
        elif self._now - self._alone_s > LONG_S and not self._has_said:
            self._has_said = True
            have = [f"{n.get('CPU', 0):g} and {n.get('GPU', 0):g}" for n in _nodes()]
            self._ask([notice(
                f"no worker has begun for {LONG_S:.0f} s: each needs {self._cpus} CPUs and "
                f"{self._gpus or 0:g} GPUs of one node; the nodes have {', '.join(have) or 'none'}"
            )], 0)  # fmt: skip

    def _join(self) -> None:
        if ray.is_initialized():
            raise ConfigError("this process has joined a Ray cluster: call ray.shutdown() first")
        host, _, port = self._address.rpartition(":")
        own = {"working_dir": str(Path.cwd()), "excludes": [*LEFT_AT_HOME]}
        is_job = JOB in os.environ  # of `ray job submit`, which has sent its folder
        try:
            if host and port.isdigit():  # Ray itself would try for minutes
                socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
            with signals.kept():
                ray.init(
                    self._address, log_to_driver=False, logging_level=logging.ERROR,
                    runtime_env=None if is_job else own,
                )  # fmt: skip
        except (RayError, OSError, RuntimeError, ValueError) as error:
            ray.shutdown()
            said = _last_line(error)
            is_away = isinstance(error, OSError)
            remedy = ": start one with `ray start --head`" if is_away else ""
            raise ConfigError(
                f"--executor ray: no cluster at --ray-address {self._address} takes this search "
                f"({said}){remedy}"
            ) from error
        self._is_joined = True

    def _share_out(self, task: Task) -> None:
        """Say what a worker gets of a node, unless the user has."""
        nodes = _nodes()
        may_have = task.accelerator in ("auto", "gpu", "cuda")
        if self._gpus is None:
            has_any = may_have and any(n.get("GPU") for n in nodes)
            self._gpus = task.n_devices if has_any else 0
        if self._cpus is None:
            n_cpus = [int(n["CPU"]) for n in nodes if n.get("CPU", 0) >= 1] or [1]
            share = sum(n_cpus) // self._n_fixed if self._n_fixed else min(n_cpus)
            self._cpus = 1 if self._gpus else max(1, min([*n_cpus, share]))
        self._n_wanted = self._count()

    def _count(self) -> int:
        """As many as were asked for, else as the living nodes have room for."""
        if self._n_fixed is not None:
            return self._n_fixed
        if time.monotonic() - self._looked < LOOK_S:
            return self._n_wanted
        self._looked, gpus, cpus = time.monotonic(), self._gpus or 0, self._cpus or 1
        return sum(
            int(min(n.get("CPU", 0) / cpus, n.get("GPU", 0) / gpus if gpus else n.get("CPU", 0)))
            for n in _nodes()
        )

    def _start(self, task: Task) -> Link:
        return RayLink(task, self._gpus or 0, self._cpus or 1)

    def _wait(self, links: Sequence[Link], timeout_s: float) -> Collection[Link]:
        # By futures: `ray.wait` would swallow what the second Ctrl-C raises.
        by_call = {link.call: link for link in cast(Sequence[RayLink], links)}
        if not by_call:
            time.sleep(timeout_s)
            return ()
        ready, _ = wait([*by_call], timeout_s, FIRST_COMPLETED)
        return [by_call[call] for call in ready]


class RayLink:
    """The driver's end of an actor. One call is out at any time: `call`."""

    is_too_large = False

    def __init__(self, task: Task, gpus: float, cpus: int) -> None:
        self._folder, self._said, self._n_bytes = task.work_dir, "", cast("int | None", None)
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": 0, "max_task_retries": 0}
        actor: Any = ray.remote(Station).options(**options, scheduling_strategy="SPREAD")
        self._actor: Any = actor.remote(task, cpus)
        self.call: Future[Packet] = self._actor.step.remote(None, ()).future()

    def send(self, orders: Orders) -> None:
        """Answer its last message, with the files of the trials that it is to train."""
        luggage = Luggage(self._folder, hold=ray.put)
        parcels = [p for spec in orders.start for p in luggage.packed([spec.number])]
        self.call = self._actor.step.remote(orders, parcels).future()

    def receive(self) -> Message:
        """Its next message; waits for it."""
        try:
            packet = self.call.result()
            Luggage(self._folder).unpack(packet.parcels, fetched)
        except (RayActorError, ObjectLostError, NodeDiedError) as error:
            if isinstance(error, RayActorError) and error.actor_init_failed:
                return Failure("exception", f"on a node of the cluster: {_last_line(error)}")
            return Failure("left", "its machine left the cluster")
        except RayError as error:
            self._said = _last_line(error)
            self.is_too_large = isinstance(error, OutOfMemoryError)
            return Failure("killed", f"Ray: {self._said}"[:300])
        self._n_bytes, self._said = packet.n_bytes, packet.last_words
        self.is_too_large = packet.is_too_large
        return packet.message

    def resident_bytes(self) -> int | None:
        """Its worker's resident memory; None if unknown."""
        return self._n_bytes

    def last_words(self) -> str:
        """The last line that its worker printed; "" if it printed none."""
        return self._said

    def leave(self) -> None:
        """Wait for its worker to exit by itself."""
        wait([self.call], LEAVE_S)

    def end(self) -> None:
        """End the actor; its worker follows within a second."""
        with contextlib.suppress(RayError):  # the cluster is gone, and the actor with it
            ray.kill(self._actor)


def _nodes() -> list[Mapping[str, float]]:
    """What the living nodes have in all. Raises StoreError without a cluster."""
    try:
        return [node["Resources"] for node in cast(Any, ray).nodes() if node["Alive"]]
    except RayError as error:
        raise StoreError(f"the Ray cluster is gone: {error}") from error


def _without_home(task: Task) -> Task:
    """`task` with names below the current folder, which the nodes have a copy of."""
    home = f"{Path.cwd()}{os.sep}"

    def shorter(text: str) -> str:
        return text.removeprefix(home)

    return dataclasses.replace(
        task, module=shorter(task.module), data=shorter(task.data),
        data_dir=shorter(task.data_dir) if task.data_dir else None,
        callbacks=tuple(map(shorter, task.callbacks)), may_add_workers=False,
    )  # fmt: skip


def _last_line(error: BaseException) -> str:
    """The cause, which Ray says last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
