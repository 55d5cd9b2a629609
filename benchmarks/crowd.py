"""What one driver bears: many workers that each report once a second.

    python benchmarks/crowd.py [--workers 64 256 512] [--epochs 30] [--each 2] [--sampler random]

Everything but training is real: driver, sampler, Optuna's SQLite storage, MLflow's store, and
workers at the other end of sockets, 32 threads to a process; they are scripted (sweep.testing) and
sleep between reports, each from a moment of its own.
Printed are when the last trial ended and when all was in Optuna's storage, the driver's processor
time as a share of one core, the time from a worker's message to its answer in the first and the
last third of the search (a queue that grows would show there), and how far MLflow's thread is
behind at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, cast

from sweep.config.settings import RunConfig
from sweep.executors.crew import Crew, Link, Message
from sweep.protocols import Exchange
from sweep.search.study import Extras, search
from sweep.space import parse_space
from sweep.testing import ScriptedTrainer
from sweep.trial import Failure, Orders, Report, Task, TrialSpec

SPACE = "# A line.\nparameters:\n  lr: {float: [1e-4, 0.1], log: true}\nfixed: {hidden: [8]}\n"
EPOCH_S = 1.0
A_PROCESS = 32


def host(descriptors: Sequence[int], n_epochs: int, log: str) -> None:
    """A process of workers."""
    threads = [threading.Thread(target=work, args=(d, n_epochs, log)) for d in descriptors]
    for thread in threads:
        time.sleep(EPOCH_S / len(threads))
        thread.start()


def work(descriptor: int, n_epochs: int, log: str) -> None:
    """A worker: sleeps, reports, notes how long the answer took."""
    pipe, waits = Connection(descriptor), list[tuple[float, float]]()

    def exchange(reports: Sequence[Report], n_free: int) -> Orders:
        asked = time.time()
        pipe.send((tuple(reports), n_free))
        orders = cast(Orders, pipe.recv())
        waits.append((asked, time.time() - asked))
        return orders

    def script(spec: TrialSpec) -> Iterator[Mapping[str, float]]:
        n_own = n_epochs // 2 + 7 * spec.number % (n_epochs // 2)  # they end at different times
        for epoch in range(n_own):
            time.sleep(EPOCH_S)
            yield {"val_acc": 1 - 0.9**epoch, "val_loss": 0.9**epoch, "train_loss": 0.9**epoch}

    try:
        ScriptedTrainer(script).train(exchange)
    except EOFError:
        return
    Path(log, f"{os.getpid()}-{descriptor}.json").write_text(json.dumps(waits))


class ScriptedLink:
    """The driver's end of such a worker."""

    is_too_large = False

    def __init__(self, ours: socket.socket) -> None:
        self.pipe = Connection(ours.detach())

    def send(self, orders: Orders) -> None:
        with contextlib.suppress(OSError):  # its death is seen at the next `receive`
            self.pipe.send(orders)

    def receive(self) -> Message:
        try:
            return cast(Message, self.pipe.recv())
        except (EOFError, OSError):
            return Failure("killed", "a scripted worker died")

    def resident_bytes(self) -> int | None:
        return None

    def last_words(self) -> str:
        return ""

    def leave(self) -> None:
        pass

    def end(self) -> None:
        self.pipe.close()


class ScriptedCrew(Crew):
    """`n` scripted workers."""

    def __init__(self, n: int, n_epochs: int, log: str) -> None:
        super().__init__(n)
        self._ours: list[socket.socket] = []
        self._hosts: list[subprocess.Popen[bytes]] = []
        self.cpu_s = self.wall_s = 0.0
        while n > len(self._ours):
            pairs = [socket.socketpair() for _ in range(min(A_PROCESS, n - len(self._ours)))]
            theirs = [end.fileno() for _, end in pairs]
            words = ["--work", str(n_epochs), log, *map(str, theirs)]
            self._hosts.append(
                subprocess.Popen([sys.executable, __file__, *words], pass_fds=theirs)
            )
            self._ours += [end for end, _ in pairs]
            for _, end in pairs:
                end.close()

    def _start(self, task: Task) -> Link:
        return ScriptedLink(self._ours.pop())

    def kill(self) -> None:
        super().kill()
        for process in self._hosts:
            process.wait(timeout=60)

    def _wait(self, links: Sequence[Link], timeout_s: float) -> Collection[Link]:
        by_pipe = {link.pipe: link for link in cast(Sequence[ScriptedLink], links)}
        return [by_pipe[cast(Connection, pipe)] for pipe in wait([*by_pipe], timeout_s)]

    def run(self, exchange: Exchange) -> None:
        began_s, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        super().run(exchange)
        now = resource.getrusage(resource.RUSAGE_SELF)
        self.wall_s = time.perf_counter() - began_s
        self.cpu_s = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime


def measured(n: int, n_each: int, n_epochs: int, sampler: str) -> None:
    """One search of `n_each` trials a worker, in a new folder."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "waits")
        log.mkdir()
        config = RunConfig(
            study="crowd", trials=n_each * n, epochs=n_epochs, baseline=False, sampler=sampler,
            storage=f"sqlite:///{folder}/optuna.db", tracking_uri=f"sqlite:///{folder}/mlflow.db",
            work_dir=f"{folder}/work", workers=n, pruner="median",
        )  # fmt: skip
        crew = ScriptedCrew(n, n_epochs, str(log))
        began_s = time.perf_counter()
        outcome = search(
            config, parse_space(SPACE, "line"), [], Extras(is_tracked=True, executor=crew)
        )
        behind_s = time.perf_counter() - began_s - crew.wall_s
        waits = sorted(tuple(w) for f in log.glob("*.json") for w in json.loads(f.read_text()))
        third = len(waits) // 3
        said: list[Any] = []
        for part in (waits[:third], waits[-third:]):
            ms = sorted(1000 * s for _, s in part)
            said.append(f"{statistics.median(ms):.1f} ({ms[int(0.99 * len(ms))]:.0f})")
        print(
            f"{n} workers, {outcome.n_new} trials, {len(waits)} messages: the last trial ended "
            f"after {waits[-1][0] - waits[0][0]:.0f} s, all was kept after {crew.wall_s:.0f} s; "
            f"driver {crew.cpu_s / crew.wall_s:.2f} of a core; answer after ms, median (99 %): "
            f"first third {said[0]}, last third {said[1]}; start and end {behind_s:.1f} s",
            flush=True,
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--each", type=int, default=2, help="trials a worker")
    parser.add_argument("--sampler", default="random")
    args = parser.parse_args()
    print(
        f"{date.today()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        + ", ".join(f"{p} {version(p)}" for p in ("optuna", "mlflow"))
        + f"; sampler {args.sampler}, an epoch takes {EPOCH_S:g} s"
    )
    for n in args.workers:
        measured(n, args.each, args.epochs, args.sampler)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        host([*map(int, sys.argv[4:])], int(sys.argv[2]), sys.argv[3])
    else:
        main()
