"""One line per trial, for pipes, log files and grep.

    study=digits-mlp trials=50 epochs=10 metric=val_acc direction=maximize population=32 device=cpu
    trial=17 state=COMPLETE val_acc=0.98222 best=0.98333@12 epoch=10/10 best_epoch=7 seconds=3 ...
    progress=0.41 trials=17/50 running=32 best=0.98333@12 leading=0.98413@21 elapsed=60 eta=87

A line is `key=value` pairs with one space between them, ASCII only. The order is fixed. The first
one comes when a worker is ready and says what is searched (`done`: finished trials of earlier
sessions, where there are some). A line of a trial:

    trial       number of the trial
    state       COMPLETE, PRUNED or FAIL; RUNNING for a line about an epoch (-v)
    <metric>    the study's metric under its own name: at the best epoch, or of this epoch
    best        best value of the study's complete trials so far @ the trial that has it
    epoch       epochs trained / epochs at most
    best_epoch  the epoch of the kept checkpoint; finished trials only
    seconds     the trial's training time; RUNNING: of this epoch (its share in a population)
    failure     failed trials only: oom, nan, exception, killed or timeout, then `message`
    ...         finished trials: its hyperparameters; RUNNING: its other metrics

Every minute one line of the search:

    progress    finished part of the study, from 0 to 1; a trial counts by its epochs
    trials      finished trials / all trials
    running     trials that train now
    best        as above
    leading     best value of the running trials @ the trial that has it
    elapsed     seconds since the study was opened
    eta         estimated seconds until its end, once two epochs were measured

A value that is unknown is `-`. What holds anything but plain printable characters is quoted as
a JSON string. A hyperparameter that is named like a key above has `hp.` before its name.
A notice is a line `notice="..."`. `parse_line` reads all of it back.
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
"""Keys that a trial's line has of its own, beside the metric's."""
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
    """The pairs of a line that `format_line` wrote. Raises ValueError for any other text.

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
    """Listener: writes lines to `stream`, each flushed, from a thread of its own.

    The thread is there because a pipe whose reader pauses (`| less`) blocks its writer, and the
    search must go on. `verbosity`: below 0 nothing is written, from 1 also one line per epoch.
    A reader that goes away (`| head`) ends the display, not the search.
    """

    def __init__(
        self, stream: TextIO, verbosity: int = 0, status_every_s: float = STATUS_EVERY_S
    ) -> None:
        self._stream = stream
        self._verbosity = verbosity
        self._status_every_s = status_every_s
        self._progress: Progress | None = None
        self._lock = threading.Lock()
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None

    def open(self, study: StudyInfo) -> None:
        """Begin with the picture that `study` gives."""
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
                pairs = self._pairs(self._progress, record, trial, is_first=is_first)
                if pairs:
                    self._lines.put(format_line(pairs))

    def acknowledge(self) -> None:
        """Say that the search stops. Safe in a signal handler: takes no lock."""
        if self._verbosity >= 0:
            self._lines.put(format_line([("notice", STOPPING)]))

    def _pairs(
        self, progress: Progress, record: Record, trial: TrialProgress | None, *, is_first: bool
    ) -> Pairs:
        if isinstance(record, Notice):
            return [("notice", record.message)]
        if isinstance(record, WorkerReady) and is_first:
            return start_pairs(progress.study, record)
        if trial is None:
            return []
        if isinstance(record, TrialFinished) and record.state.is_finished:
            return finished_pairs(progress, trial, record)
        if isinstance(record, EpochReport) and self._tells(record):
            return epoch_pairs(progress, trial, record)
        return []

    def _tells(self, record: EpochReport) -> bool:
        """With -v, every epoch once: a replay was told when it was trained."""
        return self._verbosity > 0 and not record.is_replay

    def close(self) -> None:
        """Write what is still queued. Further calls do nothing."""
        writer, self._writer = self._writer, None
        if writer is not None:
            self._lines.put(None)
            writer.join()

    def _drain(self) -> None:
        is_open, due_s = True, time.monotonic() + self._status_every_s
        while (line := self._next_line(due_s)) is not None:
            if not line:
                line, due_s = self._status(), time.monotonic() + self._status_every_s
            is_open = is_open and write_line(self._stream, line)

    def _next_line(self, due_s: float) -> str | None:
        """The next line; "" where a status is due."""
        left_s = due_s - time.monotonic()
        try:
            return self._lines.get(timeout=left_s) if left_s > 0 else ""
        except queue.Empty:
            return ""

    def _status(self) -> str:
        assert self._progress is not None
        with self._lock:
            if self._progress.worker is None:
                waited = format_duration(self._progress.elapsed_s)
                return format_line([("notice", f"{LOADING} ({waited})")])
            return format_line(status_pairs(self._progress))


