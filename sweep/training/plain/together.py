"""Trials that train at the same time in one process, each in a `Trainer.fit` of its own."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from sweep.training.failures import classify
from sweep.training.plain.lanes import OUTSIDE, Lane, Raised
from sweep.training.plain.shared import END, PAUSE, Streams, Want
from sweep.training.vmapped.group import Group, first_line
from sweep.training.vmapped.stand_in import CannotStackError

MOST_ERRORS = 3
"""Groups of a shape that break off in the midst of an epoch; then its trials train alone."""


class Together:
    """Lets trials take turns, minibatch by minibatch; those of a shape take steps together.

    Args:
        streams: Loads what they want.
        say_alone: Told why trials of a shape cannot share steps.
        say: Told other things of their steps.
    """

    def __init__(
        self, streams: Streams, say_alone: Callable[[str], None], say: Callable[[str], None]
    ) -> None:
        self._streams, self._say_alone, self._say = streams, say_alone, say
        self._lanes: dict[int, Lane] = {}
        self._wants: dict[int, Want] = {}
        self._ready: dict[int, Any] = {}
        """What each trial that can go on is given."""
        self._groups: dict[Hashable, tuple[list[int], Group]] = {}
        """By shape: trials that share the present epoch's steps."""
        self._refused: set[Hashable] = set()
        self._n_errors: collections.Counter[Hashable] = collections.Counter()
        self.seconds: collections.deque[tuple[int, float]] = collections.deque(maxlen=64)
        """(trials, seconds) of the latest steps of groups."""

    def start(self, number: int, fit: Callable[[Lane], None]) -> None:
        """Let a trial train from the next `advance` on."""
        self._lanes[number], self._ready[number] = Lane(fit), None

    def advance(self) -> list[tuple[int, BaseException | None]]:
        """Train until trials end; returns their numbers and errors.

        Raises what is raised here, not in a trial: a second Ctrl-C, out-of-memory errors.
        """
        try:
            return self._advance()
        finally:
            OUTSIDE.hold()

    def _advance(self) -> list[tuple[int, BaseException | None]]:
        while True:
            ended: list[tuple[int, BaseException | None]] = []
            for number in list(self._ready):
                self._go_on(number, ended)
            if ended or not self._lanes:
                return ended
            for batch, numbers in self._streams.serve(self._wants):
                for number in self._train_ahead(batch, numbers):
                    del self._wants[number]
                    self._ready[number] = batch

    def end(self) -> None:
        """End all trials where they are."""
        for lane in self._lanes.values():
            lane.abandon()
        OUTSIDE.hold()
        self._lanes, self._wants, self._ready, self._groups = {}, {}, {}, {}

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
            self._groups = {
                shape: known
                for shape, known in self._groups.items()
                if any(other in self._lanes for other in known[0])
            }
            ended.append((number, error))
        else:
            self._wants[number] = want

    def _train_ahead(self, batch: Any, numbers: Sequence[int]) -> list[int]:
        """Train a minibatch of the trials that share steps; returns the others."""
        rest, by_shape = list[int](), dict[Hashable, list[int]]()
        for number in numbers:
            shape = self._shape_of(self._wants[number], batch)
            if shape is None:
                rest.append(number)
            else:
                by_shape.setdefault(shape, []).append(number)
        for shape, shared in by_shape.items():
            left = self._step(shape, shared, batch)
            is_refused = shape in self._refused and all(
                self._wants[number].index == 0 and self._is_padded(number) for number in left
            )
            rest += self._train_ahead(batch, left) if left and is_refused else left
        return rest

    def _shape_of(self, want: Want, batch: Any) -> Hashable:
        """The shape under which a trial shares the epoch's steps; None: it takes them itself."""
        if (ahead := want.ahead) is None:
            return None
        if want.index == 0:
            is_batch = batch is not END and not isinstance(batch, Raised)
            near = ahead.near(batch) if is_batch else None
            is_near = near is not None and near not in self._refused
            ahead.chosen = near if is_near else ahead.shape
        return None if ahead.chosen in self._refused else ahead.chosen

    def _is_padded(self, number: int) -> bool:
        ahead = self._wants[number].ahead
        return ahead is not None and ahead.chosen != ahead.shape

    def _step(self, shape: Hashable, numbers: list[int], batch: Any) -> list[int]:
        """Take a step of a group; returns the trials that are to take this one by themselves."""
        first = self._wants[numbers[0]]
        assert first.ahead is not None
        index, n_steps = first.index, first.ahead.n_steps
        group: Group | None = None
        OUTSIDE.hold()
        try:
            group = self._group(shape, numbers, index, n_steps)
            if group is None:
                return numbers
            if index < n_steps and batch is not END and not isinstance(batch, Raised):
                began_s = time.perf_counter()
                group.step(batch, index)
                took_s = time.perf_counter() - began_s
                self.seconds.append((len(numbers), took_s))
                for number in numbers:
                    self._lanes[number].spent_s += took_s / len(numbers)
                for number in numbers:
                    self._wants[number].index += 1
                    self._wants[number].n_taken += 1
                if group.is_pulse_due and index + 1 < n_steps:
                    group.hand_over(is_pause=True)
                    for number in numbers:
                        del self._wants[number]
                        self._ready[number] = PAUSE
                return []
        except CannotStackError as error:
            self._groups.pop(shape, None)
            self._n_errors[shape] += 1
            # In the midst of an epoch one trial's values may be the cause: it will fail alone.
            if group is None or not group.has_stepped or self._n_errors[shape] > MOST_ERRORS:
                self._refuse(shape, str(error), numbers)
        except Exception as error:
            if classify(error).kind == "oom":
                raise
            if group is not None and group.has_stepped:
                self._refused.add(shape)
                return self._fail(numbers, error)
            self._refuse(shape, first_line(error), numbers)
            group = None
        return numbers if group is None else self._leave(group, numbers)

    def _refuse(self, shape: Hashable, why: str, numbers: Sequence[int]) -> None:
        self._refused.add(shape)
        if not self._is_padded(numbers[0]):  # else those of one shape may still share steps
            self._say_alone(why)

    def _leave(self, group: Group, numbers: Sequence[int]) -> list[int]:
        """Hand a group's trials over to their Trainers; returns those without an error."""
        group.hand_over()
        failed = {group.members[k]: error for k, error in group.errors.items()}
        left = list[int]()
        for number in numbers:
            ahead = self._wants[number].ahead
            error = failed.get(ahead.member) if ahead is not None else None
            left += [number] if error is None else self._fail([number], error)
        return left

    def _fail(self, numbers: Sequence[int], error: Exception) -> list[int]:
        """Let an error of a group's step be its trials' own."""
        for number in numbers:
            del self._wants[number]
            self._ready[number] = Raised(error)
        return []

    def _is_within(self, number: int) -> bool:
        want = self._wants.get(number)
        return want is not None and want.is_train and want.ahead is not None and want.index > 0

    def _group(
        self, shape: Hashable, numbers: list[int], index: int, n_steps: int
    ) -> Group | None:
        """The group of these trials for step `index`; None: they are to take it by themselves."""
        before, group = self._groups.get(shape, ([], None))
        if group is not None and before == numbers:
            if index == 0:
                group.begin(n_steps)
            return group
        if index == 0 and any(self._is_within(number) for number in before):
            return None  # others are in the midst of an epoch: these train this one alone
        self._groups.pop(shape, None)
        members = [want.ahead.member for n in numbers if (want := self._wants[n]).ahead]
        made = Group(members, n_steps, index, self._say)
        if group is not None and index:  # others have left within the epoch
            made.go_on_from(group)
        self._groups[shape] = numbers, made
        return made
