"""MlflowTracker: the Listener to keep MLflow in step with a search.

It remembers the trials with incomplete runs, and a thread of its own hands one after the
other to `Mirror.sync`. There is no queue of records: after an outage, an error or a kill the same
histories are synced again, from memory or from the ledger. Loads mlflow on open() only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.databases import sqlite
from sweep.errors import StoreError, UndeliveredError
from sweep.objective import Objective
from sweep.redact import redacted
from sweep.tracking.uri import one_line, quiet, without_credentials
from sweep.trial import (
    DEVICE_TAG,
    MAX_RANKED,
    EpochReport,
    Pulse,
    Ranked,
    Record,
    StudyExtended,
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


@dataclass(frozen=True, slots=True)
class Pace:
    """How often the store is asked, in seconds."""

    flush_s: float = 5.0
    """The curves of running trials are gathered for at least this long."""
    first_retry_s: float = 0.5
    """A store that did not answer is asked again after this long, then after twice this, ..."""
    retry_s: float = 5.0
    """... and at least this often."""
    grace_s: float = 10.0
    """At the end a store that does not answer is asked for this long."""


@dataclass
class Pending:
    """A possibly incomplete run: a trial's, or the study's own."""

    started: TrialStarted | None = None
    """None: the study's own run."""
    reports: list[EpochReport] = field(default_factory=list)
    finished: TrialFinished | None = None
    n_new: int = 0
    """Counts what came in since its run was in step."""
    is_urgent: bool = True
    """Its run begins or ends: not only new points, which can wait for a flush."""
    n_tries: int = 0
    retry_at: float = 0.0
    error: Exception | None = None
    """Why MLflow refused it last."""

    @property
    def is_behind(self) -> bool:
        """Whether its run lacks something."""
        return self.n_new > 0

    @property
    def is_wanted(self) -> bool:
        """Whether MLflow may still take it."""
        return self.is_behind and self.n_tries < TRIES

    @property
    def is_final(self) -> bool:
        """Whether nothing more will come of it."""
        return self.finished is not None and self.finished.state.is_finished


