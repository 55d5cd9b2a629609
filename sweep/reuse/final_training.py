"""`sweep train`: one configuration on train + validation, tested once at the end.

It trains and goes on after an interruption as a trial does: by the same slot loop and engines.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
from lightning.pytorch.utilities.model_helpers import is_overridden

from sweep.config.settings import RunConfig
from sweep.data.tensors import TensorData, load_final_data
from sweep.environment.launchers import foreign_set_aside
from sweep.environment.provenance import provenance
from sweep.environment.signals import stopping
from sweep.errors import (
    StoreError,
    StudyFailedError,
    StudyInterrupted,
    SweepError,
    UndeliveredError,
)
from sweep.files.trial_files import RESUME_STATE, TrialFiles, replace_file, spec_digest
from sweep.hyperparameters import DEFAULT_MODULE
from sweep.loading import one_line, raised_by_user_code
from sweep.reuse.recipe import Recipe
from sweep.search.tasks import make_task
from sweep.training.checkpoints import write_checkpoint
from sweep.training.devices import lightning_devices
from sweep.training.engine_choice import why_plain
from sweep.training.exports import try_export
from sweep.training.fused.trainer import train_side_by_side
from sweep.training.lightning_trainer import hush_lightning, quiet_trainer
from sweep.training.mlflow_calls import FluentCalls
from sweep.training.mlp import MLPClassifier
from sweep.training.modules import build_module, has_own_loaders
from sweep.training.plain.trainer import train_one_by_one
from sweep.training.resuming import seed_everything
from sweep.training.run import Run
from sweep.training.slot_loop import Slots, no_model
from sweep.trial import (
    EpochReport,
    Notice,
    Orders,
    Report,
    Stop,
    TrialFinished,
    TrialSpec,
    TrialStarted,
    TrialState,
    derive_seed,
    now_ms,
)

if TYPE_CHECKING:
    from sweep.tracking.training import TrainingRun

EpochHook = Callable[[int, Mapping[str, float]], None]
NoticeHook = Callable[[str], object]
TRY_AGAIN_S = 30.0
"""Pause after MLflow failed to take an epoch: each attempt may delay the training."""


@dataclass(frozen=True)
class Trained:
    """The result of `train`."""

    metrics: Mapping[str, float]
    """test_loss and test_acc for MLPClassifier; none if the module could not be tested."""
    checkpoint: Path
    run_id: str
    n_epochs: int


def train(
    recipe: Recipe, config: RunConfig, output: Path, on_epoch: EpochHook | None = None,
    on_notice: NoticeHook | None = None,
) -> Trained:  # fmt: skip
    """Train `recipe` on train + validation; the test split is read once, after the last epoch.

    Args:
        recipe: Model, data, epochs, seed and batch size.
        config: Machine and stores: data_dir, accelerator, devices, tracking_uri.
        output: Path of the Lightning checkpoint. Until the training is done, the resume state is
            in a folder beside it.
        on_epoch: Called after each epoch with its number (from 1) and metrics.
        on_notice: Called with a line for the user.

    Raises StudyInterrupted once the epoch of a signal is saved, UndeliveredError if MLflow is
    away at the end (the same call delivers), DataError, StoreError, DiskError, StudyFailedError
    for metrics that are not finite and for exceptions of a user's module.

    A module with its own loaders is trained on those, as in a search, and tested on its own test
    loader. One without test_step is not tested.
    """
    hush_lightning()
    with foreign_set_aside():
        data = load_final_data(recipe.data, config.data_dir, recipe.seed)
        parts = output.with_name(f"{output.name}.parts")
        spec = _spec(recipe, parts)
        say = on_notice or (lambda message: None)
        log = _Log(spec, parts, on_epoch, say)
        seed_everything(spec.seed)
        with _explained(recipe.module):
            module = build_module(recipe.module, recipe.model, data.info, spec.seed)
        if has_own_loaders(module):
            log.say(
                f"{recipe.module} brings its own train_dataloader: it is trained on that, not on "
                f"train + validation of {recipe.data}"
            )
        with log.pausing(), stopping(log.stop):
            started = _started(recipe, module)
            from sweep.tracking import training  # loads MLflow

            log.open(training.TrainingRun(config.tracking_uri, started, data.info, recipe.module))
            trained = _train(recipe, config, output, (module, data), log)
        shutil.rmtree(parts, ignore_errors=True)
        return trained


def _train(
    recipe: Recipe, config: RunConfig, output: Path,
    what: tuple[lightning.LightningModule, TensorData], log: _Log,
) -> Trained:  # fmt: skip
    module, data = what
    task = dataclasses.replace(
        make_task(config), module=recipe.module, data=recipe.data, seed=recipe.seed,
        epochs=recipe.epochs, batch_size=recipe.batch_size, precision=recipe.precision, metric="",
        work_dir=str(log.parts),
    )  # fmt: skip
    slots, calls = Slots(task, log, keeps_end=True), FluentCalls(output.parent)
    try:
        with calls.caught(), _explained(recipe.module):
            if isinstance(module, MLPClassifier) and why_plain(task) is None:
                train_side_by_side(task, data, slots, ("train_loss",))
            else:
                train_one_by_one(task, data, slots, calls, given=module)
            run, module = _ended(slots)
            if run.epoch < recipe.epochs:
                saved = "that is not saved" if log.is_unsaved else "that is saved"
                raise StudyInterrupted(
                    f"interrupted after epoch {run.epoch} of {recipe.epochs}: {saved}, the same "
                    "command goes on"
                )
            write_checkpoint(output, module, run.epoch - 1, run.n_steps)  # a test may fail
            trainer = quiet_trainer(
                output.parent, accelerator=config.accelerator,
                devices=lightning_devices(config.devices), precision=recipe.precision,
            )  # fmt: skip
            metrics = _test(trainer, module, data, recipe, log)
            archive, why = try_export(
                output.with_suffix(".pt2"), module, data.info.feature_shape, recipe.module
            )
            if archive is None:
                log.say(no_model(recipe.module, why))
    finally:
        calls.remove()
    log.finish(metrics, str(output), archive)
    return Trained(metrics, output, log.run_id, run.epoch)


@contextlib.contextmanager
def _explained(module: str) -> Iterator[None]:
    """Turns exceptions of a user's module into StudyFailedError with file and line."""
    try:
        yield
    except (SweepError, KeyboardInterrupt):
        raise
    except BaseException as error:
        why = raised_by_user_code(error)
        if module == DEFAULT_MODULE:
            raise
        raise StudyFailedError(f"the training failed: {one_line(why, module)}") from error


