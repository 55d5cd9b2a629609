"""MlflowTracker: the Listener that keeps every trial in MLflow. Loads mlflow on open() only."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sweep import sqlite
from sweep.errors import StoreError
from sweep.tracking.aside import REFUSED, Aside
from sweep.tracking.delivery import Delivery
from sweep.tracking.marker import Marker, read_marker, shown, write_marker
from sweep.tracking.sink import Pace
from sweep.tracking.spool import SPOOL, Backlog, MemoryBacklog, Spool
from sweep.tracking.uri import quiet
from sweep.trial import DatasetInfo, Record, StudyInfo, WorkerReady

if TYPE_CHECKING:
    from sweep.tracking.study import StudyRuns


class MlflowTracker:
    """Keeps a study in MLflow: see `sweep.tracking.study` for what is written.

    Args:
        tracking_uri: sqlite:///FILE, another database, or the http address of a server.
        log_file: Where MLflow's own messages go; None: nowhere.
        log_model: Whether completed trials get an MLflow logged model.
        study_dir: Folder where records wait while MLflow is away (`spool.jsonl`); its owner
            holds the study's lock. None: they wait in memory and die with the process.
        pace: How often and how long a store is asked.
        on_stored: Told a finished trial's number, and the bytes of its files, once MLflow has
            them; by a thread of the tracker's.
    """

    def __init__(
        self,
        tracking_uri: str,
        log_file: Path | None = None,
        *,
        log_model: bool = True,
        study_dir: Path | None = None,
        pace: Pace | None = None,
        on_stored: Callable[[int, int], None] | None = None,
    ) -> None:
        self._uri, self._log_file, self._log_model = tracking_uri, log_file, log_model
        self._on_stored = on_stored
        self._study_dir, self._pace = study_dir, pace or Pace()
        self._study: StudyInfo | None = None
        self._runs: StudyRuns | None = None
        self._delivery: Delivery | None = None
        self._opened = contextlib.ExitStack()

    def open(self, study: StudyInfo) -> None:
        """Make experiment and parent run, or find those of a study that goes on.

        Records that an earlier process left are delivered first. A study that was opened before
        goes on where the store does not answer: see `warning`.

        Raises:
            StoreError: The store cannot be reached or written (DiskError: for want of space or
                rights).
        """
        marker = read_marker(self._study_dir)
        if marker is not None and study.dataset is None:
            study = dataclasses.replace(study, dataset=marker.study.dataset)
        with contextlib.ExitStack() as stack:
            backlog: Backlog = MemoryBacklog()
            aside: Aside | None = None
            if self._study_dir is not None:
                limit_bytes = self._pace.spool_mb << 20
                backlog = Spool(self._study_dir, limit_bytes)
                aside = Aside(self._study_dir, limit_bytes)
                stack.callback(aside.close)
            stack.callback(backlog.close)
            is_known = marker is not None and marker.is_of(self._uri)
            has_left = backlog.n_untaken > 0
            connect = self._prepare(study, is_catching_up=has_left)
            stack.enter_context(_routed(self._log_file))
            self._runs = self._connect_now(connect, may_wait=is_known)
            self._opened = stack.pop_all()
        self._study = study
        if self._runs is not None and self._study_dir is not None:
            write_marker(self._study_dir, Marker(shown(self._uri), study))
        if has_left or self._runs is None:
            backlog.append([study])
        self._delivery = Delivery(connect, backlog, self._pace, aside)

    @property
    def parent_run_id(self) -> str:
        """The study's parent run. Only after open(). Raises StoreError while it is not known."""
        if self._delivery is None:
            raise RuntimeError("open() comes first")
        if self._runs is None:
            raise StoreError(f"MLflow at {shown(self._uri)} did not answer yet")
        return self._runs.parent.run_id

    @property
    def is_offline(self) -> bool:
        """Whether the store does not answer, so that records wait."""
        if self._delivery is None:
            return False
        return self._runs is None or self._delivery.is_offline

    @property
    def warning(self) -> str | None:
        """One line for the user while the store does not answer, else None."""
        if not self.is_offline:
            return None
        where = f"in {self._study_dir / SPOOL}" if self._study_dir else "in memory"
        return (
            f"MLflow at {shown(self._uri)} does not answer: the search goes on, its records wait "
            f"{where} and are delivered once it does"
        )

    def write(self, records: Sequence[Record]) -> None:
        """Take records; they are delivered by a thread of its own."""
        if self._delivery is None:
            raise RuntimeError("open() comes first")
        self._delivery.put(records)
        for record in records:
            if isinstance(record, WorkerReady):
                self._note_dataset(record.dataset)

    def close(self) -> None:
        """Deliver what is left. Does nothing when it never opened, or the second time.

        Raises:
            UndeliveredError: Some records could not be delivered.
        """
        delivery, self._delivery = self._delivery, None
        if delivery is None:
            return
        try:
            delivery.close()
        finally:
            self._opened.close()
            sqlite.settle(self._uri)

    def _prepare(self, study: StudyInfo, *, is_catching_up: bool) -> Callable[[], StudyRuns]:
        """What connects: called now, and again by the delivery while the store is away."""

        def connect() -> StudyRuns:
            if self._runs is None:
                self._runs = connect_runs(
                    self._uri, study, log_models=self._log_model, is_catching_up=is_catching_up,
                    on_stored=self._on_stored,
                )  # fmt: skip
            return self._runs

        return connect

    def _connect_now(
        self, connect: Callable[[], StudyRuns], *, may_wait: bool
    ) -> StudyRuns | None:
        """The runs; None where the store does not answer and the study may wait for it."""
        from sweep.tracking import store as stores

        try:
            return connect()
        except StoreError as error:
            cause = error.__cause__
            if not may_wait or not isinstance(cause, Exception) or stores.is_lasting(cause):
                raise
            return None

    def _note_dataset(self, dataset: DatasetInfo) -> None:
        """Keep what workers read: a later process may have to log models without any worker."""
        if self._study is None or self._study_dir is None or self._study.dataset == dataset:
            return
        self._study = dataclasses.replace(self._study, dataset=dataset)
        marker = read_marker(self._study_dir)
        if marker is not None:
            write_marker(self._study_dir, Marker(marker.store, self._study))


