"""Follows what users ask of a running search from elsewhere (`sweep stop`, `prune`, `extend`).

Orders lie in the study's storage until they were followed, so none is lost with a driver. Each
look follows all that are there: a prune is emptied only after its trial has ended in the ledger. A
stop that lies there as a search begins was meant for an earlier one.
To follow an order twice changes nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from functools import partial

from sweep.config.settings import RunConfig
from sweep.errors import NotFoundError, StoreError
from sweep.ledger.orders import LiveSearch, LiveTrial, OrderBook, UserOrder
from sweep.ledger.study import Ledger
from sweep.search.driver import Driver
from sweep.trial import now_ms

LOOK_S = 2.0
"""Time between two looks. One takes 1 ms, in the recorder's thread."""


class Steering:
    """The driver's end: reads orders, says how far the running trials are.

    `began_ms`: when this search began. `book`: the orders, unless they are the ledger's.
    """

    def __init__(
        self, driver: Driver, ledger: Ledger, began_ms: int, book: OrderBook | None = None
    ) -> None:
        self._driver, self._ledger, self._began_ms = driver, ledger, began_ms
        self._book = book or ledger.orders
        self._found: Sequence[UserOrder] = ()
        self._followed: set[str] = set()
        """Keys of orders that the recorder empties, or has emptied."""
        self._said: set[str] = set()
        """Keys of prunes that the user of this search knows of."""
        self._told: tuple[LiveTrial, ...] | None = None
        self._training_ms, self._due_s = 0, 0.0
        self._is_looking = False
        self._look(())  # what lies there is known before any trial trains

    def turn(self) -> None:
        """Follow the orders of the last look; look again if it is time. Waits for nothing."""
        found, self._found = self._found, ()
        for order in found:
            if order.key not in self._followed:
                self._follow(order)
        if not self._training_ms and self._driver.live():
            self._training_ms = now_ms()
        if time.monotonic() >= self._due_s and not self._is_looking:
            self._is_looking, self._due_s = True, time.monotonic() + LOOK_S
            self._driver.write_soon(partial(self._look, self._driver.live()), is_first=True)

    def _look(self, live: tuple[LiveTrial, ...]) -> None:
        """In the recorder's thread, but for the first. A storage that is away is asked later."""
        try:
            with contextlib.suppress(StoreError, KeyError):
                self._found = self._book.kept()
                if live != self._told:
                    training_ms = self._training_ms or now_ms()
                    self._book.tell(LiveSearch(self._began_ms, training_ms, now_ms(), live))
                    self._told = live
        finally:
            self._is_looking = False

    def _follow(self, order: UserOrder) -> None:
        driver, is_over = self._driver, True
        if order.verb == "extend":
            if order.number > driver.n_trials:
                driver.say([f"{order.number} trials in all from now on, asked by {order.by}"])
            driver.extend(order.number)
        elif order.verb == "prune":
            is_over = not driver.prune(order.number)
            if not is_over and order.key not in self._said:
                self._said.add(order.key)
                driver.say([f"trial {order.number} ends at its next report: pruned by {order.by}"])
        else:
            driver.say([f"asked to stop by {order.by}: the trials end at their next report"])
            driver.request_stop("interrupted")
        if is_over:
            self._followed.add(order.key)
            driver.write_soon(partial(self._empty, order))

    def _empty(self, order: UserOrder) -> None:
        """A prune of a trial that goes back to the next search is that one's to follow."""
        if order.verb != "prune" or self._is_ended(order.number):
            self._book.empty(order)

    def _is_ended(self, number: int) -> bool:
        try:
            return self._ledger.trial(number).state.is_finished
        except NotFoundError:
            return True

    def last_look(self) -> None:
        """After the last trial: say what was asked too late. Raises StoreError."""
        asked = [o for o in self._book.kept() if o.verb == "extend"]
        if asked and (n_trials := max(o.number for o in asked)) > self._driver.n_trials:
            what = f"asked to go on to {n_trials} trials as the search ended"
            self._driver.say([f"{what}: the next `sweep run` does"])


def extended(config: RunConfig, ledger: Ledger) -> RunConfig:
    """`config` with the larger total that was asked for as the last search ended or was killed."""
    kept = ledger.orders.kept()
    for order in [order for order in kept if order.verb == "stop"]:
        ledger.orders.empty(order)
    asked = [order for order in kept if order.verb == "extend"]
    for order in asked:
        ledger.raise_total(order.number)
        ledger.orders.empty(order)
    n_trials = max([config.trials, *(order.number for order in asked)])
    return dataclasses.replace(config, trials=n_trials)
