"""One trial's `Trainer.fit`, seen from the slot loop: its callback and its checkpoints."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import lightning
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from sweep.files.trial_files import RESUME_STATE, replace_file
from sweep.training.likeness import fingerprint
from sweep.training.mlflow_calls import FluentCalls
from sweep.training.plain.lanes import Lane
from sweep.training.plain.logger import TrialLogger
from sweep.training.plain.outcomes import ValidationOutcomes
from sweep.training.plain.resumable import ResumableLoader, WrappedLoader
from sweep.training.plain.shared import Ahead, SharedLoader, Streams, Want
from sweep.training.project.project import Built
from sweep.training.resuming import (
    saved_bytes,
    set_random_state,
)
from sweep.training.run import RESUME_KEY, Run
from sweep.training.slot_loop import Slots
from sweep.training.vmapped.fitness import why_alone
from sweep.training.vmapped.group import LONG_EPOCH_S, PULSE_S
from sweep.training.vmapped.padding import near_shape
from sweep.training.vmapped.stack import layout_of
from sweep.training.vmapped.stand_in import shape_of
from sweep.trial import EPOCHS_DONE, Pulse, Report, now_ms

PARTIAL = (
    "a trial goes on within an epoch: means over that epoch's training steps are of those since"
)


MIXED = (
    "what the module logs by MLflow's own calls cannot be told apart for trials side by side, and "
    "is not kept: use self.log, or --population 1"
)


class LeftWithinEpochError(Exception):
    """Ends `Trainer.fit` between two steps, at the driver's order."""


class Seat(Protocol):
    """What a fit asks of its engine."""

    may_share_steps: bool

    def keep_if_due(self, run: Run, at: Hashable) -> bool:
        """Write the trial's resume file if one is due at that moment; returns whether."""
        ...

    def say_alone(self, why: str) -> None:
        """Say why trials take their steps one by one."""
        ...


