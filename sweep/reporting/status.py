"""How far a study is, read from its storage: for those who did not start its search.

Ended trials are the ledger's; what running ones have reached is the driver's word, at most some
seconds old. Nothing is written.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweep.config.settings import RunConfig
from sweep.errors import ConfigError
from sweep.ledger.locks import Owner, owner_of
from sweep.ledger.orders import LiveSearch, LiveTrial
from sweep.ledger.study import Ledger
from sweep.ledger.trials import LedgerTrial
from sweep.reporting.formats import format_duration
from sweep.reporting.lines import format_line, status_pairs, trial_pairs
from sweep.reporting.progress import Progress, TrialProgress
from sweep.space import run_name
from sweep.trial import (
    DEVICE_TAG,
    EPOCHS_DONE,
    EpochReport,
    StudyInfo,
    TrialFinished,
    TrialStarted,
    TrialState,
    WorkerReady,
    now_ms,
)

NO_SEARCH = LiveSearch(0, 0, 0, ())


@dataclass(frozen=True)
class StudyStatus:
    """A study at one moment."""

    study: str
    owner: Owner | None
    """The process that runs it; None: nobody."""
    progress: Progress = field(repr=False)
    """Its trials, as the search's own display has them."""
    n_queued: int
    """Trials that were queued and have not begun."""

    @property
    def is_running(self) -> bool:
        """Whether a process runs the study."""
        return self.owner is not None

    @property
    def n_by_state(self) -> dict[str, int]:
        """Number of ended trials by state."""
        return {str(s): self.progress.counts[s] for s in TrialState if s.is_finished}

    @property
    def eta_s(self) -> float | None:
        """Estimated seconds until the last trial is done; None: not running, or too early."""
        return self.progress.eta_s() if self.is_running else None

    @property
    def headline(self) -> str:
        """Who runs the study, or what goes on with it."""
        name, queued = self.study, f"; {self.n_queued} queued" if self.n_queued else ""
        if self.owner is not None:
            since_s = time.time() - (self.owner.since_s or time.time())
            since = f" for {format_duration(since_s)}" if self.owner.since_s else ""
            return f"{name}: {self.owner} runs it{since}{queued}"
        is_done = self.progress.n_done >= self.progress.study.n_trials
        more = f": `sweep run --study {shlex.quote(name)}` goes on"
        return f"{name}: nobody runs it{'' if is_done else more}{queued}"

    def fields(self) -> dict[str, Any]:
        """All of it in plain values."""
        progress = self.progress
        return {
            "study": self.study,
            "state": "running" if self.is_running else "idle",
            "by": str(self.owner) if self.owner else None,
            "finished": progress.n_done,
            "of": progress.study.n_trials,
            **{state.lower(): n for state, n in self.n_by_state.items()},
            "metric": progress.study.metric,
            "best": progress.best_value,
            "best_trial": progress.best_number,
            "eta_s": self.eta_s,
            "running": [_row(trial) for trial in progress.ranked()],
            "interrupted": sorted(progress.interrupted),
            "queued": self.n_queued,
        }

    def lines(self) -> list[str]:
        """For a pipe: the study's line, then one for each running trial."""
        progress, owner = self.progress, self.owner
        head = {"study": self.study, "state": "running" if owner else "idle"}
        head |= {"by": str(owner)} if owner else {}
        pairs = {k: v for k, v in status_pairs(progress).items() if owner or k not in _OF_A_SEARCH}
        rows = [
            trial_pairs(
                progress, trial, TrialState.RUNNING, trial.values[-1] if trial.values else None,
                trial.epoch,
            )
            for trial in progress.ranked()
        ]  # fmt: skip
        return [format_line({**head, **pairs}), *map(format_line, rows)]


_OF_A_SEARCH = ("running", "leading", "elapsed", "eta")
"""Pairs that a study without a search lacks."""


