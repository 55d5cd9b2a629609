"""MlflowTracker: the Listener that keeps MLflow in step with a search.

It remembers the trials whose runs lack something, and a thread of its own hands one after the
other to `Mirror.sync`. There is no queue of records: after an outage, an error or a kill the same
histories are synced again, from memory or from the ledger. Loads mlflow on open() only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.databases import sqlite
from sweep.databases.sqlite import is_disk_full
from sweep.errors import StoreError, UndeliveredError
from sweep.objective import Objective
from sweep.tracking.disposal import DROPPED_TAG
from sweep.tracking.pending import Pace, Pending, named
from sweep.tracking.uri import one_line, quiet, shown, without_credentials
from sweep.trial import (
    MAX_RANKED,
    CheckpointDropped,
    EpochReport,
    Ranked,
    Record,
    StudyFinished,
    StudyInfo,
    TrialFinished,
    TrialHistory,
    TrialStarted,
    TrialState,
    WorkerReady,
)

if TYPE_CHECKING:
    from sweep.tracking.mirror import Mirror

MAX_SHARE = 0.05
"""Share of the time that the curves of running trials may take of the thread."""
DESCRIBED_EVERY_S = 60.0
"""The study's description is kept current at this interval while it runs."""
UPLOAD_PATIENCE = 6
"""Times the grace that a call may take at the end: it may be storing files."""
TRIES = 5
"""Times a trial that MLflow refuses is tried while it takes others; then it waits for the next
search or `sweep doctor --fix`."""

_log = logging.getLogger("sweep.tracking")