class MlflowTracker:
    """Keeps a study in MLflow, by `sweep.tracking.mirror`.

    Args:
        tracking_uri: sqlite:///FILE, another database, or the http address of a server.
        log_file: File for MLflow's own messages; None: nowhere.
        pace: How often and how long a store is asked.
        on_stored: Told a finished trial's number once MLflow has its files, by a thread of the
            tracker's; answers with trials whose files MLflow is to drop.
    """

    def __init__(
        self,
        tracking_uri: str,
        log_file: Path | None = None,
        *,
        pace: Pace | None = None,
        on_stored: Callable[[int], Sequence[int]] | None = None,
    ) -> None:
        self._uri, self._log_file = tracking_uri, log_file
        self._on_stored = on_stored or (lambda number: ())
        self._pace = pace or Pace()
        self._mirror: Mirror | None = None
        self._study: StudyInfo | None = None
        self._end: StudyFinished | None = None
        self._ranking: list[Ranked] = []
        """Files for the study's own run: path of the artifact -> content."""
        self._lock = threading.Lock()
        self._trials: dict[int, Pending] = {}
        self._dropped: list[int] = []
        self._own = Pending()
        """The study's own run."""
        self._error: Exception | None = None
        """Why the store does not answer."""
        self.has_kept_more = False
        """MLflow refused to drop files."""
        self._flush_at = self._describe_at = self._retry_at = self._away_since = 0.0
        self._alive_at = 0.0
        self._is_storing_files = self._is_closing = False
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._opened = contextlib.ExitStack()

    def open(self, study: StudyInfo) -> None:
        """Make experiment and parent run, or find those of a continued study.

        A study known to MLflow (`is_known`) goes on if the store does not answer: see `warning`.

        Raises:
            StoreError: The store cannot be reached or written (DiskError: for want of space or
                rights).
        """
        with quiet():
            from sweep.tracking.store import is_lasting, routed

        self._study, self._ranking = study, list(study.ranking)
        with contextlib.ExitStack() as stack:
            stack.enter_context(routed(self._log_file))
            try:
                self._connect()
            except StoreError as error:
                if not study.is_known or is_lasting(error.__cause__):
                    raise
                self._away(error)
            self._opened = stack.pop_all()
        self._own.n_new = 1
        self._alive_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="sweep-tracking", daemon=True)
        self._thread.start()

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
            f"MLflow at {redacted(self._uri)} does not answer: the search goes on, its trials are "
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
        assert self._study is not None
        if isinstance(record, WorkerReady):
            tags = {**self._study.tags, DEVICE_TAG: record.device}
            self._study = dataclasses.replace(self._study, dataset=record.dataset, tags=tags)
            self._own.n_new += 1
        elif isinstance(record, StudyExtended):
            config = {**self._study.config, "trials": record.n_trials}
            self._study = dataclasses.replace(self._study, n_trials=record.n_trials, config=config)
            self._own.n_new += 1
        elif isinstance(record, StudyFinished):
            self._end, self._ranking = record, list(record.ranking)
            self._own.n_new += 1
        elif isinstance(record, TrialStarted):
            begun = self._trials.setdefault(record.number, Pending())
            begun.started, begun.finished, begun.is_urgent = record, None, True
            begun.n_new += 1
        elif (
            isinstance(record, EpochReport | Pulse | TrialFinished)
            and record.number in self._trials
        ):
            pending = self._trials[record.number]
            pending.n_new += 1
            if isinstance(record, EpochReport):
                pending.reports.append(record)
            elif isinstance(record, TrialFinished):
                pending.finished, pending.is_urgent = record, True
                self._note_score(record)

    def _note_score(self, record: TrialFinished) -> None:
        started = self._trials[record.number].started
        assert started is not None
        assert self._study is not None
        if record.state is not TrialState.COMPLETE or record.value is None:
            return
        objective = Objective(self._study.metric, self._study.direction)
        self._ranking.append(Ranked(record.number, started.name, record.value))
        self._ranking.sort(key=lambda r: (-objective.goodness(r.value), r.number))
        del self._ranking[MAX_RANKED:]

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
            refused = [pending.error for pending in (*self._trials.values(), self._own)]
            error = self._error or next(filter(None, refused), None)
        what = [named(behind)] if behind else []
        what += ["the study itself"] if self._own.is_behind else []
        said = list(self._mirror.lost) if self._mirror else []
        if what:
            name = self._study.name if self._study else "STUDY"
            why = f" ({one_line(error)})" if error else ""
            lacks = (
                f"MLflow lacks records of {' and '.join(what)}{why}: the same command, or `sweep "
                f"doctor {name} --fix`, brings them once MLflow takes them; Optuna has them all"
            )
            said.insert(0, lacks)
        if said:
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
            with self._lock:
                errors = [p.error for p in (*self._trials.values(), self._own)]
            if any(error and sqlite.is_disk_full(error) for error in (self._error, *errors)):
                break  # waiting makes no room
            left_s = deadline - time.monotonic()
            time.sleep(max(0.02, min(self._pace.first_retry_s, left_s)))

    def _wait(self) -> None:
        """Until records come, or the next flush, try or description is due."""
        now = time.monotonic()
        with self._lock:
            waiting = [pending for pending in self._trials.values() if pending.is_wanted]
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
            if self._away_since:  # the answer of the last call may have been lost
                mirror.read()
                mirror.make()
            is_flush = is_last or now >= self._flush_at
            for number in self._due(is_flush=is_flush, is_last=is_last):
                self._sync(mirror, self._trials[number], number)
            if is_flush:
                # With many trials a round takes long (5 ms each): then it comes less often.
                took_s = time.monotonic() - now
                self._flush_at = now + max(self._pace.flush_s, took_s / MAX_SHARE)
            if self._is_description_due(is_last=is_last):
                self._describe_at = now + DESCRIBED_EVERY_S
                self._sync(mirror, self._own)
            self._drop(mirror)
        except Exception as error:  # noqa: BLE001 - the thread must live: the store is asked again
            self._away(error)
            return False
        self._back()
        with self._lock:
            return not any(p.is_wanted for p in (*self._trials.values(), self._own))

    def _drop(self, mirror: Mirror) -> None:
        """Delete files that are not wanted any more. Raises if the store does not answer."""
        numbers = list(self._dropped)
        try:
            if numbers:
                mirror.drop_files(numbers)
        except Exception as error:
            without_credentials(error)
            if not mirror.answers():
                raise
            _log.warning("MLflow keeps files of %s", named(numbers), exc_info=error)
            self.has_kept_more = True
        del self._dropped[: len(numbers)]

    def _due(self, *, is_flush: bool, is_last: bool) -> list[int]:
        """Trials to sync now; begun and ended ones come first."""
        now = time.monotonic()
        with self._lock:
            due = [
                (not pending.is_urgent, number)
                for number, pending in self._trials.items()
                if pending.is_wanted
                and (pending.is_urgent or is_flush)
                and (now >= pending.retry_at or is_last)
            ]
        return [number for _, number in sorted(due)]

    def _is_description_due(self, *, is_last: bool) -> bool:
        now, own = time.monotonic(), self._own
        with self._lock:
            # The end names the best run and its model, which come first.
            if self._end is not None and any(p.is_wanted for p in self._trials.values()):
                return False
        has_news = own.is_behind or now >= self._describe_at
        return has_news and own.n_tries < TRIES and (now >= own.retry_at or is_last)

    def _sync(self, mirror: Mirror, pending: Pending, number: int = -1) -> None:
        """Bring one run up to date. Raises if the store does not answer."""
        with self._lock:
            n_new, started = pending.n_new, pending.started
            assert self._study is not None
            study, end, ranking = self._study, self._end, tuple(self._ranking)
            told = tuple(pending.reports), pending.finished
            history = TrialHistory(started, *told) if started is not None else None
            self._is_storing_files = pending.is_final
            is_begun = pending.is_urgent and pending.finished is None and not self._is_closing
        try:
            mirror.study = study
            if pending is self._own:
                mirror.sync_study(study, end, ranking)
            elif history is not None and is_begun:
                mirror.begin(history.started)
            elif history is not None:
                mirror.sync(history)
        except Exception as error:
            without_credentials(error)
            if not mirror.answers(number if started is not None else None):
                raise
            pending.error = error
            pending.n_tries += 1
            pending.retry_at = time.monotonic() + self._pace.first_retry_s * 2**pending.n_tries
            what = named([number]) if started is not None else "the study's own run"
            _log.warning("MLflow refuses %s", what, exc_info=error)
            return
        finally:
            self._alive_at, self._is_storing_files = time.monotonic(), False
        with self._lock:
            pending.n_tries, pending.error = 0, None
            if is_begun:  # its parameters come with the next flush, or with its end
                pending.is_urgent = pending.finished is not None
                return
            pending.n_new -= n_new
            pending.is_urgent = pending.is_urgent and pending.is_behind
            is_done = pending.is_final and not pending.is_behind
            if is_done:
                del self._trials[number]
        if is_done:
            self._dropped += self._on_stored(number)

    def _connect(self) -> Mirror:
        """The mirror of the study, opened once the store answers."""
        if self._mirror is None:
            assert self._study is not None
            with quiet():
                from sweep.tracking.mirror import Mirror
                from sweep.tracking.store import opened
            with opened(self._uri, create=True) as client:
                mirror = Mirror(client, self._study)
                mirror.make()
            self._mirror = mirror
        return self._mirror

    def _away(self, error: Exception) -> None:
        """The store did not answer: ask again later, less and less often."""
        now = time.monotonic()
        without_credentials(error)
        if not self._away_since:
            self._away_since = now
            _log.warning("MLflow does not answer, trials wait", exc_info=error)
        self._error = error
        away_s = now - self._away_since
        self._retry_at = now + min(max(away_s, self._pace.first_retry_s), self._pace.retry_s)

    def _back(self) -> None:
        self._retry_at = 0.0
        if self._away_since:
            _log.warning("MLflow answers again after %.0f s", time.monotonic() - self._away_since)
            self._away_since, self._error = 0.0, None


def named(numbers: Sequence[int]) -> str:
    """At most five numbers, and how many more there are.

    >>> named([3]), named([1, 2, 3, 4, 5, 6, 7])
    ('trial 3', 'trials 1, 2, 3, 4, 5 (and 2 more)')
    """
    if len(numbers) == 1:
        return f"trial {numbers[0]}"
    more = f" (and {len(numbers) - 5} more)" if len(numbers) > 5 else ""
    return f"trials {', '.join(map(str, numbers[:5]))}{more}"
