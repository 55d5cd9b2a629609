"""Trials on several devices: each trains in processes of its own, one a device (its ranks).

The worker starts them, passes on what rank 0 reports, and ends them with the trial. So no launcher
of Lightning's, which would run the search's command again, is ever asked; what ranks do is in
`rank.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments.lightning import find_free_network_port

from sweep.environment.launchers import without_foreign
from sweep.environment.processes import how_it_ended, started
from sweep.errors import SweepError
from sweep.files.trial_files import RANKS, RESUME_STATE, TrialFiles
from sweep.training.devices import ready
from sweep.training.resuming import UnusableError, start_over
from sweep.training.run import Run
from sweep.training.slot_loop import Slots, train_one_by_one
from sweep.trial import (
    DatasetInfo,
    EpochReport,
    Failure,
    Notice,
    Pulse,
    Report,
    Task,
    TrialResult,
    TrialSpec,
)

GRACE_S = 1.0
"""After one rank's error, time for the news of another's death that may be its cause."""
LEAVE_S = 10.0
"""Time for ranks to exit by themselves."""


@dataclass
class _Rank:
    number: int
    process: subprocess.Popen[bytes]
    pipe: Connection

    def message(self) -> Any:
        """What the process sends next; a Failure if it is dead."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            how = how_it_ended(self.process.wait())
            return Failure("killed", f"rank {self.number} of the trial {how}")


def train_on_devices(task: Task, slots: Slots, info: DatasetInfo | None) -> None:
    """Train the trials of `slots` one after the other, each on all devices of `task`."""
    engine = SeveralDevices(task, slots)
    train_one_by_one(slots, engine, ready(task, info, 1), contextlib.nullcontext)


class SeveralDevices:
    """An engine without a module: it stands between the slot loop and a trial's ranks.

    Args:
        task: Settings of the study.
        slots: Receives what rank 0 reports.
    """

    def __init__(self, task: Task, slots: Slots) -> None:
        self._task, self._slots = task, slots

    def fit(self, run: Run) -> None:
        """Train a trial to its end; what fails in any rank is its failure. No rank is left.

        If any rank cannot use the resume file, all start over. Raises the driver's errors and
        DiskError.
        """
        failure = self._train(run, run.spec)
        if isinstance(failure, UnusableError):
            stop = run.stop
            run.restart()
            run.stop = stop
            self._slots.say(start_over(run, failure).message)
            failure = None
            if stop is None:
                failure = self._train(run, dataclasses.replace(run.spec, is_resumed=False))
        if isinstance(failure, Failure):
            self._slots.fail_with(run, failure)

    def _train(self, run: Run, spec: TrialSpec) -> Failure | UnusableError | None:
        with _started(self._task, run, spec, self._slots.choice) as ranks:
            return self._relay(run, ranks)

    def _relay(self, run: Run, ranks: Sequence[_Rank]) -> Failure | UnusableError | None:
        while run.result is None:
            for pipe in wait([rank.pipe for rank in ranks]):
                rank = next(one for one in ranks if one.pipe is pipe)
                message = rank.message()
                if isinstance(message, Failure | UnusableError):
                    return self._cause(run, message, [one for one in ranks if one is not rank])
                self._answer(run, rank, message)
        return None

    def _cause(
        self, run: Run, failure: Failure | UnusableError, others: list[_Rank]
    ) -> Failure | UnusableError | None:
        """The failure that counts: if a rank dies, the others raise errors of their connection.

        None: rank 0 has sent the trial's result at the same time.
        """
        while others and run.result is None:
            pipes = wait([rank.pipe for rank in others], 0 if _is_death(failure) else GRACE_S)
            if not pipes:
                break
            for rank in [one for one in others if one.pipe in pipes]:
                message = rank.message()
                if not isinstance(message, Failure | UnusableError):
                    self._answer(run, rank, message)
                    continue
                others.remove(rank)
                if _is_death(message):
                    failure = message
        return failure if run.result is None else None

    def _answer(self, run: Run, rank: _Rank, message: Any) -> None:
        """Pass on what rank 0 says, and tell it whether to stop. Raises the ranks' SweepError."""
        if isinstance(message, SweepError):
            raise message
        reports, self._slots.choice = message
        self._take(run, reports)
        with contextlib.suppress(OSError):  # its death is seen at the next wait
            rank.pipe.send(run.stop)

    def _take(self, run: Run, reports: Sequence[Report]) -> None:
        """Pass on what rank 0 says; the last epoch goes with the result."""
        said: list[Report] = []
        for report in reports:
            if isinstance(report, Notice):
                self._slots.say(report.message)
            elif isinstance(report, TrialResult):
                run.result = report
            elif isinstance(report, EpochReport | Pulse):
                said.append(report)
            if isinstance(report, EpochReport):
                run.epoch, run.start_epoch = report.epoch, report.start_epoch
                run.history[report.epoch - 1 :] = [report]
        if run.result is None:
            self._slots.tell(*said)
        else:
            self._slots.add(*said)

    def rung(self, run: Run) -> str:
        """How the trial was trained."""
        return f"plain, {self._task.n_devices} devices"

    # The rest of `sweep.training.slot_loop.Engine`: rank 0 has module and files.

    def open(self, run: Run) -> Sequence[Report]:
        """Does nothing."""
        return ()

    def keep_best(self, numbers: Sequence[int]) -> None:
        """Does nothing."""

    def state(self, run: Run) -> None:
        """None."""

    def module(self, run: Run, which: str) -> None:
        """None."""

    def example(self, run: Run) -> None:
        """None."""

    def checkpoint_arguments(self, run: Run) -> Mapping[str, Any]:
        """None."""
        return {}

    def close(self, number: int) -> None:
        """Does nothing."""