def deliver_pending(
    tracking_uri: str,
    study_dir: Path,
    log_file: Path | None = None,
    *,
    log_model: bool = True,
    pace: Pace | None = None,
) -> int:
    """Deliver the records that earlier runs of a study left; returns how many there were.

    Those that MLflow refused then come first. The caller holds the study's lock. Loads nothing
    and returns 0 where nothing waits.

    Raises:
        StoreError: The spool is there but cannot be read.
        UndeliveredError: Some, or all, could not be delivered; they wait on.
    """
    if not any(_has_content(study_dir / name) for name in (SPOOL, REFUSED)):
        return 0
    pace = pace or Pace()
    limit_bytes, marker = pace.spool_mb << 20, read_marker(study_dir)
    spool, aside = Spool(study_dir, limit_bytes), Aside(study_dir, limit_bytes)
    n_left = spool.n_untaken + len(aside.before)
    if not n_left or marker is None:
        spool.close()
        aside.close()
        return 0

    def connect() -> StudyRuns:
        return connect_runs(tracking_uri, marker.study, log_models=log_model, is_catching_up=True)

    with _routed(log_file):
        Delivery(connect, spool, pace, aside, again=True).close()
    sqlite.settle(tracking_uri)
    return n_left


def _has_content(file: Path) -> bool:
    return file.is_file() and file.stat().st_size > 0


def connect_runs(
    tracking_uri: str, study: StudyInfo, *, log_models: bool, is_catching_up: bool,
    on_stored: Callable[[int, int], None] | None = None,
) -> StudyRuns:  # fmt: skip
    """The sink that keeps `study` in the store of that address. Raises StoreError."""
    with quiet():
        from sweep.tracking import store as stores
        from sweep.tracking.study import StudyRuns

        store = stores.connect(tracking_uri)
    with stores.in_one_line(f"MLflow at {store.shown}"):
        return StudyRuns(
            store, study, log_models=log_models, is_catching_up=is_catching_up,
            on_stored=on_stored,
        )  # fmt: skip


@contextlib.contextmanager
def _routed(log_file: Path | None) -> Iterator[None]:
    """Within, MLflow's messages go to `log_file`, and it repeats no request by itself."""
    with quiet():
        from sweep.tracking.store import asked_once, route_logs

    route_logs(log_file)
    try:
        with asked_once():
            yield
    finally:
        route_logs(None)
