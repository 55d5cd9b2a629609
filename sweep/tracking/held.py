"""Records that MLflow refuses while it takes others: held, tried again, then set aside."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from sweep.tracking.aside import STUDY, Aside
from sweep.tracking.codec import Entry
from sweep.tracking.sink import Pace, Sink
from sweep.tracking.uri import without_credentials
from sweep.trial import EpochReport

TRIES, TRIES_AGAIN = 5, 2
"""Times a record that the store refuses is tried, and one that was set aside before."""

_log = logging.getLogger("sweep.tracking")


@dataclass(slots=True)
class _Held:
    """What one trial has to wait for."""

    entries: list[Entry]
    n_tries_left: int
    wait_s: float
    tried_at: float


class HeldTrials:
    """Trials whose records wait beside the others', which go on.

    Args:
        pace: How long a refused record waits before it is tried again.
        aside: Where records go that were tried often enough; None: they are given up.
        again: Trials that were set aside before.
        give_up: Called with the error and the number of records that are lost.
    """

    def __init__(
        self,
        pace: Pace,
        aside: Aside | None,
        again: Collection[int],
        give_up: Callable[[Exception, int], None],
    ) -> None:
        self._pace, self._aside, self._again, self._give_up = pace, aside, set(again), give_up
        self._held: dict[int, _Held] = {}
        self.refusal: Exception | None = None
        """Why records were set aside last."""

    @property
    def n_records(self) -> int:
        """Records that are held."""
        return sum(len(held.entries) for held in self._held.values())

    def due(self, *, is_closing: bool = False) -> float:
        """When the next try is due, in seconds of time.monotonic(); infinity where none is."""
        return min((self._due(h, is_closing) for h in self._held.values()), default=math.inf)

    def takes(self, number: int, entry: Entry) -> bool:
        """Take `entry` where older ones of its trial are held or set aside."""
        if self._aside is not None and number in self._aside.numbers:
            self._aside.add(number, [entry])
        elif number in self._held:
            self._held[number].entries.append(entry)
        else:
            return False
        return True

    def hold(self, number: int, entries: Sequence[Entry], error: Exception) -> None:
        """Keep what the store just refused."""
        without_credentials(error)
        _log.warning("MLflow refuses records of %s", named({number}), exc_info=error)
        n_tries = TRIES_AGAIN if number in self._again else TRIES
        self._held[number] = _Held(
            list(entries), n_tries - 1, self._pace.first_retry_s, time.monotonic()
        )

    def try_again(self, sink: Sink, *, is_closing: bool) -> Exception | None:
        """Try again what is due; returns the error where the store does not answer at all."""
        for number, held in list(self._held.items()):
            if time.monotonic() < self._due(held, is_closing):
                continue
            try:
                self._deliver(sink, number, held)
            except Exception as error:  # noqa: BLE001 - kept in the log, raised at the end
                if not sink.answers(number):
                    return error
                held.n_tries_left -= 1
                held.wait_s = min(2 * held.wait_s, self._pace.retry_s)
                held.tried_at = time.monotonic()
                if held.n_tries_left <= 0:
                    self._set_aside(number, error)
            else:
                del self._held[number]
        return None

    def _due(self, held: _Held, is_closing: bool) -> float:
        return held.tried_at + (self._pace.first_retry_s if is_closing else held.wait_s)

    def _deliver(self, sink: Sink, number: int, held: _Held) -> None:
        """All records of a trial, in order; those that the sink took are held no more."""
        while held.entries:
            reports = list(itertools.takewhile(_is_report, held.entries))
            following = held.entries[len(reports) : len(reports) + 1]
            n_records = len(reports) + len(following)
            try:
                if following:
                    sink.apply(following[0], reports)  # type: ignore[arg-type]
                else:
                    sink.log_epochs(number, reports)  # type: ignore[arg-type]
            except Exception as error:
                if not sink.is_lasting(error):
                    raise
                self._give_up(error, n_records)
            del held.entries[:n_records]

    def _set_aside(self, number: int, error: Exception) -> None:
        entries = self._held.pop(number).entries
        if self._aside is None:
            self._give_up(error, len(entries))
            return
        without_credentials(error)
        _log.error("records of %s are set aside", named({number}), exc_info=error)
        self.refusal = error
        self._aside.add(number, entries)


def named(numbers: Collection[int]) -> str:
    """Which trials, at most five by number.

    >>> named({3}), named({3, 7, STUDY}), named(range(9))
    ('trial 3', 'trials 3, 7 and the study', 'trials 0, 1, 2, 3, 4 and 4 more')
    """
    trials = sorted(number for number in numbers if number != STUDY)
    said = []
    if trials:
        said.append(f"trial{'s' * (len(trials) > 1)} {', '.join(map(str, trials[:5]))}")
    if len(trials) > 5:
        said.append(f"{len(trials) - 5} more")
    return " and ".join(said + ["the study"] * (STUDY in numbers))


def _is_report(entry: Entry) -> bool:
    return isinstance(entry, EpochReport)
