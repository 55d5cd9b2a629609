"""The engine for any LightningModule: an ordinary lightning.Trainer for each trial.

One trial at a time, or several side by side, which see the same minibatches: each is loaded once
for all of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.strategies import FSDPStrategy

from sweep.files.trial_files import RESUME_STATE
from sweep.hyperparameters import DEFAULT_MODULE
from sweep.loading import raised_by_user_code
from sweep.training.checkpoints import saved_arguments
from sweep.training.exports import Example
from sweep.training.failures import classify
from sweep.training.lightning_trainer import quiet_trainer
from sweep.training.mlflow_calls import FluentCalls
from sweep.training.modules import has_own_loaders
from sweep.training.plain.fit import Fit, LeftWithinEpochError
from sweep.training.plain.fitting import (
    draw_data_alike,
    loaders,
    trainer_arguments,
    wrap_loaders,
)
from sweep.training.plain.lanes import Lane
from sweep.training.plain.logger import TrialLogger
from sweep.training.plain.shared import Streams
from sweep.training.plain.together import Together
from sweep.training.project.project import Built, Project, listed
from sweep.training.project.sources import ModuleData
from sweep.training.resuming import (
    UnusableError,
    compact,
    load_resume_file,
    random_state,
    seed_everything,
    start_over,
)
from sweep.training.run import RESUME_KEY, Run
from sweep.training.slot_loop import Slots
from sweep.trial import Report, Task


class PlainEngine:
    """Trains each trial from its first to its last epoch in one `Trainer.fit`.

    Alone, a trial draws the order of its data as the user's own script would; side by side, the
    order is the population epoch's.

    Args:
        task: Settings of the study.
        project: Builds module and data of each trial.
        slots: Receives the metrics of each epoch.
        calls: Captures metrics from the module's own MLflow calls.
        given: The first trial's objects, if they are built already.
        is_shared: The order of the data is the population epoch's.
        in_turns: Trials train at the same time.
        may_share_steps: They may take their steps together.
        trial_run: More arguments of the Trainers, and callbacks, to try a few minibatches.
    """

    def __init__(
        self, task: Task, project: Project, slots: Slots, calls: FluentCalls,
        given: Built | None = None, *, is_shared: bool = False, in_turns: bool = False,
        may_share_steps: bool = True,
        trial_run: tuple[Mapping[str, Any], Sequence[Any]] | None = None,
    ) -> None:  # fmt: skip
        self._task, self._project, self._slots, self._calls = task, project, slots, calls
        self._given, self._is_shared, self._in_turns = given, is_shared, in_turns
        self.may_share_steps, self._trial_run = may_share_steps, trial_run
        self.why_alone = ""
        """Why trials take their steps one by one."""
        self.last_weights: dict[int, dict[str, torch.Tensor]] = {}
        """In a trial run: each trial's."""
        self._fits: dict[int, Fit] = {}
        self._kept_at: Any = None
        self.streams = Streams(task.seed)
        self._together = Together(self.streams, self.say_alone, slots.say)

    def rung(self, run: Run) -> str:
        """How the trial was trained."""
        fit = self._fits.get(run.spec.number)
        if fit is not None and fit.n_ahead:
            return "vmapped"
        if self._task.n_devices > 1:
            return f"plain, {self._task.n_devices} devices"
        return "side by side" if self._is_shared else "plain"

    def open(self, run: Run) -> Sequence[Report]:
        """Let a trial train with the others; alone it trains in `fit`."""
        if self._in_turns:
            run.is_held = True
            self._together.start(run.spec.number, partial(self.fit, run))
        return ()

    def advance(self) -> list[tuple[int, BaseException | None]]:
        """Train the trials side by side until some end; their numbers, and errors."""
        ended = self._together.advance()
        for number, _ in ended:
            self._slots.running[number].is_held = False
        return ended

    @property
    def group_seconds(self) -> Sequence[tuple[int, float]]:
        """(trials, seconds) of the latest steps that trials took together."""
        return self._together.seconds

    @property
    def has_shared_steps(self) -> bool:
        """Whether trials have taken steps together."""
        return bool(self._together.seconds)

    def say_alone(self, why: str) -> None:
        """Say why trials take their steps one by one."""
        self.why_alone = self.why_alone or why
        self._slots.say(f"trials take their steps one by one, on shared minibatches: {why}")

    def end(self) -> None:
        """Leave all trials as they are."""
        self._together.end()
        for number in list(self._fits):
            self.close(number)

    def fit(self, run: Run, lane: Lane | None = None) -> None:
        """Train the trial to its end, from its resume file if that is usable.

        Args:
            run: The trial.
            lane: Where it trains in turns with others.

        Raises any error of the module, and on several devices UnusableError in place of starting
        over: the other ranks would wait for this one.
        """
        if run.spec.is_resumed:
            try:
                self._train(run, load_resume_file(run), lane)
                return
            except BaseException as error:
                raised_by_user_code(error)
                # An error before the first step is the file's fault, not the trial's.
                fit = self._fits.get(run.spec.number)
                has_begun = fit is not None and fit.has_begun
                is_drivers = self._slots.driver_error is not None
                if has_begun or is_drivers or classify(error).kind == "oom":
                    raise
                if self._task.n_devices > 1:
                    raise UnusableError(str(error)) from error
                run.restart()
                self._slots.say(start_over(run, error).message)
        self._train(run, None, lane)

    def keep_if_due(self, run: Run, at: Hashable) -> bool:
        """Write the trial's resume file if it, or another one's at the same moment, is due;
        returns whether."""
        fit = self._fits[run.spec.number]
        is_due: bool = fit.agreed(self._kept_at == at or self._slots.is_keeping_due)
        if is_due:
            self._kept_at = at
            self._slots.keep([run])
        return is_due

    def epoch_to_join(self, pace: str) -> int:
        """The population epoch in which a new trial can train with the others of its pace."""
        others = [
            fit.epoch_to_join for fit in self._fits.values() if fit.pace == pace and fit.is_set_up
        ]
        return max(others, default=0)

    def keep_best(self, numbers: Sequence[int]) -> None:
        """Copy the modules' current weights."""
        for fit in (self._fits[number] for number in numbers if number in self._fits):
            weights = fit.trainer.strategy.lightning_module_state_dict()
            fit.best = {name: value.detach().clone() for name, value in weights.items()}

    def state(self, run: Run) -> dict[str, Any] | None:
        """The Trainer's checkpoint, with the global generators' state; None if nothing was
        trained since the last one."""
        fit = self._fits.get(run.spec.number)
        if fit is None or not fit.has_news:
            return None
        fit.has_news = False
        fit.trainer.save_checkpoint(RESUME_STATE)
        ranks = fit.of_all_ranks({"random": random_state(), "places": fit.places()})
        if not fit.trainer.is_global_zero:
            return None
        checkpoint, places = fit.io.taken, ranks[0]["places"]
        if places and fit.has_validated:  # Lightning will count the last step once more
            loop = checkpoint["loops"]["fit_loop"]["epoch_loop.state_dict"]
            loop["_batches_that_stepped"] -= 1
        if not places:
            progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]
            for counts in (progress["total"], progress["current"]):
                counts["ready"] = counts["processed"]  # not counting the epoch starting now
        own = {
            "hyper_parameters": saved_arguments(fit.module, self.checkpoint_arguments(run)),
            RESUME_KEY: run.state(fit.best) | ranks[0] | {"is_shared": fit.is_shared},
        }
        if len(ranks) > 1:
            own[RESUME_KEY]["ranks"] = ranks
        others = ("datamodule_h", "hparams_type")  # whatever `save_hyperparameters` took
        return {k: v for k, v in checkpoint.items() if not k.startswith(others)} | own

    def module(self, run: Run, which: Literal["best", "last"]) -> lightning.LightningModule:
        """The trial's module; "best" loads the best weights into it."""
        fit = self._fits[run.spec.number]
        if fit.is_set_up and isinstance(fit.trainer.strategy, FSDPStrategy):
            fit.module = self._project.built(run.spec).module  # the old one is in pieces
        if which == "best":
            fit.module.load_state_dict(fit.best)
        for tensor in (*fit.module.parameters(), *fit.module.buffers()):
            tensor.data = compact(tensor.detach())  # not views of a group's weights
        return fit.module

    def example(self, run: Run) -> Example | None:
        """A sample of the trial's first minibatch."""
        fit = self._fits.get(run.spec.number)
        return Example.of(fit.sample) if fit is not None else None

    def checkpoint_arguments(self, run: Run) -> Mapping[str, Any]:
        """The trial's own arguments of the module."""
        return self._project.plain_arguments(run.spec.hyperparameters)

    def close(self, number: int) -> None:
        """Release module, Trainer and loaders, whose epoch may be under way."""
        fit = self._fits.pop(number, None)
        for loader in fit.loaders if fit is not None else ():
            loader.leave()
        if self._trial_run is not None and fit is not None:
            weights = fit.module.state_dict()
            self.last_weights[number] = {n: v.detach().clone() for n, v in weights.items()}
        if fit is not None and fit.is_set_up:  # a DataModule that trials share would keep it
            trainer: Any = fit.trainer
            if trainer.datamodule is not None and trainer.datamodule.trainer is trainer:
                trainer.datamodule.trainer = None

    def _train(self, run: Run, checkpoint: Mapping[str, Any] | None, lane: Lane | None) -> None:
        task, spec = self._task, run.spec
        self._fits.pop(spec.number, None)
        is_shared = self._is_shared
        if checkpoint is not None:
            run.resume(checkpoint)
            is_shared = bool(checkpoint[RESUME_KEY].get("is_shared"))
        seed_everything(spec.seed)
        built, self._given = self._given, None
        if built is None:
            built = self._project.built(spec)
        is_final = self._slots.keeps_end and task.population != 1
        if is_shared or (is_final and task.module != DEFAULT_MODULE):
            draw_data_alike(built, task.seed)
        if checkpoint is None and spec.start_epoch is None and is_shared:
            run.start_epoch = self.epoch_to_join(built.pace)
        logger = TrialLogger(run.files, run.n_steps)
        fit = self._fits[spec.number] = Fit(
            run, built, self, self._slots, self._calls, logger, checkpoint,
            lane, self.streams if is_shared else None,
        )  # fmt: skip
        if run.is_trained and checkpoint is not None:
            built.module.load_state_dict(checkpoint["state_dict"])
            fit.tell(*run.history)
            return
        self._tell_of_loaders(built)
        given = trainer_arguments(task, built)
        if self._trial_run is not None:
            limits, callbacks = self._trial_run
            given |= {**limits, "callbacks": [*given["callbacks"], *callbacks]}
        trainer = quiet_trainer(
            run.files.make_folder(),
            **given | {
                "logger": [logger, *listed(given.get("logger"))],
                "callbacks": [*given["callbacks"], fit],
                "plugins": [*listed(given.get("plugins")), fit.io],
            },
        )  # fmt: skip
        fit.begin(trainer)
        if task.module != DEFAULT_MODULE:
            wrap_loaders(fit.trainer, fit.wrapped)
        if checkpoint is not None:  # Lightning would round its weights to the built module's
            fit.trainer.precision_plugin.convert_module(built.module)
        with contextlib.suppress(LeftWithinEpochError):
            fit.trainer.fit(
                built.module,
                ckpt_path=None if checkpoint is None else run.files.path(RESUME_STATE),
                weights_only=True,
                **loaders(built, run.start_epoch, fit.trainer),
            )

    def _tell_of_loaders(self, built: Built) -> None:
        """Say that the study's data are not used, if the module brings its own."""
        is_unused = has_own_loaders(built.module) and not isinstance(built.data, ModuleData)
        if built.data is not None and is_unused and not self._slots.keeps_end:
            self._slots.say(
                f"{self._task.module} trains on loaders of its own: what is named after --data "
                f"{self._task.data} (the study, MLflow's data set) is not what it saw"
            )