class Fit(lightning.pytorch.callbacks.Checkpoint):
    """Callback between a Trainer and the slot loop.

    A Checkpoint, because Lightning calls those last, after the module has logged. Resume files are
    written at the start of an epoch, not at its end: Lightning steps metric-based schedulers
    (ReduceLROnPlateau) only after the end-of-epoch hooks. In a long epoch they are written between
    two steps, as the next minibatch is fetched.
    """

    trainer: lightning.Trainer

    def __init__(
        self, run: Run, built: Built, engine: Seat, slots: Slots, calls: FluentCalls,
        logger: TrialLogger, checkpoint: Mapping[str, Any] | None,
        lane: Lane | None, streams: Streams | None,
    ) -> None:  # fmt: skip
        self.module, self.io, self._logger = built.module, CheckpointIO(), logger
        self._outcomes = ValidationOutcomes(run.task.metric)
        self.pace = built.pace
        self._engine, self._lane = engine, lane
        self._take: Callable[[Want], Any] | None = None
        if streams is not None:
            self._take = streams.batch if lane is None else lane.wait
        self.is_shared = streams is not None
        """Whether its minibatches are the population's."""
        self._data: Hashable = None
        self._wanted: Want | None = None
        """What it last waited for: a group may have taken it further since."""
        self.n_ahead = 0
        """Steps that a group took for it."""
        self.sample: Any = None
        """The first minibatch of the trial."""
        self._seen: dict[str, torch.Tensor] = {}
        """Lightning's metrics at the last epoch's end: those logged since are other objects."""
        self.best: dict[str, torch.Tensor] = {}
        state = {} if checkpoint is None else checkpoint[RESUME_KEY]
        if state.get("best") is not None:
            self.best = dict(state["best"]["weights"])
        self.has_begun = False
        """Whether the Trainer is set up: errors from now on are the trial's own."""
        self.has_news = False
        """Whether anything was trained since the last resume file."""
        self._run, self._slots, self._calls = run, slots, calls
        self._state, self._random_state = state, state.get("random")
        self._is_resumed = checkpoint is not None
        self._part_began_s = self._clock()
        self.loaders: list[WrappedLoader] = []
        self._val_loaders: list[WrappedLoader] = []
        self._loaders_epoch = -1
        self._goes_on_from: list[Any] = []
        """Places of the loaders in the epoch of a resume file."""
        self._is_within = bool(state.get("places"))
        self._is_in_step = self._is_between_steps = False
        self._is_ended = False
        """Whether it ended at a validation within an epoch."""
        self.has_validated = False
        """Whether the last step was followed by a validation."""
        self._told_s = self._epoch_began_s = self._asked_s = time.monotonic()
        self._asks_at = self._n_between = 0
        """On several devices: the step before which ranks agree again, and the steps from one such
        moment to the next."""

    def begin(self, trainer: lightning.Trainer) -> None:
        """Take the trial's Trainer, and this process's part of the resume file."""
        self.trainer = self._logger.trainer = trainer
        ranks = self._state.get("ranks", ())
        own = ranks[trainer.global_rank] if len(ranks) == trainer.world_size else self._state
        self._random_state, self._goes_on_from = own.get("random"), list(own.get("places") or ())

    def agreed(self, value: Any) -> Any:
        """Rank 0's value, in all processes of a trial on several devices."""
        return self.trainer.strategy.broadcast(value) if self.is_set_up else value

    def of_all_ranks(self, value: Any) -> list[Any]:
        """The value of each process of a trial, rank 0's first."""
        strategy, n_ranks = self.trainer.strategy, self.trainer.world_size
        return [strategy.broadcast(value, rank) for rank in range(n_ranks)]

    def wrapped(self, loader: Any) -> Any:
        """A train loader that asks for orders between two steps; with others side by side, any
        loader, for minibatches that all share."""
        trainer, epoch = self.trainer, self.trainer.current_epoch
        if self._loaders_epoch != epoch:  # they may be made anew
            self.loaders, self._val_loaders, self._loaders_epoch = [], [], epoch
        if isinstance(loader, WrappedLoader):  # of a CombinedLoader that is used again
            loader = loader.loader
        if not trainer.training:
            return self._shared(loader, self._val_loaders) if self.is_shared else loader
        place = self._goes_on_from.pop(0) if self._goes_on_from else None
        between = None if self.loaders else self._between_steps
        if self.is_shared:
            first = 0 if place is None else int(place["shared"])
            return self._shared(loader, self.loaders, between, first)
        self.loaders.append(ResumableLoader(loader, between, place))
        return self.loaders[-1]

    def _shared(
        self, loader: Any, others: list[WrappedLoader],
        between: Callable[[], None] | None = None, first: int = 0,
    ) -> SharedLoader:  # fmt: skip
        assert self._take is not None
        source: Hashable = self._run.spec.number
        with contextlib.suppress(Exception):  # user code may raise anything
            source = fingerprint(loader)
        if self._data is None:
            self._data = source
        want = partial(self._want, source, len(others))
        shared = SharedLoader(loader, self._taken, want, between, first)
        others.append(shared)
        return shared

    def _taken(self, want: Want) -> Any:
        """Wait for a minibatch; then a DataModule that others use, too, is this trial's again."""
        assert self._take is not None
        found = self._take(want)
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is not None:
            datamodule.trainer = self.trainer
        return found

    def _want(self, source: Hashable, index: int, loader: Any) -> Want:
        trainer = self.trainer
        self._wanted = Want(
            self._data, source, self._epoch, self._n_taken,
            trainer.training, index, 0, 0, loader, self._ahead(),
        )  # fmt: skip
        return self._wanted

    def _ahead(self) -> Ahead | None:
        """At an epoch's beginning: how it can train with others."""
        trainer = self.trainer
        if self._lane is None or not trainer.training or self._n_taken or not trainer.optimizers:
            return None
        if not self._engine.may_share_steps:
            return None
        # Anew in each epoch: callbacks may have changed the Trainer.
        why = why_alone(trainer, (Fit, TrialLogger))
        if len(self.loaders) != 1:
            why = "it has several train loaders"
        if why:
            self._engine.say_alone(why)
            return None
        n_steps = int(trainer.num_training_batches) - 1
        module = self.module
        modes = tuple(part.training for part in module.modules())
        layout = layout_of(module, trainer.optimizers[0])
        alike = type(module), modes, layout, self._data, n_steps
        return Ahead((shape_of(module), *alike), partial(near_shape, module, alike), n_steps, self)

    @property
    def generator(self) -> torch.Tensor:
        """State of the trial's torch generator."""
        assert self._lane is not None
        return self._lane.torch_generator

    @generator.setter
    def generator(self, state: torch.Tensor) -> None:
        assert self._lane is not None
        self._lane.torch_generator = state

    def log_by_step(self, metrics: Mapping[str, float], step: int) -> None:
        """Keep values of a training step."""
        self._logger.log_metrics(metrics, step)

    @property
    def _n_taken(self) -> int:
        return int(self.trainer.fit_loop.epoch_loop.batch_progress.current.ready)

    @property
    def is_set_up(self) -> bool:
        """Whether it has a Trainer."""
        return hasattr(self, "trainer")

    @property
    def epoch_to_join(self) -> int:
        """The population epoch that another trial can join."""
        want = self._wanted
        n_ahead = want.n_taken if want is not None and want.epoch == self._epoch else 0
        return self._epoch + (max(self._n_taken, n_ahead) > 0)

    @property
    def _epoch(self) -> int:
        """Of the population."""
        return self._run.start_epoch + self.trainer.current_epoch

    def places(self) -> list[dict[str, Any]]:
        """Where each train loader stands, between two steps of an epoch; else empty."""
        if not self._is_between_steps:
            return []
        is_ahead = not math.isfinite(self.trainer.num_training_batches)
        return [loader.place(is_ahead=is_ahead) for loader in self.loaders]

    def _between_steps(self) -> None:
        """Write a resume file if due; ask the driver for orders now and then."""
        trainer, run, slots = self.trainer, self._run, self._slots
        n_done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
        if self._is_in_step or n_done % trainer.accumulate_grad_batches:
            return
        if self.has_validated and _has_plateau_by_step(trainer):
            self.has_validated = False  # Lightning would step it twice
            return
        if n_done < self._asks_at:
            self.has_validated = False
            return
        self._is_between_steps = True
        self.has_news |= n_done > 0
        try:
            now_s, is_due = self.agreed(time.monotonic()), False
            age_s = now_s - self._epoch_began_s
            self._asks_at = self._next_step(n_done, now_s)
            if age_s >= run.task.checkpoint_interval_s:
                is_due = self._engine.keep_if_due(run, (self._epoch, n_done))
            is_pulse = age_s >= LONG_EPOCH_S and now_s - self._told_s >= PULSE_S
            if run.stop is None and (is_due or is_pulse):
                self.tell(Pulse(run.spec.number, run.epoch))
            if run.is_interrupted:
                slots.keep([run])
        finally:
            self._is_between_steps = self.has_validated = False
        if run.is_over:
            self.has_news = False
            self._logger.write()
            raise LeftWithinEpochError

    def _next_step(self, n_done: int, now_s: float) -> int:
        """The step before which ranks agree again: about once a second, since it makes them wait
        for each other. All compute the same, from rank 0's clock."""
        if self.trainer.world_size == 1:
            return 0
        past_s, self._asked_s = now_s - self._asked_s, now_s
        if past_s < PULSE_S:
            self._n_between = max(1, 2 * self._n_between)
        elif past_s > 2 * PULSE_S:
            self._n_between //= 2
        return n_done + self._n_between

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Start the clocks; report the epochs before the interruption again."""
        self._told_s = self._epoch_began_s = self._asked_s = self.agreed(time.monotonic())
        # Within an epoch the module may lack what it collects from its beginning on.
        self.has_begun = not self._is_within
        if self._is_within:
            self._is_resumed, self._logger.is_in_step = False, True  # Lightning begins no epoch
            if self._random_state is not None:
                set_random_state(self._random_state)
            self._slots.say(PARTIAL)
        if self._run.history:
            self.tell(*self._run.history)
            trainer.should_stop |= self._run.is_over

    def on_train_epoch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Start the epoch's clock; write a resume file if due. After a resume, restore random
        generators instead."""
        if self._is_resumed:
            self._is_resumed = False
            if self._random_state is not None:
                set_random_state(self._random_state)
            # Lightning drew the order of a user's DataLoader before this: make it draw again.
            trainer.fit_loop._resuming_from_checkpoint = False
            # With `max_steps` it would take an epoch's beginning for its midst.
            trainer.fit_loop._restarting = trainer.fit_loop.epoch_loop.restarting = False
        else:
            self._engine.keep_if_due(self._run, self._epoch)
        self._part_began_s, self._epoch_began_s = self._clock(), self.agreed(time.monotonic())
        self._asked_s, self._asks_at = self._epoch_began_s, 0
        self.has_validated, self._logger.is_in_step = False, True

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any,
        batch_idx: int,
    ) -> None:  # fmt: skip
        """Keep the first minibatch."""
        self._is_in_step = True
        if self.is_shared and self._n_taken == trainer.num_training_batches:
            # Lightning counts what it has fetched itself: less, if others trained ahead.
            trainer.fit_loop.epoch_loop.batch_progress.is_last_batch = True
        if self.sample is None:
            self.sample = batch

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any,
        batch: Any, batch_idx: int,
    ) -> None:  # fmt: skip
        """A resume file may be written before the next minibatch."""
        self._is_in_step, self.has_news = False, True

    def on_validation_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Values of a validation belong to the epoch."""
        self._logger.is_in_step = False
        if not trainer.sanity_checking:
            self._outcomes.begin(self.module)

    def on_validation_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any,
        batch: Any, batch_idx: int, dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Keep what was said of the minibatch."""
        if not trainer.sanity_checking:
            self._outcomes.batch(outputs, batch)

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Report a validation within an epoch; the last one is reported with the epoch."""
        self._outcomes.end()
        if not self.loaders or trainer.is_last_batch or _is_ending(trainer):
            return
        self.has_validated, self._logger.is_in_step = True, True
        self._report(trainer, _epochs_done(trainer))
        self.tell()
        # An interrupted one writes its resume file first, between two steps.
        self._is_ended = self._run.is_over and not self._run.is_interrupted
        trainer.should_stop |= self._is_ended

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Report the epoch and apply the driver's orders."""
        run, self.has_news, self._logger.is_in_step = self._run, True, False
        if self._is_ended:
            return
        self._report(trainer, trainer.current_epoch + 1)
        if not run.is_over:  # the last epoch is sent with the result
            self.tell()
        trainer.should_stop |= run.is_over

    def _report(self, trainer: lightning.Trainer, epochs_done: float) -> None:
        run, slots, self.has_begun = self._run, self._slots, True
        metrics, notices = self._calls.metrics(now_ms())
        if self._lane is not None and metrics:
            metrics = {}  # of any of the trials
            slots.say(MIXED)
        metrics = _mean(self.of_all_ranks(metrics | self._fresh(trainer.callback_metrics)))
        if epochs_done != run.epoch + 1:  # other reports than one an epoch
            metrics[EPOCHS_DONE] = epochs_done
        slots.say(*[notice.message for notice in notices])
        run.n_steps, now_s = trainer.global_step, self._clock()
        number = run.spec.number
        outcomes = self._outcomes.taken(trainer.world_size)
        slots.end_epoch({number: metrics}, now_s - self._part_began_s, {number: outcomes})
        self._part_began_s = now_s

    def _fresh(self, metrics: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """The metrics logged since the last epoch's end, without values by step."""
        found = {
            name: float(value)
            for name, value in metrics.items()
            if self._seen.get(name) is not value
            and not (name.endswith("_step") and name.removesuffix("_step") in metrics)
        }
        self._seen = dict(metrics)
        return found

    def on_train_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Write the resume file of an interrupted trial, or the final state (`keeps_end`)."""
        run = self._run
        self._logger.write()
        if run.failure is None and (run.is_interrupted or self._slots.keeps_end):
            self._slots.keep([run])

    def _clock(self) -> float:
        """Seconds spent on this trial."""
        return time.perf_counter() if self._lane is None else self._lane.clock()

    def tell(self, *reports: Report) -> None:
        """Send reports, and take orders."""
        self._logger.write()
        tell = partial(self._slots.tell, *reports)
        if self._lane is None:
            tell()
        else:
            self._lane.outside(tell)
        self._run.stop = self.agreed(self._run.stop)
        self._told_s = self.agreed(time.monotonic())


def _mean(metrics: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each metric over the ranks that have it."""
    found: dict[str, list[float]] = {}
    for one in metrics:
        for name, value in one.items():
            found.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}


