"""One line per trial, for pipes, log files and grep.

    study=digits-mlp trials=50 epochs=10 metric=val_acc direction=maximize population=32 device=cpu
    trial=17 state=COMPLETE val_acc=0.98222 best=0.98333@12 epoch=10/10 best_epoch=7 seconds=3 ...
    progress=0.41 trials=17/50 running=32 best=0.98333@12 leading=0.98413@21 elapsed=60 eta=87

A line is `key=value` pairs with one space between them, ASCII only, in a fixed order. The first
line comes once a worker is ready and describes the search (`done`: finished trials of earlier
sessions, if any). A line of a trial:

    trial       number of the trial
    state       COMPLETE, PRUNED or FAIL; RUNNING for a line about an epoch (-v)
    <metric>    the study's metric under its own name: at the best epoch, or of this epoch
    best        best value of the study's complete trials so far @ its trial
    epoch       epochs trained / epochs at most
    best_epoch  the epoch of the kept checkpoint; finished trials only
    seconds     the trial's training time; RUNNING: of this epoch (its share in a population)
    failure     failed trials only: oom, nan, exception, killed or timeout, then `message`
    ...         finished trials: its hyperparameters; RUNNING: its other metrics

Every minute one line of the search:

    progress    finished part of the study, from 0 to 1; a trial counts by its epochs
    trials      finished trials / all trials
    running     number of running trials
    best        as above
    leading     best value of the running trials @ its trial
    elapsed     seconds since the study was opened
    eta         estimated seconds until its end, once two epochs were measured

An unknown value is `-`. Text with anything but plain printable characters is quoted as a JSON
string. A hyperparameter named like a key above has `hp.` before its name. A notice is a line
`notice="..."`. `parse_line` reads all of it back.
"""

from __future__ import annotations

import json
import os
import queue
import re
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from sweep.reporting.formats import format_duration, format_number, format_value
from sweep.reporting.progress import Progress, TrialProgress
from sweep.trial import (
    EpochReport,
    Notice,
    Record,
    StudyInfo,
    TrialFinished,
    TrialState,
    WorkerReady,
)

Pairs = list[tuple[str, str]]

KEYS = (
    "trial", "state", "best", "epoch", "best_epoch", "seconds", "failure", "message", "notice",
)  # fmt: skip
"""Keys of a trial's line, beside the metric's."""
STATUS_EVERY_S = 60.0
LOADING = "starting: a worker loads PyTorch and the data"
STOPPING = "stopping at the end of the epoch; Ctrl-C again stops now"

_BARE = re.compile(r"[!#-<>-\[\]-~]+")
_TOKEN = r'"(?:[^"\\]|\\.)*"|[!#-<>-\[\]-~]+'
_PAIR = re.compile(f"({_TOKEN})=({_TOKEN})(?: |$)")


def format_line(pairs: Iterable[tuple[str, str]]) -> str:
    r"""`key=value` pairs on one line of ASCII, quoted where needed.

    >>> format_line([("trial", "3"), ("message", 'a "b"\n')])
    'trial=3 message="a \\"b\\"\\n"'
    """
    return " ".join(f"{_quoted(key)}={_quoted(value)}" for key, value in pairs)


def parse_line(line: str) -> dict[str, str]:
    """The pairs of a line by `format_line`. Raises ValueError for any other text.

    >>> parse_line('trial=3 message="a b"')
    {'trial': '3', 'message': 'a b'}
    """
    pairs: dict[str, str] = {}
    at, line = 0, line.rstrip("\n")
    while at < len(line):
        match = _PAIR.match(line, at)
        if match is None:
            raise ValueError(f"not a key=value pair at column {at + 1}: {line[at:]!r}")
        key, value = (json.loads(t) if t[0] == '"' else t for t in match.groups())
        pairs[key] = value
        at = match.end()
    return pairs


def _quoted(text: str) -> str:
    return text if _BARE.fullmatch(text) else json.dumps(text)


class LineDisplay:
    """Listener: writes lines to `stream`, each flushed, from its own thread.

    A pipe whose reader pauses (`| less`) blocks the thread and not the search. A reader that goes
    away (`| head`) ends the display, not the search. `verbosity`: below 0 nothing is written,
    from 1 also one line per epoch.
    """

    def __init__(
        self, stream: TextIO, verbosity: int = 0, status_every_s: float = STATUS_EVERY_S
    ) -> None:
        self._stream, self._verbosity = stream, verbosity
        self._status_every_s = status_every_s
        self._progress: Progress | None = None
        self._lock = threading.Lock()
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None

    def open(self, study: StudyInfo) -> None:
        """Start the thread."""
        self._progress = Progress(study)
        if self._verbosity >= 0 and self._writer is None:
            self._writer = threading.Thread(target=self._drain, name="sweep-lines", daemon=True)
            self._writer.start()

    def write(self, records: Sequence[Record]) -> None:
        """Queue the lines of `records`."""
        if self._progress is None or self._writer is None:
            return
        with self._lock:
            for record in records:
                is_first = self._progress.worker is None
                trial = self._progress.apply(record)
                if isinstance(record, EpochReport) and (self._verbosity < 1 or record.is_replay):
                    continue
                if isinstance(record, WorkerReady) and not is_first:
                    continue
                if pairs := _pairs(self._progress, record, trial):
                    self._lines.put(format_line(pairs))

    def acknowledge(self) -> None:
        """Say that the search stops. Safe in a signal handler: takes no lock."""
        if self._verbosity >= 0:
            self._lines.put(format_line([("notice", STOPPING)]))

    def close(self) -> None:
        """Write what is still queued. Further calls do nothing."""
        writer, self._writer = self._writer, None
        if writer is not None:
            self._lines.put(None)
            writer.join()

    def _drain(self) -> None:
        is_open, due_s = True, time.monotonic() + self._status_every_s
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, due_s - time.monotonic()))
            except queue.Empty:
                line, due_s = self._status(), time.monotonic() + self._status_every_s
            if line is None:
                return
            is_open = is_open and write_line(self._stream, line)

    def _status(self) -> str:
        assert self._progress is not None
        with self._lock:
            if self._progress.worker is None:
                waited = format_duration(self._progress.elapsed_s)
                return format_line([("notice", f"{LOADING} ({waited})")])
            return format_line(_status_pairs(self._progress))


