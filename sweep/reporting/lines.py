"""One line per trial, for pipes, log files and grep.

    trial=17 state=COMPLETE val_acc=0.9822 best=0.9833@12 epoch=7/10 seconds=3.1 optimizer=Adam ...

A line is `key=value` pairs with one space between them, ASCII only. The order is fixed:

    trial      number of the trial
    state      COMPLETE, PRUNED or FAIL; RUNNING for a line about an epoch (-v)
    <metric>   the study's metric under its own name: at the kept epoch, or of this epoch
    best       best value of the study so far @ the trial that has it
    epoch      kept epoch / epochs trained; RUNNING: this epoch / epochs at most
    seconds    wall time of the trial; RUNNING: of the epoch
    failure    failed trials only: oom, nan, exception, killed or timeout, then `message`
    ...        finished trials: its hyperparameters; RUNNING: its other metrics

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
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from sweep.reporting.formats import format_number, format_value
from sweep.reporting.progress import Progress, TrialProgress
from sweep.trial import EpochReport, Notice, Record, StudyInfo, TrialFinished, TrialState

KEYS = ("trial", "state", "best", "epoch", "seconds", "failure", "message", "notice")
"""Keys that a line has of its own, beside the metric's."""

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

    def __init__(self, stream: TextIO, verbosity: int = 0) -> None:
        self._stream = stream
        self._verbosity = verbosity
        self._progress: Progress | None = None
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
        for record in records:
            trial = self._progress.apply(record)
            if isinstance(record, Notice):
                self._lines.put(format_line([("notice", record.message)]))
            elif isinstance(record, TrialFinished) and trial is not None:
                self._lines.put(format_line(finished_pairs(self._progress, trial, record)))
            elif isinstance(record, EpochReport) and trial is not None and self._tells(record):
                self._lines.put(format_line(epoch_pairs(self._progress, trial, record)))

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
        is_open = True
        while (line := self._lines.get()) is not None:
            is_open = is_open and _write_line(self._stream, line)


def _write_line(stream: TextIO, line: str) -> bool:
    """Write and flush `line`; False where nobody will read the stream any more."""
    try:
        stream.write(line + "\n")
        stream.flush()
    except (OSError, ValueError) as error:
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


def finished_pairs(
    progress: Progress, trial: TrialProgress, record: TrialFinished
) -> list[tuple[str, str]]:
    """The pairs of a finished trial; `progress` has taken in `record` already."""
    seconds = None if trial.started_ms is None else (record.time_ms - trial.started_ms) / 1000
    pairs = [
        ("trial", str(record.number)),
        ("state", record.state.value),
        (progress.study.metric, _number(record.value)),
        ("best", _best(progress)),
        ("epoch", f"{record.best_epoch or '-'}/{record.n_epochs}"),
        ("seconds", "-" if seconds is None else f"{max(seconds, 0.0):.1f}"),
    ]
    if record.failure is not None:
        pairs += [("failure", record.failure.kind), ("message", record.failure.message)]
    return pairs + _renamed(trial.hyperparameters, progress.study.metric)


def epoch_pairs(
    progress: Progress, trial: TrialProgress, record: EpochReport
) -> list[tuple[str, str]]:
    """The pairs of one epoch."""
    metric = progress.study.metric
    others = {k: v for k, v in record.metrics.items() if k not in (metric, "epoch_s")}
    return [
        ("trial", str(record.number)),
        ("state", TrialState.RUNNING.value),
        (metric, _number(record.metrics.get(metric))),
        ("best", _best(progress)),
        ("epoch", f"{record.epoch}/{progress.study.epochs}"),
        ("seconds", _number(record.metrics.get("epoch_s"))),
        *_renamed(others, metric),
    ]


def _renamed(values: Mapping[str, Any], metric: str) -> list[tuple[str, str]]:
    taken = (*KEYS, metric)
    return [(f"hp.{k}" if k in taken else k, format_value(v)) for k, v in values.items()]


def _number(value: float | None) -> str:
    return "-" if value is None else format_number(value)


def _best(progress: Progress) -> str:
    if progress.best_value is None:
        return "-"
    number = "-" if progress.best_number is None else progress.best_number
    return f"{format_number(progress.best_value)}@{number}"