def _test(
    trainer: lightning.Trainer, module: lightning.LightningModule, data: TensorData,
    recipe: Recipe, log: _Log,
) -> dict[str, float]:  # fmt: skip
    """Metrics on the test split, or on the module's own test loader; none without test_step."""
    is_own = has_own_loaders(module)
    needed = ("test_step", "test_dataloader") if is_own else ("test_step",)
    missing = [name for name in needed if not is_overridden(name, module)]
    if missing:
        log.say(f"trained and saved, but not tested: {recipe.module} has no {missing[0]}")
        return {}
    given = None if is_own else data.test_loader()
    results = trainer.test(module, dataloaders=given, verbose=False)
    return {name: float(value) for result in results for name, value in result.items()}


def _ended(slots: Slots) -> tuple[Run, lightning.LightningModule]:
    """The training and its module. Raises StudyFailedError."""
    assert slots.ended is not None
    run, module = slots.ended
    if module is None:
        why = run.failure.message if run.failure else ""
        raise StudyFailedError(f"the training failed: {why}")
    return run, module


def _spec(recipe: Recipe, parts: Path) -> TrialSpec:
    """The training as a trial, with number and initial weights of the recipe's trial.

    Its settings are all else that decides over the weights, so that a resume file of another
    training counts for nothing.
    """
    number = recipe.trial or 0
    settings = (
        recipe.module, recipe.data, recipe.epochs, recipe.batch_size, recipe.seed,
        recipe.precision,
    )  # fmt: skip
    return TrialSpec(
        number, recipe.model, derive_seed(recipe.seed, "init", number),
        is_resumed=TrialFiles(parts, number).size(RESUME_STATE) > 0, settings=repr(settings),
    )  # fmt: skip


def _started(recipe: Recipe, module: lightning.LightningModule) -> TrialStarted:
    training: dict[str, Any] = {
        "epochs": recipe.epochs, "batch_size": recipe.batch_size, "seed": recipe.seed,
        "data": recipe.data,
    }  # fmt: skip
    origin = f" of t{recipe.trial:03d}" if recipe.trial is not None else ""
    source = "its own loaders" if has_own_loaders(module) else "train+val"
    tags = {"sweep.study": recipe.study or f"{recipe.data}-train", "sweep.role": "train"}
    if recipe.trial is not None:
        tags["sweep.from_trial"] = str(recipe.trial)
    if recipe.run_id is not None:
        tags["sweep.from_run"] = recipe.run_id
    return TrialStarted(
        recipe.trial or 0, f"train{origin} on {source}", {**recipe.model, **training}, {},
        now_ms(), {**provenance(), **tags},
    )  # fmt: skip


