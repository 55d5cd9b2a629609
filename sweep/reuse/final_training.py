"""`sweep train`: one configuration on train + validation, tested once at the end.

It trains and goes on after an interruption as a trial does: by the same slot loop and engines.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import torch
from lightning.pytorch.utilities.data import extract_batch_size
from lightning.pytorch.utilities.model_helpers import is_overridden

from sweep.config.settings import RunConfig
from sweep.environment.launchers import foreign_set_aside
from sweep.environment.provenance import provenance
from sweep.environment.signals import stopping
from sweep.errors import (
    ConfigError,
    SealedTestSplitError,
    StoreError,
    StudyFailedError,
    StudyInterrupted,
    SweepError,
    UndeliveredError,
)
from sweep.files.trial_files import LOGGED, RESUME_STATE, TrialFiles, replace_file, spec_digest
from sweep.hyperparameters import DEFAULT_MODULE
from sweep.loading import one_line, raised_by_user_code
from sweep.reuse.loading import task_of
from sweep.reuse.recipe import Recipe
from sweep.training.checkpoints import write_checkpoint
from sweep.training.devices import first_device, lightning_devices
from sweep.training.engine_choice import why_plain
from sweep.training.exports import Example, try_export
from sweep.training.fused.trainer import train_side_by_side
from sweep.training.lightning_trainer import hush_lightning, quiet_trainer
from sweep.training.mlflow_calls import FluentCalls
from sweep.training.mlp import MLPClassifier
from sweep.training.modules import has_own_loaders
from sweep.training.plain.trainer import train_plainly
from sweep.training.project.project import Built, Project, monitors_validation
from sweep.training.resuming import seed_everything
from sweep.training.run import Run
from sweep.training.slot_loop import Slots, no_model
from sweep.trial import (
    EpochReport,
    Notice,
    Orders,
    Pulse,
    Report,
    Stop,
    TrialFinished,
    TrialSpec,
    TrialStarted,
    TrialState,
    count_devices,
    derive_seed,
    now_ms,
)

if TYPE_CHECKING:
    from sweep.tracking.training import TrainingRun

EpochHook = Callable[[float, Mapping[str, float]], None]
NoticeHook = Callable[[str], object]
ONE_DEVICE = (
    "sweep train uses one device: in the search {n} shared each step, so {n} times the batch size "
    "is the same training"
)
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
    on_notice: NoticeHook | None = None, *, keep_val: bool | None = None,
) -> Trained:  # fmt: skip
    """Train `recipe` on train + validation; the test split is read once, after the last epoch.

    Args:
        recipe: Model, data, epochs, seed and batch size.
        config: Machine and stores: data_dir, accelerator, devices, tracking_uri.
        output: Path of the Lightning checkpoint. Until the training is done, the resume state is
            in a folder beside it.
        on_epoch: Called after each epoch, and each validation within one, with the epochs done
            and the metrics.
        on_notice: Called with a line for the user.
        keep_val: Whether validation stays apart; None: if a callback or schedule watches it.

    Raises StudyInterrupted once the epoch of a signal is saved, UndeliveredError if MLflow is
    away at the end (the same call delivers), DataError, StoreError, DiskError, StudyFailedError
    for metrics that are not finite and for exceptions of a user's module.

    A module with its own loaders is trained on those, as in a search, and tested on its own test
    loader. One without test_step is not tested.
    """
    if recipe.kind == "objective":
        raise ConfigError(
            f"{recipe.module} is an objective function, which trains by itself: call it with the "
            "parameters of `sweep best`"
        )
    hush_lightning()
    if (n_devices := count_devices(config.devices)) > 1:
        config = dataclasses.replace(config, devices=first_device(config.devices))
        if on_notice is not None:
            on_notice(ONE_DEVICE.format(n=n_devices))
    with foreign_set_aside():
        parts = output.with_name(f"{output.name}.parts")
        spec = _spec(recipe, parts)
        log = _Log(spec, parts, on_epoch, on_notice or (lambda message: None))
        seed_everything(spec.seed)
        project, built = _built(recipe, config, spec, log, keep_val)
        with log.pausing(), stopping(log.stop):
            started = dataclasses.replace(
                _started(recipe, built), logged=str(TrialFiles(parts, spec.number).path(LOGGED))
            )
            from sweep.tracking import training  # loads MLflow

            info = built.data.info if built.data is not None else None
            log.open(training.TrainingRun(config.tracking_uri, started, info, recipe.module))
            trained = _train(recipe, config, output, (project, built), log)
        shutil.rmtree(parts, ignore_errors=True)
        return trained


def _built(
    recipe: Recipe, config: RunConfig, spec: TrialSpec, log: _Log, keep_val: bool | None
) -> tuple[Project, Built]:
    """Module and data of the training: train and validation together, unless something watches
    validation."""
    task = task_of(recipe, config, log.parts)
    with _explained(recipe.module):
        project = Project(task, end="joined")
        built = project.built(spec)
        is_divided = built.data is not None and "datamodule" not in built.data.fit_arguments(1)
        if has_own_loaders(built.module) or not is_divided:
            log.say(f"{recipe.module} is trained on {_own(built)}, not on train + validation")
        elif keep_val or (keep_val is None and _is_watched(recipe, built)):
            log.say("validation is kept apart, as in the search" + ("" if keep_val else WATCHED))
            project = Project(task, end="apart")
            seed_everything(spec.seed)
            built = project.built(spec)
    return project, built


WATCHED = ": a callback or schedule watches it (--join-val trains on it, too)"


def _is_watched(recipe: Recipe, built: Built) -> bool:
    return recipe.module != DEFAULT_MODULE and monitors_validation(built)


def _own(built: Built) -> str:
    is_modules = built.data is None or has_own_loaders(built.module)
    return "the train_dataloader that it brings" if is_modules else "its DataModule's loaders"


def _train(
    recipe: Recipe, config: RunConfig, output: Path, what: tuple[Project, Built], log: _Log
) -> Trained:
    project, built = what
    task, module = task_of(recipe, config, log.parts), built.module
    slots, calls = Slots(task, log, keeps_end=True), FluentCalls(output.parent)
    try:
        with calls.caught(), _explained(recipe.module):
            if isinstance(module, MLPClassifier) and why_plain(task) is None:
                assert built.data is not None
                train_side_by_side(task, built.data.tensors(), slots, ("train_loss",))
            else:
                train_plainly(task, project, slots, calls, given=built)
            run, module, example = _ended(slots)
            if not run.is_trained and run.stop is not None:
                saved = "that is not saved" if log.is_unsaved else "that is saved"
                raise StudyInterrupted(
                    f"interrupted after epoch {run.epochs_done:g} of {recipe.epochs}: {saved}, "
                    "the same command goes on"
                )
            arguments = project.plain_arguments(recipe.model)
            # Before the test, which may fail.
            n_epochs = math.ceil(run.epochs_done)
            write_checkpoint(output, module, arguments, n_epochs - 1, run.n_steps)
            trainer = quiet_trainer(
                output.parent, accelerator=config.accelerator,
                devices=lightning_devices(config.devices), precision=recipe.precision,
            )  # fmt: skip
            metrics = _test(trainer, module, built, recipe, log)
            archive, why = try_export(output.with_suffix(".pt2"), module, example, recipe.module)
            if archive is None:
                log.say(no_model(recipe.module, why))
    finally:
        calls.remove()
    log.finish(metrics, str(output), archive)
    return Trained(metrics, output, log.run_id, n_epochs)


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
    trainer: lightning.Trainer, module: lightning.LightningModule, built: Built, recipe: Recipe,
    log: _Log,
) -> dict[str, float]:  # fmt: skip
    """Metrics on the test split, or on the module's own test loader; none if there is none."""
    given, missing = _test_data(module, built, recipe)
    if missing:
        log.say(f"trained and saved, but not tested: {missing}")
        return {}
    results = trainer.test(module, verbose=False, **given)
    return {name: float(value) for result in results for name, value in result.items()}