class MlflowTracker:
    """Keeps a study in MLflow: see `sweep.tracking.mirror` for what is written.

    Args:
        tracking_uri: sqlite:///FILE, another database, or the http address of a server.
        log_file: Where MLflow's own messages go; None: nowhere.
        log_model: Whether completed trials get an MLflow logged model.
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
        pace: Pace | None = None,
        on_stored: Callable[[int, int], None] | None = None,
    ) -> None:
        self._uri, self._log_file, self._log_model = tracking_uri, log_file, log_model
        self._on_stored = on_stored or (lambda number, n_bytes: None)
        self._pace = pace or Pace()
        self._mirror: Mirror | None = None
        self._study: StudyInfo | None = None
        self._end: StudyFinished | None = None
        self._device: str | None = None
        self._ranking: list[Ranked] = []
        self._lock = threading.Lock()
        self._trials: dict[int, Pending] = {}
        self._dropped: list[int] = []
        self._study_changes, self._study_synced, self._study_tries = 0, 0, 0
        self._study_retry_at = 0.0
        self._error: Exception | None = None
        self._refusal: Exception | None = None
        self._flush_at = self._describe_at = self._retry_at = self._away_since = 0.0
        self._next_retry_s = self._pace.first_retry_s
        self._alive_at = 0.0
        self._is_storing_files = self._is_closing = False
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._opened = contextlib.ExitStack()

    def open(self, study: StudyInfo) -> None:
        """Make experiment and parent run, or find those of a study that goes on.

        A study that MLflow knows (`is_known`) goes on where the store does not answer: see
        `warning`.

        Raises:
            StoreError: The store cannot be reached or written (DiskError: for want of space or
                rights).
        """
        self._study, self._ranking = study, list(study.ranking)
        with contextlib.ExitStack() as stack:
            stack.enter_context(routed(self._log_file))
            self._connect_now(may_wait=study.is_known)
            self._opened = stack.pop_all()
        self._study_changes = 1
        self._alive_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="sweep-tracking", daemon=True)
        self._thread.start()

    @property
    def parent_run_id(self) -> str:
        """The study's parent run. Only after open(). Raises StoreError while it is not known."""
        if self._study is None:
            raise RuntimeError("open() comes first")
        if self._mirror is None:
            raise StoreError(f"MLflow at {shown(self._uri)} did not answer yet")
        return self._mirror.parent.run_id

    @property
    def is_offline(self) -> bool:
        """Whether the store did not answer when it was last asked."""
        return self._thread is not None and (self._mirror is None or self._away_since > 0)

    @property
    def warning(self) -> str | None:
        """One line for the user while the store does not answer, else None."""
        if not self.is_offline:
            return None
        return (
            f"MLflow at {shown(self._uri)} does not answer: the search goes on, its trials are "
            "kept in the Optuna storage and brought to MLflow once it does"
        )

    def write(self, records: Sequence[Record]) -> None:
        """Take records; a thread of its own brings MLflow up to them."""
        if self._thread is None:
            raise RuntimeError("open() comes first")
        with self._lock:
            for record in records:
                self._note(record)
        self._wake.set()

    def _note(self, record: Record) -> None:
        if isinstance(record, TrialStarted):
            begun = self._trials.setdefault(record.number, Pending(record))
            begun.started, begun.finished, begun.is_urgent = record, None, True
            begun.n_changes += 1
        elif isinstance(record, EpochReport):
            if (pending := self._trials.get(record.number)) is not None:
                pending.reports.append(record)
                pending.n_changes += 1
        elif isinstance(record, TrialFinished):
            if (pending := self._trials.get(record.number)) is not None:
                pending.finished, pending.is_urgent = record, True
                pending.n_changes += 1
                self._note_score(record, pending.started.name)
        elif isinstance(record, CheckpointDropped):
            self._note_drop(record.number)
        elif isinstance(record, WorkerReady):
            self._device = record.device
            if self._study is not None:
                self._study = dataclasses.replace(self._study, dataset=record.dataset)
            self._study_changes += 1
        elif isinstance(record, StudyFinished):
            self._end, self._ranking = record, list(record.ranking)
            self._study_changes += 1

    def _note_score(self, record: TrialFinished, name: str) -> None:
        if record.state is not TrialState.COMPLETE or record.value is None or self._study is None:
            return
        objective = Objective(self._study.metric, self._study.direction)
        self._ranking.append(Ranked(record.number, name, record.value))
        self._ranking.sort(key=lambda r: (-objective.goodness(r.value), r.number))
        del self._ranking[MAX_RANKED:]

    def _note_drop(self, number: int) -> None:
        pending = self._trials.get(number)
        if pending is not None and pending.finished is not None:
            tags = {**pending.finished.tags, DROPPED_TAG: "true"}
            pending.finished = dataclasses.replace(
                pending.finished, checkpoint=None, model_file=None, tags=tags
            )
            pending.n_changes += 1
        self._dropped.append(number)

    def close(self) -> None:
        """Bring MLflow up to the last record. Does nothing when it never opened, or again.

        Raises:
            UndeliveredError: Some trials are not in MLflow as Optuna has them.
        """
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._is_closing = True
        self._wake.set()
        began = self._alive_at = time.monotonic()
        grace_s = self._pace.grace_s
        try:
            while thread.is_alive():
                thread.join(0.2)
                patience_s = grace_s * (UPLOAD_PATIENCE if self._is_storing_files else 1) + 1.0
                if time.monotonic() - max(began, self._alive_at) > patience_s:
                    break  # it hangs in a call; being a daemon, it ends with the process
            self._raise_if_behind()
        finally:
            self._opened.close()
            sqlite.settle(self._uri)

    def _raise_if_behind(self) -> None:
        with self._lock:
            behind = sorted(n for n, pending in self._trials.items() if pending.is_behind)
            is_study_behind = self._study_synced < self._study_changes
        what = [named(behind)] if behind else []
        what += ["the study itself"] if is_study_behind else []
        lost = list(self._mirror.lost) if self._mirror else []
        if not what and not lost:
            return
        error = self._error or self._refusal
        said = lost
        if what:
            name = self._study.name if self._study else "STUDY"
            why = f" ({one_line(error)})" if error else ""
            said = [
                f"MLflow lacks records of {' and '.join(what)}{why}: the same command, or `sweep "
                f"doctor {name} --fix`, brings them once MLflow takes them; Optuna has them all",
                *said,
            ]
        raise UndeliveredError("; ".join(said)) from error

    # the thread

    def _run(self) -> None:
        while not self._is_closing:
            self._wait()
            self._round(is_last=False)
        deadline = time.monotonic() + self._pace.grace_s
        self._retry_at = 0.0
        while not self._round(is_last=True):
            # A store that answers is not left alone: a trial that it refuses is tried TRIES times.
            if self._away_since and time.monotonic() >= deadline:
                break
            if self._error is not None and is_disk_full(self._error):
                break  # waiting makes no room
            left_s = deadline - time.monotonic()
            time.sleep(max(0.02, min(self._pace.first_retry_s, left_s)))

    def _wait(self) -> None:
        """Until records come, or the next flush, try or description is due."""
        now = time.monotonic()
        with self._lock:
            waiting = [p for p in self._trials.values() if p.is_behind]
            due = [p.retry_at if p.n_tries else self._flush_at for p in waiting]
        due += [self._describe_at] if self._mirror else []
        at = self._retry_at if self._away_since else min(due, default=now + DESCRIBED_EVERY_S)
        self._wake.wait(max(0.0, at - now))
        self._wake.clear()

    def _round(self, *, is_last: bool) -> bool:
        """Sync whatever is due; returns whether nothing is left to do."""
        now = time.monotonic()
        if now < self._retry_at and not is_last:
            return False
        try:
            mirror = self._connect()
            if self._study is not None and self._study.dataset is not None:
                mirror.read(self._study.dataset)
            is_flush = is_last or now >= self._flush_at
            for number in self._due(is_flush=is_flush, is_last=is_last):
                self._sync_trial(mirror, number)
            if is_flush:
                # With many trials a round takes long (5 ms each): then it comes less often.
                took_s = time.monotonic() - now
                self._flush_at = now + max(self._pace.flush_s, took_s / MAX_SHARE)
            self._sync_study(mirror, is_last=is_last)
            self._drop_files(mirror)
        except _AwayError as away:
            self._away(away.error)
            return False
        except Exception as error:  # noqa: BLE001 - the thread must live: the store is asked again
            self._away(error)
            return False
        self._back()
        with self._lock:
            is_behind = self._is_behind()
            is_study_behind = self._study_synced < self._study_changes
        return not is_behind and not (is_study_behind and self._study_tries < TRIES)

    def _is_behind(self) -> bool:
        """Whether a trial's run lacks something that MLflow may still take."""
        return any(p.is_behind and p.n_tries < TRIES for p in self._trials.values())

    def _due(self, *, is_flush: bool, is_last: bool) -> list[int]:
        """Trials to sync now, those that begin or end first."""
        now = time.monotonic()
        with self._lock:
            due = [
                (not pending.is_urgent, number)
                for number, pending in self._trials.items()
                if pending.is_behind
                and (pending.is_urgent or is_flush)
                and (pending.n_tries < TRIES and (now >= pending.retry_at or is_last))
            ]
        return [number for _, number in sorted(due)]

    def _sync_trial(self, mirror: Mirror, number: int) -> None:
        with self._lock:
            pending = self._trials[number]
            history, n_changes = pending.history(), pending.n_changes
            self._is_storing_files = pending.is_final
            is_begun = pending.is_urgent and pending.finished is None and not self._is_closing
        try:
            n_bytes = mirror.begin(history.started) if is_begun else mirror.sync(history)
        except Exception as error:  # noqa: BLE001 - kept, and raised by close()
            without_credentials(error)
            self._refused(mirror, pending, error)
            return
        finally:
            self._alive_at, self._is_storing_files = time.monotonic(), False
        with self._lock:
            if is_begun:  # its parameters come with the next flush, or with its end
                pending.is_urgent, pending.n_tries = pending.finished is not None, 0
                return
            pending.n_synced, pending.n_tries = n_changes, 0
            pending.is_urgent = pending.is_urgent and n_changes < pending.n_changes
            is_done = pending.is_final and not pending.is_behind
            if is_done:
                del self._trials[number]
        if is_done:
            self._on_stored(number, n_bytes)

    def _refused(self, mirror: Mirror, pending: Pending, error: Exception) -> None:
        """Tell a trial that is refused from a store that is away. Raises _AwayError."""
        number = pending.started.number
        run_is_deleted = False
        with contextlib.suppress(Exception):
            run_is_deleted = mirror.is_deleted(number)
        mirror.forget(number)
        if run_is_deleted:
            self._let_go(pending)
            return
        if not mirror.answers():
            raise _AwayError(error)
        self._refusal = error
        pending.n_tries += 1
        pending.retry_at = time.monotonic() + self._pace.first_retry_s * 2**pending.n_tries
        _log.warning("MLflow refuses trial %d", number, exc_info=error)

    def _let_go(self, pending: Pending) -> None:
        """The user deleted this run in MLflow: that is respected. `sweep doctor` sees a restored
        one."""
        pending.is_let_go = True

    def _sync_study(self, mirror: Mirror, *, is_last: bool) -> None:
        now = time.monotonic()
        with self._lock:
            study, end, ranking = self._study, self._end, tuple(self._ranking)
            n_changes = self._study_changes
            has_news = self._study_synced < n_changes or now >= self._describe_at
            # The end names the best run and its model, which come first.
            if end is not None and self._is_behind():
                return
        is_waiting = self._study_tries > 0 and now < self._study_retry_at and not is_last
        if study is None or not has_news or is_waiting or self._study_tries >= TRIES:
            return
        self._describe_at = now + DESCRIBED_EVERY_S
        try:
            mirror.sync_study(study, end, ranking, self._device)
        except Exception as error:
            without_credentials(error)
            if not self._takes_trials(mirror):
                raise
            self._refusal = error
            self._study_tries += 1
            self._study_retry_at = now + self._pace.first_retry_s * 2**self._study_tries
            return
        self._study_synced, self._study_tries = n_changes, 0

    def _takes_trials(self, mirror: Mirror) -> bool:
        """Whether the store answers though it refuses the study's own run."""
        try:
            mirror.ping()
        except Exception:  # noqa: BLE001 - whatever it is, that is no answer
            return False
        return True

    def _drop_files(self, mirror: Mirror) -> None:
        with self._lock:
            due = [n for n in self._dropped if n not in self._trials]
            self._dropped = [n for n in self._dropped if n in self._trials]
        for at, number in enumerate(due):
            try:
                mirror.drop_files(number)
            except Exception:
                with self._lock:
                    self._dropped += due[at:]
                raise

    def _connect(self) -> Mirror:
        if self._mirror is None:
            assert self._study is not None
            self._mirror = open_mirror(self._uri, self._study, log_models=self._log_model)
        return self._mirror

    def _connect_now(self, *, may_wait: bool) -> None:
        with quiet():
            from sweep.tracking import store as stores

        try:
            self._connect()
        except StoreError as error:
            cause = error.__cause__
            if not may_wait or not isinstance(cause, Exception) or stores.is_lasting(cause):
                raise
            self._away(error)

    def _away(self, error: Exception) -> None:
        """The store did not answer: ask again later, less and less often."""
        now = time.monotonic()
        without_credentials(error)
        if not self._away_since:
            self._away_since = now
            _log.warning("MLflow does not answer, trials wait", exc_info=error)
        self._error = error
        self._retry_at = now + self._next_retry_s
        self._next_retry_s = min(2 * self._next_retry_s, self._pace.retry_s)

    def _back(self) -> None:
        self._retry_at = 0.0
        if self._away_since:
            _log.warning("MLflow answers again after %.0f s", time.monotonic() - self._away_since)
            self._away_since = 0.0
            self._next_retry_s = self._pace.first_retry_s
        self._error = None


class _AwayError(Exception):
    """The store took neither a trial nor a word about the study."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def open_mirror(tracking_uri: str, study: StudyInfo, *, log_models: bool) -> Mirror:
    """The mirror of `study` in the store of that address. Raises StoreError."""
    with quiet():
        from sweep.tracking import store as stores
        from sweep.tracking.mirror import Mirror

        store = stores.connect(tracking_uri)
    with stores.in_one_line(f"MLflow at {store.shown}"):
        return Mirror(store, study, log_models=log_models)


def bring_up(tracking_uri: str, study: StudyInfo, history: TrialHistory) -> None:
    """Write whatever a trial's run lacks of `history`, now. Raises StoreError."""
    mirror = open_mirror(tracking_uri, study, log_models=True)
    with quiet():
        from sweep.tracking.store import in_one_line
    with in_one_line(f"MLflow at {shown(tracking_uri)}"):
        mirror.sync(history)


@contextlib.contextmanager
def routed(log_file: Path | None) -> Iterator[None]:
    """Within, MLflow's messages go to `log_file`, and it repeats no request by itself."""
    with quiet():
        from sweep.tracking.store import asked_once, route_logs

    route_logs(log_file)
    try:
        with asked_once():
            yield
    finally:
        route_logs(None)