class _Log:
    """Takes the reports of a training: to MLflow, when it answers, and to the caller."""

    def __init__(
        self, spec: TrialSpec, parts: Path, on_epoch: EpochHook | None, on_notice: NoticeHook
    ) -> None:
        self.spec, self.parts = spec, parts
        self._run: TrainingRun | None = None
        self._on_epoch, self.say = on_epoch, on_notice
        self._is_stopping = False
        self._to_start: tuple[TrialSpec, ...] = (spec,)
        self._reports: list[EpochReport] = []
        self._next_try_s = 0.0
        self.run_id = ""

    @property
    def is_unsaved(self) -> bool:
        """Whether the resume state lacks reported epochs."""
        told_ms = [report.time_ms for report in self._reports if not report.is_replay]
        return bool(TrialFiles(self.parts, self.spec.number).lost_epochs(told_ms))

    def open(self, run: TrainingRun) -> None:
        """Make the MLflow run, or go on with that of the same training. Raises StoreError."""
        digest, file = spec_digest(self.spec), self.parts / "run.json"
        known: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError):
            known = json.loads(file.read_text())
        same = known.get("run_id") if known.get("training") == digest else None
        self.run_id = run.open(same)
        self._run = run
        note = json.dumps({"training": digest, "run_id": self.run_id})
        replace_file(file, note.encode())
        run.sync(())

    def stop(self) -> None:
        """End the training after this epoch."""
        self._is_stopping = True

    def __call__(self, reports: Sequence[Report], n_free: int) -> Orders:
        """Take reports; the orders stop the training after a signal."""
        epochs = [report for report in reports if isinstance(report, EpochReport)]
        for report in reports:
            if isinstance(report, Notice):
                self.say(report.message)
            elif isinstance(report, EpochReport) and not report.is_replay and self._on_epoch:
                self._on_epoch(report.epoch, report.metrics)
        self._reports += epochs
        if epochs and time.monotonic() >= self._next_try_s:
            self._deliver()
        is_stopped = self._is_stopping and epochs
        start, self._to_start = self._to_start, ()
        stop = (Stop(self.spec.number, "interrupted"),) if is_stopped else ()
        return Orders(stop, start, is_last=True)

    def _deliver(self) -> None:
        try:
            self._sync()
        except StoreError as error:
            if self._next_try_s == 0.0:
                self.say(f"{error}: the training goes on, MLflow is told later")
            self._next_try_s = time.monotonic() + TRY_AGAIN_S

    def finish(self, metrics: Mapping[str, float], checkpoint: str, archive: str | None) -> None:
        """Log the missing epochs and the end. Raises UndeliveredError."""
        try:
            self._sync(TrialState.COMPLETE, metrics, checkpoint, archive)
        except StoreError as error:
            raise UndeliveredError(
                f"trained, and {checkpoint} is written, but MLflow does not have it yet "
                f"({error}): the same command delivers it"
            ) from error

    def _sync(
        self, state: TrialState | None = None, metrics: Mapping[str, float] | None = None,
        checkpoint: str | None = None, archive: str | None = None,
    ) -> None:  # fmt: skip
        """Bring the MLflow run up to the training; `state` None: it goes on."""
        if self._run is None:
            return
        finished = None
        if state is not None:
            finished = TrialFinished(
                self.spec.number, state, now_ms(), None, None, metrics or {},
                self._reports[-1].epoch if self._reports else 0, checkpoint, archive,
            )  # fmt: skip
        self._run.sync(self._reports, finished)

    @contextlib.contextmanager
    def pausing(self) -> Iterator[None]:
        """On an exception the MLflow run becomes SCHEDULED, or FAILED for a bad module."""
        try:
            yield
        except BaseException as error:
            is_paused = isinstance(error, SweepError | KeyboardInterrupt)
            is_paused = is_paused and not isinstance(error, StudyFailedError)
            with contextlib.suppress(SweepError):
                self._sync(TrialState.WAITING if is_paused else TrialState.FAIL)
            raise