def write_line(stream: TextIO, line: str) -> bool:
    """Write and flush `line`; False if the stream is closed or its reader is gone."""
    try:
        stream.write(line + "\n")
        stream.flush()
    except (AttributeError, OSError, ValueError) as error:  # no stream, gone or closed
        if isinstance(error, BrokenPipeError):
            forget(stream)
        return False
    return True


def forget(stream: TextIO) -> None:
    """Point `stream` at the null device, since its reader is gone.

    The rest of its buffer would raise once more at exit
    (https://docs.python.org/3/library/signal.html#note-on-sigpipe).
    """
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError, AttributeError):
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def _pairs(progress: Progress, record: Record, trial: TrialProgress | None) -> Pairs:
    """The line of a record that `progress` has taken in already; empty if it has none."""
    if isinstance(record, Notice):
        return [("notice", record.message)]
    if isinstance(record, WorkerReady):
        return _start_pairs(progress.study, record)
    if trial is None:
        return []
    if isinstance(record, TrialFinished) and record.state.is_finished:
        return _finished_pairs(progress, trial, record)
    return _epoch_pairs(progress, record) if isinstance(record, EpochReport) else []


def _start_pairs(study: StudyInfo, worker: WorkerReady) -> Pairs:
    n_workers = study.config.get("workers", 1)
    return [
        ("study", study.name),
        ("trials", str(study.n_trials)),
        *([("done", str(study.n_done))] if study.n_done else []),
        ("epochs", str(study.epochs)),
        ("metric", study.metric),
        ("direction", study.direction),
        ("population", str(worker.n_slots)),
        *([("workers", str(n_workers))] if n_workers != 1 else []),
        ("device", worker.device),
    ]


def _status_pairs(progress: Progress) -> Pairs:
    leader, eta_s = progress.leader(), progress.eta_s()
    return [
        ("progress", format_number(round(progress.share, 4))),
        ("trials", f"{progress.n_done}/{progress.study.n_trials}"),
        ("running", str(len(progress.running))),
        ("best", _at(progress.best_value, progress.best_number)),
        ("leading", _at(leader.best, leader.number) if leader else "-"),
        ("elapsed", str(round(progress.elapsed_s))),
        ("eta", "-" if eta_s is None else str(round(eta_s))),
    ]


def _finished_pairs(progress: Progress, trial: TrialProgress, record: TrialFinished) -> Pairs:
    pairs = [
        *_trial_pairs(progress, record.number, record.state, record.value, record.n_epochs),
        ("best_epoch", str(record.best_epoch or "-")),
        ("seconds", format_number(round(trial.seconds, 3))),
    ]
    if record.failure is not None:
        pairs += [("failure", record.failure.kind), ("message", record.failure.message)]
    return pairs + _renamed(trial.hyperparameters, progress.study.metric)


def _epoch_pairs(progress: Progress, record: EpochReport) -> Pairs:
    metric, metrics = progress.study.metric, record.metrics
    others = {k: v for k, v in metrics.items() if k not in (metric, "epoch_s")}
    return [
        *_trial_pairs(
            progress, record.number, TrialState.RUNNING, metrics.get(metric), record.epoch
        ),
        ("seconds", format_number(round(metrics.get("epoch_s", 0.0), 4))),
        *_renamed(others, metric),
    ]


def _trial_pairs(
    progress: Progress, number: int, state: TrialState, value: float | None, epoch: int
) -> Pairs:
    return [
        ("trial", str(number)),
        ("state", state.value),
        (progress.study.metric, "-" if value is None else format_number(value)),
        ("best", _at(progress.best_value, progress.best_number)),
        ("epoch", f"{epoch}/{progress.study.epochs}"),
    ]


def _renamed(values: Mapping[str, Any], metric: str) -> Pairs:
    taken = (*KEYS, metric)
    return [(f"hp.{k}" if k in taken else k, format_value(v)) for k, v in values.items()]


def _at(value: float | None, number: int | None) -> str:
    if value is None:
        return "-"
    return f"{format_number(value)}@{'-' if number is None else number}"
