"""A short search in a temporary folder, measured: what `sweep plan` knows. Free of Optuna.

It is a real search, with the real workers, sampler and records, whose stores are SQLite files in
that folder. Nothing is left of it.
"""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sweep.config.settings import RunConfig
from sweep.databases import sqlite
from sweep.errors import ConfigError, StudyFailedError, StudyInterrupted
from sweep.executors.devices import gpus
from sweep.executors.memory_limit import peak_bytes, resident_bytes
from sweep.files.trial_files import BEST, MODEL, RESUME_STATE, TrialFiles
from sweep.loading import collector_paused
from sweep.search.tasks import begin_loading
from sweep.space import Space
from sweep.trial import (
    EpochReport,
    Failure,
    Notice,
    Record,
    StudyInfo,
    TrialFinished,
    TrialStarted,
    TrialState,
    WorkerReady,
    count_devices,
)

N_BLOCKS = 5
"""Parts of the measured time whose speeds are compared."""
LEAST_SPREAD, MOST_SPREAD = 0.1, 0.5
"""Bounds of the uncertainty: machines vary by a tenth from one run to the next."""
DATABASES = ("optuna.db", "mlflow.db")


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a short search came to. A trial's work is 1, that of half its epochs 0.5."""

    device: str
    """As torch names it."""
    engines: tuple[str, ...]
    """How its trials were trained, e.g. "compiled"."""
    n_slots: int
    """Trials at the same time in a worker."""
    n_workers: int
    n_devices: int
    """GPUs that they used; a CPU machine is one."""
    said: tuple[str, ...]
    """What the workers told the user, e.g. the reason for an engine."""
    total_s: float
    """All of it, with start and end."""
    start_s: float
    """From the call until the first trial began."""
    measured_s: float
    """From then until the last report."""
    late_s: float
    """From the first trial until a worker was ready, in the mean of all workers."""
    trial_s: float
    """Time of one worker for a trial, with its share of all that is done beside training."""
    end_s: float
    """From the last report until everything was recorded."""
    work: float
    """Trials' work in `measured_s`."""
    slowest_s: float
    """How long the slowest trial takes, beside as many as there were."""
    spread: float
    """Uncertainty of the speed, relative: two standard errors."""
    n_ended: int
    """Trials that came to their end."""
    n_failed: int
    failure: str
    """Why the last one failed; "": none did."""
    is_whole: bool
    """All trials of the search, or of its space, were trained."""
    worker_bytes: int | None
    """Largest resident memory of a worker process; None: this system does not tell."""
    trial_bytes: int | None
    """What a trial adds to it."""
    file_bytes: Mapping[str, float]
    """Mean size of a trial's best.ckpt, model.pt2 and last.ckpt, as far as any had one."""
    record_bytes: float
    """What both databases grow by with a trial's work."""


def calibrate(config: RunConfig, space: Space, for_s: float) -> Calibration:
    """Train the first trials of a search, for `for_s` seconds once a worker is ready.

    Nothing is pruned. Raises ConfigError if no epoch ended, StudyFailedError if most trials fail
    and none comes to its end, StudyInterrupted, and whatever a search raises.
    """
    with tempfile.TemporaryDirectory(prefix="sweep-plan-", ignore_cleanup_errors=True) as folder:
        return _calibrate(_elsewhere(config, Path(folder)), space, for_s, Path(folder))


def _elsewhere(config: RunConfig, folder: Path) -> RunConfig:
    """The search with all it keeps in `folder`, and without what would shorten it."""
    storage, tracking_uri = (sqlite.url_of(folder / name) for name in DATABASES)
    return dataclasses.replace(
        config, storage=storage, tracking_uri=tracking_uri, work_dir=str(folder / "work"),
        pruner="none", patience=None, timeout_s=None, keep=None, disk_limit_gb=None,
    )  # fmt: skip


def _calibrate(config: RunConfig, space: Space, for_s: float, folder: Path) -> Calibration:
    began_s = time.time()
    executor = begin_loading(config, space)
    watch = _Watch(config, folder, executor.pids)
    try:
        with collector_paused():
            from sweep.search.study import Extras, search
            from sweep.tracking.store import find_or_make_experiment, opened, routed

            with routed(folder / "mlflow.log"), opened(config.tracking_uri, create=True) as client:
                find_or_make_experiment(client, config.study_name, (folder / "artifacts").as_uri())
            extras = Extras(is_tracked=True, executor=executor, window_s=for_s)
            reason = search(config, space, [watch], extras).end.reason
    except StudyFailedError as error:
        raise watch.failed() or error from error
    finally:
        executor.kill()
    if reason == "interrupted":
        raise StudyInterrupted("interrupted: nothing is kept, the same command begins again")
    if watch.work <= 0 or not watch.ready_s:
        raise watch.failed() or ConfigError(
            f"no epoch ended within {for_s:g} s of training: give it more time with --for"
        )
    failed = watch.failed()
    if failed and not watch.n_ended and watch.n_failed >= watch.n_unfinished:
        raise failed
    return _measured(watch, began_s, time.time(), is_whole=reason in ("done", "exhausted"))