def test_checkpoint(
    recipe: Recipe, config: RunConfig, checkpoint: Path
) -> tuple[dict[str, float], int]:
    """Metrics of a trained model on the test split, and the number of its samples.

    Raises ConfigError if there is nothing to test it on, DataError, StudyFailedError for errors of
    a user's module.
    """
    hush_lightning()
    with foreign_set_aside(), tempfile.TemporaryDirectory() as folder, _explained(recipe.module):
        task = task_of(recipe, config, Path(folder))
        spec = _spec(recipe, Path(folder))
        seed_everything(spec.seed)
        built = Project(task, end="apart").built(spec)
        kept = torch.load(checkpoint, map_location="cpu", weights_only=True)
        built.module.load_state_dict(kept["state_dict"])
        given, missing = _test_data(built.module, built, recipe)
        if missing:
            raise ConfigError(missing)
        counter = _Samples()
        trainer = quiet_trainer(
            folder, accelerator=config.accelerator, callbacks=[counter],
            devices=lightning_devices(first_device(config.devices)), precision=recipe.precision,
        )  # fmt: skip
        found = trainer.test(built.module, verbose=False, **given)
    return {name: float(value) for row in found for name, value in row.items()}, counter.n


class _Samples(lightning.Callback):
    """Counts the samples of a test."""

    n = 0

    def on_test_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any,
        batch: Any, batch_idx: int, dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Count the minibatch."""
        self.n += extract_batch_size(batch)


def _test_data(
    module: lightning.LightningModule, built: Built, recipe: Recipe
) -> tuple[dict[str, Any], str]:
    """Arguments of `Trainer.test`; and what is missing for it, or ""."""
    if not is_overridden("test_step", module):
        return {}, f"{recipe.module} has no test_step"
    data, is_own = built.data, is_overridden("test_dataloader", module)
    datamodule = None if data is None else data.fit_arguments(1).get("datamodule")
    if datamodule is not None and is_overridden("test_dataloader", datamodule):
        return {"datamodule": datamodule}, ""
    if is_own:
        return {}, ""
    if data is None or datamodule is not None or has_own_loaders(module):
        who = recipe.data if datamodule is not None else recipe.module
        return {}, f"{who} has no test_dataloader"
    try:
        return data.test_arguments(), ""
    except SealedTestSplitError:
        return {}, f'{recipe.data} gives no "test"'


def _ended(slots: Slots) -> tuple[Run, lightning.LightningModule, Example | None]:
    """The training, its module, and a sample of its input. Raises StudyFailedError."""
    assert slots.ended is not None
    run, module, example = slots.ended
    if module is None:
        why = run.failure.message if run.failure else ""
        raise StudyFailedError(f"the training failed: {why}")
    return run, module, example


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


def _started(recipe: Recipe, built: Built) -> TrialStarted:
    training: dict[str, Any] = {
        "epochs": recipe.epochs, "batch_size": recipe.batch_size, "seed": recipe.seed,
        "data": recipe.data,
    }  # fmt: skip
    origin = f" of t{recipe.trial:03d}" if recipe.trial is not None else ""
    has_val = built.data is not None and built.data.info.n_val > 0
    is_own = built.data is None or has_own_loaders(built.module) or built.data.info.n_train == 0
    source = "its own loaders" if is_own else ("train" if has_val else "train+val")
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
        """End the training after this epoch, or within it."""
        self._is_stopping = True

    def __call__(self, reports: Sequence[Report], n_free: int) -> Orders:
        """Take reports; the orders stop the training after a signal."""
        epochs = [report for report in reports if isinstance(report, EpochReport)]
        for report in reports:
            if isinstance(report, Notice):
                self.say(report.message)
            elif isinstance(report, EpochReport) and not report.is_replay and self._on_epoch:
                self._on_epoch(report.epochs_done, report.metrics)
        self._reports += epochs
        if epochs and time.monotonic() >= self._next_try_s:
            self._deliver()
        is_stopped = self._is_stopping and any(isinstance(r, EpochReport | Pulse) for r in reports)
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
