"""The plain path: one trial at a time in an ordinary lightning.Trainer.

For any LightningModule, and the reference that the fused path is tested against.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch

from sweep.data.catalog import is_custom
from sweep.data.tensors import Batches, SearchData, load_search_data
from sweep.errors import ConfigError, DiskError
from sweep.hyperparameters import DEFAULT_MODULE
from sweep.loading import import_object, raised_by_user_code
from sweep.protocols import Exchange
from sweep.training.devices import lightning_devices, ready
from sweep.training.failures import classify
from sweep.training.fluent import FluentCalls
from sweep.training.fused.threads import SMALL_FEATURES
from sweep.training.modules import argument_faults, build_module, has_own_loaders
from sweep.training.plain.run import PlainRun
from sweep.training.quiet import hush_lightning, quiet_trainer
from sweep.training.resuming import (
    AtomicCheckpointIO,
    Keeper,
    clear_folder,
    load_resume_file,
    now_ms,
    seed_everything,
    unusable,
)
from sweep.training.surroundings import current_folder, undisturbed
from sweep.trial import Failure, Notice, Report, Task, TrialSpec

EVALUATION_BATCH = 4096
"""Samples of a validation batch: large, since results do not depend on it."""


class PlainTrainer:
    """Trains what is ordered, one trial after the other."""

    def __init__(
        self,
        task: Task,
        data: SearchData | Callable[[], SearchData] | None = None,
        *,
        notice: str | None = None,
    ) -> None:
        hush_lightning()
        self._notice = notice
        if task.n_threads:
            torch.set_num_threads(task.n_threads)
        self._folder, self._calls = current_folder(), FluentCalls(task.work_dir)
        self._is_users = task.module != DEFAULT_MODULE or is_custom(task.data)
        # A wrong name is said before the first trial.
        with self._caught():
            made_by = import_object(task.module, "--module")
        is_checked = task.module != DEFAULT_MODULE and task.names is not None
        if is_checked and (faults := argument_faults(task.module, made_by, task.names or ())):
            raise ConfigError([*faults, *_where_names_are_from(task.space)])
        self._task = task
        given = data() if callable(data) else data
        with self._caught():
            self._data = given or load_search_data(task.data, task.data_dir, task.seed)
        n_features = self._data.train.x[0].numel()
        if task.module == DEFAULT_MODULE and n_features <= SMALL_FEATURES:
            torch.set_num_threads(1)
        self._is_on_device = False
        self._said: set[str] = set()
        self._keeper = Keeper(task.checkpoint_interval_s)

    def train(self, exchange: Exchange) -> None:
        """Train what `exchange` orders, until it says is_last and nothing is left."""
        try:
            self._train(exchange)
        finally:
            self._calls.remove()

    def _caught(self) -> contextlib.AbstractContextManager[None]:
        return self._calls.caught() if self._is_users else contextlib.nullcontext()

    def _train(self, exchange: Exchange) -> None:
        waiting: collections.deque[TrialSpec] = collections.deque()
        first: list[Report] = [ready(self._task, self._data, 1, "plain")]
        if self._notice:
            first.append(Notice(now_ms(), self._notice))
        orders = exchange(first, 1)
        while True:
            waiting.extend(orders.start)
            if not waiting:
                if orders.is_last:
                    return
                orders = exchange((), 1)
                continue
            with undisturbed(self._folder), self._caught():
                reports, ordered_meanwhile = self._train_one(waiting.popleft(), exchange)
            waiting.extend(ordered_meanwhile)
            orders = exchange(reports, 0 if waiting else 1)

    def _train_one(
        self, spec: TrialSpec, exchange: Exchange
    ) -> tuple[Sequence[Report], list[TrialSpec]]:
        """Last reports of the trial, and trials that were ordered while it trained."""
        clear_folder(spec, self._task)
        run = self._new_run(spec, exchange)
        try:
            try:
                if spec.resume_from is not None:
                    run.resume(load_resume_file(spec, "plain"))
                self._fit(run)
            except BaseException as error:
                raised_by_user_code(error)
                # What breaks before the first step is the file's fault, not the trial's.
                is_resumed = spec.resume_from is not None
                if run.has_begun or not is_resumed or classify(error).kind == "oom":
                    raise
                run = self._new_run(spec, exchange, unusable(spec, error))
                self._fit(run)
            reports = run.last_words(self._data)
            return [*self._news(run), *reports], run.ordered
        except BaseException as error:  # a user's bug fails the trial, not the search
            if run.driver_error is not None:
                raise run.driver_error from None
            if isinstance(error, DiskError):
                raise
            failure = classify(raised_by_user_code(error), self._task.module)
            self._note(spec, failure)
            return run.failed(failure), run.ordered

    def _news(self, run: PlainRun) -> list[Notice]:
        """What the user should know of such trials, once."""
        found = [run.why_no_model]
        if run.module is not None and has_own_loaders(run.module):
            found.append(
                f"{self._task.module} trains on loaders of its own: what is named after "
                f"--data {self._task.data} (the study, MLflow's data set) is not what it saw"
            )
        news = [text for text in found if text and text not in self._said]
        self._said |= {*news}
        return [Notice(now_ms(), text) for text in news]

    def _note(self, spec: TrialSpec, failure: Failure) -> None:
        """Write the traceback into the study's log, for this executor and for every other."""
        text = f"trial {spec.number} failed: {failure.message}\n{failure.traceback}\n"
        with contextlib.suppress(OSError), Path(self._task.log_file).open("a") as log:
            log.write(text)

    def _new_run(self, spec: TrialSpec, exchange: Exchange, *said: Report) -> PlainRun:
        return PlainRun(self._task, spec, exchange, self._keeper, self._calls, said)

    def _fit(self, run: PlainRun) -> None:
        task, spec = self._task, run.spec
        seed_everything(spec.seed)
        run.module = build_module(task.module, spec.hyperparameters, self._data, spec.seed)
        if run.is_trained:
            return
        trainer = quiet_trainer(
            task.work_dir,
            max_epochs=task.epochs,
            accelerator=task.accelerator,
            devices=lightning_devices(task.devices),
            precision=task.precision,
            callbacks=[run],
            plugins=[AtomicCheckpointIO()],
        )
        self._move_data(trainer)
        trainer.fit(
            run.module,
            ckpt_path=spec.resume_from if run.is_resumed else None,
            weights_only=True,
            **self._loaders(run),
        )

    def _move_data(self, trainer: lightning.Trainer) -> None:
        if not self._is_on_device:
            self._data = self._data.to(trainer.strategy.root_device)
            self._is_on_device = True

    def _loaders(self, run: PlainRun) -> dict[str, Any]:
        if run.module is None or has_own_loaders(run.module):
            return {}
        task, spec = self._task, run.spec
        batch_size = int(spec.hyperparameters.get("batch_size", task.batch_size))
        return {
            "train_dataloaders": Batches(
                self._data.train, batch_size, seed=task.seed, first_epoch=run.start_epoch
            ),
            "val_dataloaders": Batches(self._data.val, EVALUATION_BATCH),
        }


def _where_names_are_from(space: str) -> list[str]:
    """A line about a shipped space, which the user of a module may not have named."""
    if not space or Path(space).suffix:
        return []
    return [
        f"these hyperparameters come from search space {space}: name one of yours with --space"
    ]