class _Watch:
    """A listener that notes times, sizes and memory."""

    def __init__(self, config: RunConfig, folder: Path, pids: Callable[[], Sequence[int]]) -> None:
        self._config, self._folder, self._pids = config, folder, pids
        self._failures: list[Failure] = []
        self._over: set[int] = set()
        """Trials that failed or came to their end."""
        self._n_running = self._most_running = 0
        self._idle_bytes = self._peak_bytes = 0
        self._begun_s: dict[int, float] = {}
        self._done: dict[int, float] = {}
        """Trial -> its work so far."""
        self._bytes_before = 0
        self._trained_s = 0.0
        """The trials' shares of their workers' time in training."""
        self.pace_s: dict[int, float] = {}
        """Trial -> seconds for all of its epochs, by those that it has."""
        self.ready: WorkerReady | None = None
        self.ready_s: list[float] = []
        """Unix time of each worker's greeting."""
        self.gains: list[tuple[float, float]] = []
        """Unix time of a report, and the work since the one before."""
        self.engines: dict[str, None] = {}
        self.said: list[str] = []
        self.n_ended = 0
        self.file_bytes: dict[str, list[int]] = {}

    def open(self, study: StudyInfo) -> None:
        """The databases are made, and still empty."""
        self._bytes_before = self._database_bytes()

    def write(self, records: Sequence[Record]) -> None:
        """Note what the search tells."""
        for record in records:
            if isinstance(record, WorkerReady):
                self.ready = self.ready or record
                self.ready_s.append(record.time_ms / 1000)
                self._idle_bytes = max(self._idle_bytes, self._memory(resident_bytes))
            elif isinstance(record, TrialStarted):
                self._n_running += 1
                self._most_running = max(self._most_running, self._n_running)
                self._begun_s[record.number] = record.time_ms / 1000
            elif isinstance(record, EpochReport):
                work = min(1.0, record.epochs_done / self._config.epochs)
                self._gain(record.number, record.time_ms / 1000, work)
                self._trained_s += record.metrics.get("epoch_s", 0.0)
            elif isinstance(record, TrialFinished):
                self._finish(record)
            elif isinstance(record, Notice):
                self.said.append(record.message)
        self._peak_bytes = max(self._peak_bytes, self._memory(peak_bytes))

    def close(self) -> None:
        """Nothing to deliver."""

    def failed(self) -> StudyFailedError | None:
        """The error of a search whose trials failed; None: none did."""
        if not self._failures:
            return None
        return StudyFailedError(f"the first trials fail: {self._failures[-1].message}")

    @property
    def work(self) -> float:
        """Trials' work so far."""
        return sum(work for _, work in self.gains)

    def n_devices(self, n_workers: int) -> int:
        """Devices of so many workers."""
        assert self.ready is not None
        if "cpu" in self.ready.device:  # also "2 x cpu, 4 threads"
            return 1
        config, each = self._config, count_devices(self._config.devices)
        if config.executor == "ray":
            return math.ceil(n_workers * (config.gpus_per_worker or each))
        # Workers with one GPU share those of this machine; those with several have the same.
        return min(n_workers, max(1, len(gpus(os.environ)))) if each == 1 else each

    @property
    def n_failed(self) -> int:
        """Trials that failed."""
        return len(self._failures)

    @property
    def failure(self) -> str:
        """Message of the last failure; "": none."""
        return self._failures[-1].message if self._failures else ""

    @property
    def n_unfinished(self) -> int:
        """Trials with epochs that neither failed nor came to their end."""
        return len(self.pace_s.keys() - self._over)

    @property
    def first_s(self) -> float:
        """Unix time at which the first trial began."""
        return min(self._begun_s.values())

    @property
    def worker_bytes(self) -> int | None:
        """Largest resident memory of a worker."""
        return self._peak_bytes or None

    @property
    def trial_bytes(self) -> int | None:
        """Memory that a trial adds to a worker that is ready."""
        n_workers = max(1, len(self.ready_s))
        if not self._peak_bytes or not self._most_running:
            return None
        more = max(0, self._peak_bytes - self._idle_bytes)
        return int(more / max(1, self._most_running / n_workers))

    def trial_s(self, busy_s: float) -> float:
        """See `seconds_of_a_trial`; all workers together had `busy_s`."""
        n_at_once = self._most_running
        return seconds_of_a_trial(busy_s, self._trained_s, self.work, self.n_ended, n_at_once)

    def record_bytes(self) -> float:
        """What the databases grew by, for a trial's work."""
        grown = self._database_bytes() - self._bytes_before
        return max(0, grown) / self.work

    def _gain(self, number: int, at_s: float, work: float) -> None:
        gained = work - self._done.get(number, 0.0)
        self._done[number] = work
        self.gains.append((at_s, gained))
        if work > 0:
            self.pace_s[number] = (at_s - self._begun_s.get(number, at_s)) / work

    def _finish(self, record: TrialFinished) -> None:
        self._n_running -= 1
        if engine := record.tags.get("sweep.trainer"):
            self.engines[engine] = None
        if record.state is not TrialState.WAITING:
            self._over.add(record.number)
        if record.failure is not None:  # only what it trained counts
            self._failures.append(record.failure)
        elif record.state is not TrialState.WAITING:
            self.n_ended += 1
            self._gain(record.number, record.time_ms / 1000, 1.0)
        files = TrialFiles(self._config.study_dir, record.number)
        for name in (BEST, MODEL, RESUME_STATE):
            if size := files.size(name):
                self.file_bytes.setdefault(name, []).append(size)

    def _memory(self, of: Callable[[int], int | None]) -> int:
        return max((of(pid) or 0 for pid in self._pids()), default=0)

    def _database_bytes(self) -> int:
        return sum(sqlite.n_bytes(self._folder / name) for name in DATABASES)