class Watcher:
    """Looks at a study again and again; a trial that has ended is read once.

    Raises ConfigError for another program's study.
    """

    def __init__(self, ledger: Ledger, config: RunConfig) -> None:
        if not ledger.config:
            raise ConfigError(
                f"study {ledger.name!r} is another program's: `sweep trials {ledger.name}` shows "
                "its trials"
            )
        self._ledger, self._config = ledger, config
        self._direction, self._device = ledger.direction, ledger.tags.get(DEVICE_TAG, "")
        self._trials: dict[int, LedgerTrial] = {}

    def look(self) -> StudyStatus:
        """The study now. Raises StoreError."""
        config = self._config
        owner = owner_of(Path(config.work_dir), config.study_name, config.storage)
        live = self._ledger.orders.told() if owner is not None else None
        if live is None or live.time_ms < 1000 * ((owner and owner.since_s) or 0) - EARLIER_MS:
            live = NO_SEARCH  # its first word is to come
        self._read(live)
        trials = [self._trials[number] for number in sorted(self._trials)]
        n_queued = sum(t.is_foreign and t.queued is not None for t in trials)
        progress = self._progress(trials, live, is_running=owner is not None)
        return StudyStatus(self._ledger.name, owner, progress, n_queued)

    def _read(self, live: LiveSearch) -> None:
        """Bring the trials up to the ledger."""
        if not self._trials:
            self._trials = {trial.number: trial for trial in self._ledger.trials()}
            return
        known_to_run = {trial.number for trial in live.trials}
        for number, trial in self._trials.items():
            if not trial.state.is_finished and number not in known_to_run:
                self._trials[number] = self._ledger.trial(number)
        new = self._ledger.trials_from(max(self._trials) + 1)
        self._trials |= {trial.number: trial for trial in new}

    def _progress(
        self, trials: Sequence[LedgerTrial], live: LiveSearch, *, is_running: bool
    ) -> Progress:
        clock_s = [live.began_ms / 1000]
        progress = Progress(self._info(trials), lambda: clock_s[0])
        ended = [t for t in trials if t.state.is_finished]
        earlier = [t for t in ended if t.result.get("time_ms", 0) < live.began_ms]
        _end(progress, earlier)
        clock_s[0] = live.training_ms / 1000
        progress.begin_measuring()
        if live.trials or not is_running:
            progress.apply(WorkerReady(None, self._device, max(1, len(live.trials)), 0))
        clock_s[0] = live.time_ms / 1000
        _end(progress, [t for t in ended if t.result.get("time_ms", 0) >= live.began_ms])
        said = {trial.number: trial for trial in live.trials}
        left = [t for t in trials if not (t.state.is_finished or t.is_foreign)]
        for trial in left:
            if is_running and trial.state is TrialState.RUNNING:
                _run(progress, trial, said.get(trial.number))
            else:
                _interrupt(progress, trial)
        if live.trials:
            clock_s[0] = max(now_ms() / 1000, clock_s[0])
        return progress

    def _info(self, trials: Sequence[LedgerTrial]) -> StudyInfo:
        """The study as displays need it; its total may have grown since the last look."""
        stored, config = self._ledger.config, self._config
        n_finished = sum(trial.state.is_finished for trial in trials)
        asked = [o.number for o in self._ledger.orders.kept() if o.verb == "extend"]
        return StudyInfo(
            self._ledger.name, max([stored.get("trials", 0), n_finished, *asked]), config.metric,
            self._direction, config.epochs, stored, config.space_name, "", 0,
        )  # fmt: skip


EARLIER_MS = 5000
"""A search begins a moment before its lock is taken; clocks of two machines differ."""


def _started(trial: LedgerTrial) -> TrialStarted:
    name = run_name(trial.number, trial.hyperparameters)
    return TrialStarted(trial.number, name, trial.hyperparameters, trial.params, 0)


def _end(progress: Progress, trials: Sequence[LedgerTrial]) -> None:
    for trial in trials:
        progress.apply(_started(trial))
        progress.apply(
            TrialFinished(trial.number, trial.state, 0, trial.value, None, {}, len(trial.curve))
        )


def _run(progress: Progress, known: LedgerTrial, said: LiveTrial | None) -> None:
    """A running trial, with its latest points."""
    trial = progress.apply(_started(known))
    if trial is None or said is None:
        return
    for at, value in enumerate(said.values, 1):
        metrics = {progress.study.metric: value, EPOCHS_DONE: said.epochs_done}
        progress.apply(EpochReport(said.number, at, metrics, 0))
    trial.resumed_at = said.resumed_at
    if progress.is_better(said.best, trial.best):
        trial.best = said.best


def _interrupt(progress: Progress, trial: LedgerTrial) -> None:
    """A trial that waits for the next search, with the epochs that are known of it."""
    progress.apply(_started(trial))
    for epoch, value in sorted(trial.curve.items()):
        metrics = {progress.study.metric: value}
        progress.apply(EpochReport(trial.number, epoch, metrics, 0, is_replay=True))
    progress.apply(TrialFinished(trial.number, TrialState.WAITING, 0, None, None, {}, 0))


def _row(trial: TrialProgress) -> dict[str, Any]:
    return {
        "number": trial.number,
        "name": trial.name,
        "epochs": trial.epochs_done,
        "value": trial.values[-1] if trial.values else None,
        "best": trial.best,
    }