def write_line(stream: TextIO, line: str) -> bool:
    """Write and flush `line`; False where nobody will read the stream any more."""
    try:
        stream.write(line + "\n")
        stream.flush()
    except (AttributeError, OSError, ValueError) as error:  # no stream, gone or closed
        if isinstance(error, BrokenPipeError):
            forget(stream)
        return False
    return True


def forget(stream: TextIO) -> None:
    """Point `stream` at the null device.

    Its reader is gone, and what is left in its buffer would raise once more at exit
    (https://docs.python.org/3/library/signal.html#note-on-sigpipe).
    """
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError, AttributeError):
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def start_pairs(study: StudyInfo, worker: WorkerReady) -> Pairs:
    """The pairs of the line that says what is searched, and where."""
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


def status_pairs(progress: Progress) -> Pairs:
    """The pairs of the line that comes every minute."""
    leader, eta_s = progress.leader(), progress.eta_s()
    leading = "-" if leader is None else f"{_number(leader.best)}@{leader.number}"
    return [
        ("progress", format_number(round(progress.share, 4))),
        ("trials", f"{progress.n_done}/{progress.study.n_trials}"),
        ("running", str(len(progress.running))),
        ("best", _best(progress)),
        ("leading", leading),
        ("elapsed", str(round(progress.elapsed_s))),
        ("eta", "-" if eta_s is None else str(round(eta_s))),
    ]


def finished_pairs(progress: Progress, trial: TrialProgress, record: TrialFinished) -> Pairs:
    """The pairs of a finished trial; `progress` has taken in `record` already."""
    pairs = [
        ("trial", str(record.number)),
        ("state", record.state.value),
        (progress.study.metric, _number(record.value)),
        ("best", _best(progress)),
        ("epoch", f"{record.n_epochs}/{progress.study.epochs}"),
        ("best_epoch", str(record.best_epoch or "-")),
        ("seconds", format_number(round(trial.seconds, 3))),
    ]
    if record.failure is not None:
        pairs += [("failure", record.failure.kind), ("message", record.failure.message)]
    return pairs + _renamed(trial.hyperparameters, progress.study.metric)


def epoch_pairs(progress: Progress, trial: TrialProgress, record: EpochReport) -> Pairs:
    """The pairs of one epoch."""
    metric = progress.study.metric
    others = {k: v for k, v in record.metrics.items() if k not in (metric, "epoch_s")}
    return [
        ("trial", str(record.number)),
        ("state", TrialState.RUNNING.value),
        (metric, _number(record.metrics.get(metric))),
        ("best", _best(progress)),
        ("epoch", f"{record.epoch}/{progress.study.epochs}"),
        ("seconds", format_number(round(record.metrics.get("epoch_s", 0.0), 4))),
        *_renamed(others, metric),
    ]


def _renamed(values: Mapping[str, Any], metric: str) -> Pairs:
    taken = (*KEYS, metric)
    return [(f"hp.{k}" if k in taken else k, format_value(v)) for k, v in values.items()]


def _number(value: float | None) -> str:
    return "-" if value is None else format_number(value)


def _best(progress: Progress) -> str:
    if progress.best_value is None:
        return "-"
    number = "-" if progress.best_number is None else progress.best_number
    return f"{format_number(progress.best_value)}@{number}"