def _is_ending(trainer: lightning.Trainer) -> bool:
    """Whether the fit ends within this epoch, at the wish of a callback or after `max_steps`."""
    is_short = trainer.current_epoch < (trainer.min_epochs or 0)
    is_short |= trainer.global_step < (trainer.min_steps or 0)
    is_last_step = 0 <= trainer.max_steps <= trainer.global_step
    return (trainer.should_stop and not is_short) or is_last_step


def _has_plateau_by_step(trainer: lightning.Trainer) -> bool:
    """Whether a schedule follows a metric after each step."""
    configs = trainer.lr_scheduler_configs
    return any(config.reduce_on_plateau and config.interval == "step" for config in configs)


def _epochs_done(trainer: lightning.Trainer) -> float:
    """Trained epochs, and the part of the present one if its length is known."""
    n_steps = trainer.num_training_batches
    n_done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
    return trainer.current_epoch + (n_done / n_steps if math.isfinite(n_steps) else 0.0)


class CheckpointIO(TorchCheckpointIO):
    """Captures resume checkpoints in memory, writes others atomically; loads plain values only."""

    taken: dict[str, Any]

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Capture a checkpoint named `RESUME_STATE`; write any other. Raises DiskError."""
        if str(path) == RESUME_STATE:
            self.taken = checkpoint
        else:
            replace_file(Path(path), saved_bytes(checkpoint))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint onto the CPU, with `weights_only=True`."""
        return dict(torch.load(path, map_location="cpu", weights_only=True))
