"""A train loader that can go on in the midst of an epoch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from lightning.fabric.utilities.data import sized_len

from sweep.training.resuming import random_state, set_random_state

_CLOSED = ("state_dict", "load_state_dict")
"""Lightning would go on by these, too, if the loader has them."""


class WrappedLoader:
    """Stands in for a loader: whatever is not its own is the loader's."""

    OWN: tuple[str, ...] = ("loader",)
    """Attributes of the wrapper."""

    loader: Any

    def __getattr__(self, name: str) -> Any:
        """Everything else is the loader's own."""
        if name in _CLOSED or name in type(self).OWN:
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute of the loader's: Lightning resets iterators and seeds workers so."""
        if name in type(self).OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self.loader, name, value)

    def __len__(self) -> int:
        """Minibatches an epoch. Raises TypeError if the loader does not know."""
        return len(self.loader)

    def leave(self) -> None:
        """End an epoch that is under way, and with it the loader's worker processes."""


class ResumableLoader(WrappedLoader):
    """Wraps any loader; counts its minibatches, and can skip those of an earlier try.

    Skipped minibatches are loaded again under the random state that they had, so order and
    augmentations of the others are as without an interruption. Not exact where several loaders, or
    a loader and the module, draw from one generator in turn as minibatches are made.

    Args:
        loader: A DataLoader or any other iterable.
        between: Called before the next minibatch is fetched, but not before an epoch's first.
        place: A `place` to go on from, in the first epoch; None: its beginning.
    """

    OWN = (*WrappedLoader.OWN, "_between", "_goes_on_from", "_epoch")

    def __init__(
        self, loader: Any, between: Callable[[], None] | None = None,
        place: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.loader, self._between, self._goes_on_from = loader, between, place
        self._epoch: _Epoch | None = None

    def __iter__(self) -> Iterator[Any]:
        """Begin an epoch for Lightning's loop; for all others, such as a user's hook, iterate over
        the loader itself."""
        if not is_lightnings(inspect.currentframe()):
            return iter(self.loader)
        place, self._goes_on_from = self._goes_on_from, None
        self._epoch = _Epoch(self.loader, self._between, place)
        return self._epoch

    def place(self, *, is_ahead: bool) -> dict[str, Any]:
        """Where the epoch stands, in plain values.

        `is_ahead`: the last minibatch is fetched, but not trained yet.
        """
        assert self._epoch is not None
        return self._epoch.place(is_ahead=is_ahead)

    def leave(self) -> None:
        """See WrappedLoader. An iterator that the garbage collector ends waits 5 s for each of its
        workers."""
        if self._epoch is not None:
            self._epoch.leave()


def is_lightnings(frame: Any) -> bool:
    """Whether Lightning's CombinedLoader called the function of `frame`."""
    name = str(frame.f_back.f_globals.get("__name__", "")) if frame and frame.f_back else ""
    return name.startswith(("lightning.", "pytorch_lightning.")) and "combined_loader" in name


def generators_of(loader: Any) -> list[torch.Generator]:
    """A loader's own generators."""
    takers = loader, getattr(loader, "sampler", None)
    found = [getattr(taker, "generator", None) for taker in takers]
    return [generator for generator in found if isinstance(generator, torch.Generator)]


class _Epoch:
    """An iteration over a loader, for Lightning's loop."""

    def __init__(
        self, loader: Any, between: Callable[[], None] | None, place: Mapping[str, Any] | None
    ) -> None:
        self._loader, self._between, self._goes_on_from = loader, between, place
        self._ahead: list[Any] = []
        self._n_fetched = 0
        self._is_unsized = sized_len(loader) is None
        self._at: dict[str, Any] = {"iter": self._random_state()}
        """The random state as the iterator was made, and before its first and last minibatch."""
        self._batches = iter(loader)  # also before it goes on: it draws a random number

    def __iter__(self) -> _Epoch:
        return self

    def __next__(self) -> Any:
        """The next minibatch."""
        if self._goes_on_from is not None:
            self._go_on(self._goes_on_from)
        elif self._n_fetched == 0:
            self._at["first"] = self._at["last"] = self._random_state()
        elif self._between is not None and not self._ahead:
            self._between()
        if self._ahead:
            return self._ahead.pop(0)
        if self._is_unsized:
            self._at["last"] = self._random_state()
        batch = next(self._batches)
        self._n_fetched += 1
        return batch

    def leave(self) -> None:
        self._batches = iter(())

    def place(self, *, is_ahead: bool) -> dict[str, Any]:
        return {
            "at": {**self._at, "now": self._random_state()},
            "n_fetched": self._n_fetched, "is_ahead": is_ahead,
        }  # fmt: skip

    def _go_on(self, place: Mapping[str, Any]) -> None:
        self._goes_on_from, now = None, place["at"]["now"]
        afterwards = now
        if place["is_ahead"]:  # the Trainer is being set up, which may draw random numbers, too
            next(self._batches)
            afterwards = {"all": random_state(), "own": now["own"]}
        self._at, self._n_fetched = dict(place["at"]), int(place["n_fetched"])
        self._set_random_state(self._at["iter"])
        self._batches = iter(self._loader)
        self._set_random_state(self._at["first"])
        for _ in range(self._n_fetched - place["is_ahead"]):
            next(self._batches)
        if place["is_ahead"]:
            self._set_random_state(self._at["last"])
            self._ahead = [next(self._batches)]
        self._set_random_state(afterwards)

    def _random_state(self) -> dict[str, Any]:
        return {"all": random_state(), "own": [g.get_state() for g in generators_of(self._loader)]}

    def _set_random_state(self, state: Mapping[str, Any]) -> None:
        set_random_state(state["all"])
        for generator, own in zip(generators_of(self._loader), state["own"], strict=False):
            generator.set_state(own)
