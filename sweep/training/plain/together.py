"""Trials that train at the same time in one process, each in a `Trainer.fit` of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sweep.training.plain.lanes import Lane
from sweep.training.plain.shared import Streams, Want


class Together:
    """Lets trials take turns, minibatch by minibatch.

    Args:
        streams: Loads what they want.
    """

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._lanes: dict[int, Lane] = {}
        self._wants: dict[int, Want] = {}
        self._ready: dict[int, Any] = {}
        """What each trial that can go on is given."""

    def start(self, number: int, fit: Callable[[Lane], None]) -> None:
        """Let a trial train from the next `advance` on."""
        self._lanes[number], self._ready[number] = Lane(fit), None

    def advance(self) -> list[tuple[int, BaseException | None]]:
        """Train until trials end; returns their numbers and errors.

        Raises what is raised here, not in a trial: a second Ctrl-C.
        """
        while True:
            ended: list[tuple[int, BaseException | None]] = []
            for number in list(self._ready):
                self._go_on(number, ended)
            if ended or not self._lanes:
                return ended
            for batch, numbers in self._streams.serve(self._wants):
                for number in numbers:
                    del self._wants[number]
                    self._ready[number] = batch

    def end(self) -> None:
        """End all trials where they are."""
        for lane in self._lanes.values():
            lane.abandon()
        self._lanes, self._wants, self._ready = {}, {}, {}

    def _go_on(self, number: int, ended: list[tuple[int, BaseException | None]]) -> None:
        lane, error = self._lanes[number], None
        try:
            want = lane.resume(self._ready.pop(number))
        except BaseException as raised:
            if not lane.has_ended:
                raise
            error = raised
        if lane.has_ended:
            del self._lanes[number]
            ended.append((number, error))
        else:
            self._wants[number] = want
