"""Preflight: a few minibatches before trial 0 show what a search would run into.

One configuration is trained for one minibatch, validated and, once for each parameter, trained
again with another value of it: a parameter that changes nothing is no hyperparameter.
"""

from __future__ import annotations

import contextlib
import re
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from sweep.errors import did_you_mean, must_be_one_of
from sweep.hyperparameters import TRAINING_ARGUMENTS
from sweep.loading import import_object, raised_by_user_code
from sweep.training.lightning_trainer import quiet_trainer
from sweep.training.plain.fitting import loaders, one_device, trainer_arguments
from sweep.training.project.project import Project
from sweep.training.project.reading import is_read, is_used, sources
from sweep.training.resuming import seed_everything
from sweep.trial import Task, TrialSpec

LONGEST_S = 40.0
"""Time for all trial fits: parameters left then are not examined."""


@dataclass
class Findings:
    """What a preflight found."""

    faults: list[str] = field(default_factory=list)
    """Reasons not to begin."""
    notices: list[str] = field(default_factory=list)
    metrics: tuple[str, ...] = ()
    """Names logged in one minibatch of training and validation."""
    error: BaseException | None = None
    """What the module raised; its trials may fail, too."""


def preflight(project: Project, task: Task) -> Findings:
    """Train a minibatch with `task.probes[0]`, and with each of the others.

    Changes settings of the process, as any user code may: call it within `undisturbed`.
    """
    found = Findings()
    if not task.probes:
        return found
    (_, base), *others = task.probes
    trees = [project.type_faults(values) for _, values in task.probes]
    found.faults += dict.fromkeys(fault for faults in trees for fault in faults)
    if found.faults:
        return found
    dead: list[str] = []
    try:
        with _limited():
            before = _outcome(project, task, base)
            found.metrics = tuple(sorted(before["metrics"]))
            found.faults += _metric_faults(task, found.metrics)
            for name, values in others:
                dead += [name] if _is_dead(project, task, before, values) else []
    except BaseException as error:  # noqa: BLE001 - user code
        found.error = raised_by_user_code(error)
    for name in dead:
        if _may_act_later(project, task, name):
            found.notices.append(f"{name} changes nothing in the first minibatch")
        else:
            found.faults.append(
                f"{name} changes nothing: neither weights, minibatches, optimizer, schedule nor "
                f"metrics of {task.module} depend on it"
            )
    return found


def _may_act_later(project: Project, task: Task, name: str) -> bool:
    """Whether a parameter that changes nothing in a minibatch is looked at by the user's code."""
    if task.kind == "build":
        return is_used(import_object(task.module, "--module"), name)
    makers = project.makers(name)
    is_known = bool(makers) or name in TRAINING_ARGUMENTS
    return not is_known or any(is_read(made_by, path) for made_by, path in makers)


class _TooLongError(Exception):
    """The preflight takes longer than LONGEST_S."""


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Within, user code is interrupted after LONGEST_S; only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: Any) -> None:
        raise _TooLongError

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, LONGEST_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def _outcome(project: Project, task: Task, values: Mapping[str, Any]) -> dict[str, Any]:
    """All that a minibatch of training and validation leaves behind."""
    seed_everything(0)
    built = project.built(TrialSpec(0, values, 0))
    module = built.module
    with tempfile.TemporaryDirectory() as folder:
        given = trainer_arguments(task, built) | one_device(task) | {
            "max_epochs": 1, "max_steps": -1, "limit_train_batches": 1, "limit_val_batches": 1,
            "limit_test_batches": 1, "val_check_interval": 1.0, "check_val_every_n_epoch": 1,
            "logger": False, "accumulate_grad_batches": 1,
        }  # fmt: skip
        loss = _Loss()
        given["callbacks"] = [*given["callbacks"], loss]
        trainer = quiet_trainer(folder, **given)
        trainer.fit(module, **loaders(built, 0, trainer))
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {
        "metrics": metrics,
        "loss": loss.value,  # clipped gradients may hide it
        "weights": {name: value.clone() for name, value in module.state_dict().items()},
        "optimizers": [_settings(optimizer) for optimizer in trainer.optimizers],
        "schedules": [c.scheduler.state_dict() for c in trainer.lr_scheduler_configs],
        "trainer": {k: str(v) for k, v in built.trainer.items()},
        "n_batches": (trainer.num_training_batches, str(trainer.num_val_batches)),
    }


class _Loss(Callback):
    """What the training step returns."""

    value: float | None = None

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any,
        batch: Any, batch_idx: int,
    ) -> None:  # fmt: skip
        """Keep the loss."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        self.value = float(loss) if isinstance(loss, Tensor) and loss.numel() == 1 else None


def _settings(optimizer: Any) -> list[Any]:
    groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    return [type(optimizer).__name__, *groups]


def _is_dead(
    project: Project, task: Task, before: Mapping[str, Any], values: Mapping[str, Any]
) -> bool:
    """Whether another value leaves everything as it was; an error counts as a change."""
    try:
        return _same(before, _outcome(project, task, values))
    except _TooLongError:
        raise
    except BaseException as error:  # noqa: BLE001 - user code
        raised_by_user_code(error)
        return False


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b) or (a != a and b != b)


def _metric_faults(task: Task, logged: Sequence[str]) -> list[str]:
    """A misspelt objective: not logged, not a word of the module's source, but near a name."""
    if task.metric in logged or not logged or not did_you_mean(task.metric, logged):
        return []
    word = re.compile(rf"\b{re.escape(task.metric)}\b")
    is_word = any(map(word.search, sources(import_object(task.module, "--module"))))
    return [] if is_word else [must_be_one_of("--metric", task.metric, logged)]
