"""MlflowTracker: the Listener that keeps every trial in MLflow. Loads mlflow on open() only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sweep import sqlite
from sweep.tracking.delivery import Delivery
from sweep.tracking.uri import quiet
from sweep.trial import Record, StudyInfo

if TYPE_CHECKING:
    from sweep.tracking.study import StudyRuns


class MlflowTracker:
    """Keeps a study in MLflow: see `sweep.tracking.study` for what is written.

    Args:
        tracking_uri: sqlite:///FILE, another database, or the http address of a server.
        log_file: Where MLflow's own messages go; None: nowhere.
        log_model: Whether completed trials get an MLflow logged model.
    """

    def __init__(
        self, tracking_uri: str, log_file: Path | None = None, *, log_model: bool = True
    ) -> None:
        self._uri, self._log_file, self._log_model = tracking_uri, log_file, log_model
        self._runs: StudyRuns | None = None
        self._delivery: Delivery | None = None

    def open(self, study: StudyInfo) -> None:
        """Make experiment and parent run, or find those of a study that goes on.

        Raises:
            StoreError: The store cannot be reached or written (DiskError: for want of space or
                rights).
        """
        with quiet():
            from sweep.tracking import store as stores
            from sweep.tracking.study import StudyRuns

            stores.route_logs(self._log_file)
            store = stores.connect(self._uri)
        self._uri = store.uri
        with stores.in_one_line(f"MLflow at {store.shown}"):
            self._runs = StudyRuns(store, study, log_models=self._log_model)
        self._delivery = Delivery(self._runs)

    @property
    def parent_run_id(self) -> str:
        """The study's parent run. Only after open()."""
        if self._runs is None:
            raise RuntimeError("open() comes first")
        return self._runs.parent.run_id

    def write(self, records: Sequence[Record]) -> None:
        """Take records; they are delivered by a thread of its own."""
        if self._delivery is None:
            raise RuntimeError("open() comes first")
        self._delivery.put(records)

    def close(self) -> None:
        """Deliver what is left. Does nothing when it never opened, or the second time.

        Raises:
            UndeliveredError: Some records could not be delivered.
        """
        delivery, self._delivery = self._delivery, None
        if delivery is None:
            return
        from sweep.tracking.store import route_logs

        try:
            delivery.close()
        finally:
            route_logs(None)
            sqlite.settle(self._uri)
