"""Brings MLflow and the work folder in step with the ledger, before and after a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sweep.config.settings import RunConfig
from sweep.errors import DiskError, StoreError, UndeliveredError
from sweep.keeping import gc
from sweep.keeping.retention import KeepBest
from sweep.ledger.trials import LedgerTrial
from sweep.protocols import Listener

if TYPE_CHECKING:
    from sweep.ledger.study import Ledger
    from sweep.tracking import MlflowTracker


class Upkeep:
    """A search's MLflow tracker (None if not `is_tracked`) and its bounds on files."""

    def __init__(self, config: RunConfig, *, is_tracked: bool) -> None:
        self._config = config
        self.tracker: MlflowTracker | None = None
        self.retention: KeepBest | None = None
        """None: all files stay."""
        self._is_delivered: bool | None = None
        """Whether MLflow has all trials of earlier searches; None: there are none."""
        if is_tracked:
            from sweep.tracking import MlflowTracker

            self.retention = retention = KeepBest(config)
            self.tracker = MlflowTracker(
                config.tracking_uri,
                config.study_dir / "sweep.log",
                on_stored=retention.stored,
            )

    @property
    def listeners(self) -> list[Listener]:
        """The tracker, or nobody."""
        return [] if self.tracker is None else [self.tracker]

    def deliver(self, ledger: Ledger) -> None:
        """Bring MLflow up to a study that has all its trials. Raises UndeliveredError."""
        if self.tracker is not None and not ledger.is_settled:
            bring_up(self._config, ledger)
            gc.tidy(self._config, ledger.trials())
            ledger.settle(True)

    def reconcile(self, ledger: Ledger, trials: Sequence[LedgerTrial]) -> list[str]:
        """Bring MLflow up to earlier `trials`, and files within their bounds.

        Returns lines for the user. MLflow may be away: `finish` tries again.
        """
        if self.tracker is None or not trials:
            return []
        stored: Mapping[int, int] = {}
        warning = self.tracker.warning
        lines = [] if warning is None else [warning]
        try:
            lines = lines or _refused(self._config, ledger, is_live=True)
            self._is_delivered = not lines
            if self._is_delivered:
                stored, kept = gc.tidy(self._config, ledger.trials())
                lines = [kept] if kept else []
        except StoreError as error:
            if isinstance(error, DiskError):
                raise
            self._is_delivered, stored = False, {}
            lines = [f"{error}: the search goes on, MLflow is brought up at its end"]
        if self.retention is not None:
            self.retention.recall(trials, stored, is_delivered=self._is_delivered)
        return lines

    def finish(self, ledger: Ledger) -> None:
        """Deliver what `reconcile` could not, delete unwanted files. Raises UndeliveredError."""
        if self.tracker is not None:
            if self._is_delivered is False:
                bring_up(self._config, ledger)
            is_kept_up = self._is_delivered is not False and not self.tracker.has_kept_more
            gc.tidy(self._config, ledger.trials(), is_kept_up=is_kept_up)


def bring_up(config: RunConfig, ledger: Ledger) -> None:
    """Bring MLflow up to the study's finished trials.

    Raises UndeliveredError if MLflow refuses some, StoreError if it is away.
    """
    if refused := _refused(config, ledger):
        raise UndeliveredError("; ".join(refused))


def _refused(config: RunConfig, ledger: Ledger, *, is_live: bool = False) -> list[str]:
    """Bring MLflow up; returns one sentence for each trial that MLflow refused."""
    from sweep.repair.reconcile import reconcile_runs
    from sweep.repair.records import StudyRecords

    found = reconcile_runs(
        config.tracking_uri, StudyRecords(config, ledger), fix=True, is_live=is_live,
        is_deep=False, log_file=config.study_dir / "sweep.log",
    )  # fmt: skip
    return [one.sentence for one in found if one.is_refused]
