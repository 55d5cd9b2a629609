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
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from sweep.reporting.formats import format_duration, format_number, format_value
from sweep.reporting.progress import Progress, TrialProgress
from sweep.trial import (
    EPOCHS_DONE,
    EpochReport,
    Notice,
    Record,
    StudyInfo,
    TrialFinished,
    TrialState,
    WorkerReady,
)

Pairs = dict[str, Any]

KEYS = (
    "trial", "state", "best", "epoch", "best_epoch", "seconds", "failure", "message", "notice",
)  # fmt: skip
"""Keys of a trial's line, beside the metric's."""
STATUS_EVERY_S = 60.0
LOADING = "starting: a worker loads PyTorch and the data"
STOPPING = "stopping and saving; Ctrl-C again stops now"

_BARE = re.compile(r"[!#-<>-\[\]-~]+")
_TOKEN = r'"(?:[^"\\]|\\.)*"|[!#-<>-\[\]-~]+'
_PAIR = re.compile(f"({_TOKEN})=({_TOKEN})(?: |$)")


def format_line(pairs: Mapping[str, Any]) -> str:
    r"""`key=value` pairs on one line of ASCII, quoted where needed.

    >>> format_line({"trial": 3, "message": 'a "b"\n'})
    'trial=3 message="a \\"b\\"\\n"'
    """
    return " ".join(f"{_quoted(k)}={_quoted(format_value(v))}" for k, v in pairs.items())


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


class Lines:
    """A screen of lines, each flushed, on `stream`.

    `verbosity`: below 0 nothing is written, from 1 also a line per epoch. Every `status_every_s`
    a line says how far the search is.
    """

    PERIOD_S = 0.05

    def __init__(
        self, stream: TextIO, verbosity: int = 0, status_every_s: float = STATUS_EVERY_S
    ) -> None:
        self._stream, self._verbosity = stream, verbosity
        self._every_s, self._due_s = status_every_s, time.monotonic() + status_every_s
        self._lines: list[str] = []
        self._is_told = False

    def take(self, progress: Progress, record: Record, trial: TrialProgress | None) -> None:
        """Add the line of a record that `progress` has taken in already, if it has one."""
        is_silent = isinstance(record, EpochReport) and (self._verbosity < 1 or record.is_replay)
        if not is_silent and (pairs := _pairs(progress, record, trial)):
            self._lines.append(format_line(pairs))

    def picture(self, progress: Progress, is_stopping: bool, is_last: bool) -> Callable[[], bool]:
        """Writes the new lines, outside of the lock; returns False if the reader is gone."""
        lines, self._lines = self._lines, []
        if is_stopping and not self._is_told:
            lines.append(format_line({"notice": STOPPING}))
            self._is_told = True
        if time.monotonic() >= self._due_s and not is_last:
            lines.append(format_line(status_pairs(progress)))
            self._due_s = time.monotonic() + self._every_s
        if self._verbosity < 0:
            lines = []
        return lambda: all(write_line(self._stream, line) for line in lines)


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
    metric = progress.study.metric
    if isinstance(record, Notice):
        return {"notice": record.message}
    if isinstance(record, WorkerReady):
        return _start_pairs(progress.study, record) if record is progress.worker else {}
    if trial is not None and isinstance(record, EpochReport):
        own = (metric, "epoch_s", EPOCHS_DONE)
        others = {k: v for k, v in record.metrics.items() if k not in own}
        value = record.metrics.get(metric)
        return {
            **trial_pairs(progress, trial, TrialState.RUNNING, value, record.epoch),
            "seconds": round(record.metrics.get("epoch_s", 0.0), 4),
            **_renamed(others, metric),
        }
    if trial is None or not isinstance(record, TrialFinished) or not record.state.is_finished:
        return {}
    failure = record.failure
    why = {"failure": failure.kind, "message": failure.message} if failure else {}
    return {
        **trial_pairs(progress, trial, record.state, record.value, record.n_epochs),
        "best_epoch": record.best_epoch or "-",
        "seconds": round(trial.seconds, 3),
        **why,
        **_renamed(trial.hyperparameters, metric),
    }


def _start_pairs(study: StudyInfo, worker: WorkerReady) -> Pairs:
    n_workers = study.config.get("workers") or worker.n_workers
    return {
        "study": study.name,
        "trials": study.n_trials,
        **({"done": study.n_done} if study.n_done else {}),
        "epochs": study.epochs,
        "metric": study.metric,
        "direction": study.direction,
        "population": worker.n_slots,
        **({"workers": n_workers} if n_workers != 1 else {}),
        "device": worker.device,
    }


def status_pairs(progress: Progress) -> Pairs:
    """How far the search is."""
    if progress.worker is None:
        return {"notice": f"{LOADING} ({format_duration(progress.elapsed_s)})"}
    leader, eta_s = progress.leader(), progress.eta_s()
    return {
        "progress": round(progress.share, 4),
        "trials": f"{progress.n_done}/{progress.study.n_trials}",
        "running": len(progress.running),
        "best": _at(progress.best_value, progress.best_number),
        "leading": _at(leader.best, leader.number) if leader else "-",
        "elapsed": round(progress.elapsed_s),
        "eta": "-" if eta_s is None else round(eta_s),
    }


def trial_pairs(
    progress: Progress, trial: TrialProgress, state: TrialState, value: float | None, report: int
) -> Pairs:
    """State and value of a trial at one of its reports."""
    return {
        "trial": trial.number,
        "state": state.value,
        progress.study.metric: "-" if value is None else value,
        "best": _at(progress.best_value, progress.best_number),
        "epoch": f"{trial.epochs_at(report):g}/{progress.study.epochs}",
    }


def _renamed(values: Mapping[str, Any], metric: str) -> Pairs:
    return {f"hp.{k}" if k in (*KEYS, metric) else k: v for k, v in values.items()}


def _at(value: float | None, number: int | None) -> str:
    if value is None:
        return "-"
    return f"{format_number(value)}@{'-' if number is None else number}"