def _is_death(message: Any) -> bool:
    return isinstance(message, Failure) and message.kind == "killed"


@contextlib.contextmanager
def _started(task: Task, run: Run, spec: TrialSpec, choice: Any) -> Iterator[list[_Rank]]:
    """Within, the ranks of a trial train; at the end none of them, nor what they started, is
    left."""
    ranks: list[_Rank] = []
    variables = _variables(task, run)
    folder = run.files.path(RANKS)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        for number in range(task.n_devices):
            group = ranks[0].process.pid if ranks else 0
            ranks.append(_start(task, number, group, variables))
        for rank in ranks:
            with contextlib.suppress(OSError):  # its death is seen at once
                rank.pipe.send((_task_of(rank, task, run), spec, choice))
        yield ranks
        if run.result is not None:
            _see_off(ranks)
    finally:
        for rank in ranks:
            rank.pipe.close()
        if ranks:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(ranks[0].process.pid, signal.SIGKILL)
        for rank in ranks:
            rank.process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _variables(task: Task, run: Run) -> dict[str, str]:
    """Environment variables of all ranks: Lightning takes them for started by a launcher."""
    return without_foreign(os.environ) | {
        "WORLD_SIZE": str(task.n_devices), "NODE_RANK": "0",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port()),
        "PL_GLOBAL_SEED": str(run.spec.seed % 2**32),  # of the order of data
        "OMP_NUM_THREADS": str(_n_threads(task)),
    }  # fmt: skip


def _task_of(rank: _Rank, task: Task, run: Run) -> Task:
    """The task for one rank: all but the first write into a folder that nobody keeps."""
    work_dir = task.work_dir
    if rank.number > 0:
        work_dir = str(run.files.path(RANKS) / str(rank.number))
        own = TrialFiles(work_dir, run.spec.number)
        own.make_folder()
        own.path(RESUME_STATE).symlink_to(run.files.path(RESUME_STATE).absolute())
    return dataclasses.replace(task, work_dir=work_dir, n_threads=_n_threads(task), probes=())


def _n_threads(task: Task) -> int:
    """Of each rank."""
    return max(1, (task.n_threads or os.cpu_count() or 1) // task.n_devices)


def _start(task: Task, number: int, group: int, variables: Mapping[str, str]) -> _Rank:
    own = {**variables, "LOCAL_RANK": str(number)}
    return _Rank(number, *started("sweep.training.plain.rank", Path(task.log_file), own, group))


def _see_off(ranks: Sequence[_Rank]) -> None:
    """Let the ranks exit by themselves: their pipes say that the trial is over."""
    for rank in ranks:
        rank.pipe.close()
    for rank in ranks:
        with contextlib.suppress(subprocess.TimeoutExpired):
            rank.process.wait(timeout=LEAVE_S)