def seconds_of_a_trial(
    busy_s: float, trained_s: float, work: float, n_ended: int, n_at_once: int
) -> float:
    """Seconds of a worker for a trial.

    Of `busy_s`, `trained_s` were training, for `work` trials; the rest is mostly the trials' ends.
    Once as many ended as train at a time, each has its share of the rest; before, it is shared as
    the training is, since their ends are still to come.
    """
    if n_ended < n_at_once:
        return busy_s / work
    trained_s = min(trained_s, busy_s)
    return trained_s / work + (busy_s - trained_s) / n_ended


def _measured(watch: _Watch, began_s: float, ended_s: float, *, is_whole: bool) -> Calibration:
    ready = watch.ready
    assert ready is not None
    n_workers = max(ready.n_workers, len(watch.ready_s))
    first_s, last_s = watch.first_s, max(at_s for at_s, _ in watch.gains)
    late_s = sum(max(0.0, at_s - first_s) for at_s in watch.ready_s) / n_workers
    return Calibration(
        device=ready.device, engines=tuple(watch.engines), n_slots=ready.n_slots,
        n_workers=n_workers, n_devices=watch.n_devices(n_workers),
        said=tuple(dict.fromkeys(watch.said)), total_s=ended_s - began_s,
        start_s=first_s - began_s, measured_s=last_s - first_s, late_s=late_s,
        trial_s=watch.trial_s(n_workers * (last_s - first_s - late_s)),
        end_s=max(0.0, ended_s - last_s), work=watch.work, slowest_s=max(watch.pace_s.values()),
        spread=_spread(watch.gains, first_s, last_s), n_ended=watch.n_ended,
        n_failed=watch.n_failed, failure=watch.failure, is_whole=is_whole,
        worker_bytes=watch.worker_bytes, trial_bytes=watch.trial_bytes,
        file_bytes={name: statistics.fmean(sizes) for name, sizes in watch.file_bytes.items()},
        record_bytes=watch.record_bytes(),
    )  # fmt: skip


def _spread(gains: Sequence[tuple[float, float]], from_s: float, to_s: float) -> float:
    """Two standard errors of the speed, relative, by the speeds of N_BLOCKS equal parts."""
    blocks = [0.0] * N_BLOCKS
    length_s = max(to_s - from_s, 1e-6) / N_BLOCKS
    for at_s, work in gains:
        blocks[min(N_BLOCKS - 1, int((at_s - from_s) / length_s))] += work
    mean = statistics.fmean(blocks)
    error = statistics.stdev(blocks) / math.sqrt(N_BLOCKS)
    return min(MOST_SPREAD, max(LEAST_SPREAD, 2 * error / mean))
