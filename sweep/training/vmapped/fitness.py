"""Whether a trial's fit may leave its training steps to a group, by looking at it alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lightning
from lightning.pytorch.callbacks import (
    Callback,
    Checkpoint,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.utilities.model_helpers import is_overridden

FEWEST_STEPS = 3
"""Shorter epochs are not worth it."""
STEP_HOOKS = (
    "on_train_batch_start", "on_train_batch_end", "on_before_zero_grad", "on_before_backward",
    "on_after_backward", "on_before_optimizer_step", "backward", "optimizer_step",
    "optimizer_zero_grad", "configure_gradient_clipping", "lr_scheduler_step",
    "on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer",
)  # fmt: skip
"""Hooks of single steps: a group would not call them."""
_BATCH_HOOKS = STEP_HOOKS[:6]


def why_alone(trainer: Any, ours: tuple[type, ...] = ()) -> str:
    """Why a fit has to train all its steps itself; "": it need not.

    Args:
        trainer: As its first epoch begins.
        ours: Callbacks and loggers that need no hooks of single steps.
    """
    module: Any = trainer.lightning_module
    if not module.automatic_optimization:
        return "it optimises by hand"
    if len(trainer.optimizers) != 1:
        return f"it has {len(trainer.optimizers)} optimizers"
    for owner in filter(None, (module, trainer.datamodule)):
        parent = lightning.LightningModule if owner is module else lightning.LightningDataModule
        for hook in STEP_HOOKS:
            if hasattr(parent, hook) and is_overridden(hook, owner, parent):
                return f"it has a {hook}"
    return _of_trainer(trainer) or _of_hooks(trainer) or _of_callbacks(trainer, ours)


def _of_hooks(trainer: Any) -> str:
    """Hooks that a user registered with objects of torch's."""
    (optimizer,), module = trainer.optimizers, trainer.lightning_module
    if _has_others(optimizer.register_step_pre_hook) or _has_others(
        optimizer.register_step_post_hook
    ):
        return "its optimizer has hooks"
    for name, weight in module.named_parameters():
        if weight.requires_grad and (
            _has_others(weight.register_hook)
            or _has_others(weight.register_post_accumulate_grad_hook)
        ):
            return f"{name} has hooks"
    for name, part in module.named_modules():
        try:
            if _has_others(part.register_full_backward_pre_hook) or _has_others(
                part.register_full_backward_hook
            ):
                return f"{name or 'it'} has hooks of its backward pass"
        except RuntimeError:  # of the old kind
            return f"{name or 'it'} has hooks of its backward pass"
    return ""


def _has_others(register: Callable[[Callable[..., None]], Any]) -> bool:
    """Whether there are hooks where `register` adds one."""
    handle = register(lambda *_: None)
    try:
        return len(handle.hooks_dict_ref()) > 1
    finally:
        handle.remove()


def _of_trainer(trainer: lightning.Trainer) -> str:
    n_batches = trainer.num_training_batches
    if not math.isfinite(n_batches):
        return "the length of its epochs is not known"
    if n_batches < FEWEST_STEPS:
        return f"an epoch has {n_batches} minibatches"
    if trainer.accumulate_grad_batches != 1:
        return "it accumulates gradients"
    if trainer.max_steps > 0:
        return "it ends after a number of steps"
    is_within = trainer.check_val_every_n_epoch is None or trainer.val_check_batch != n_batches
    if is_within and trainer.enable_validation:
        return "it is validated within an epoch"
    if any(c.interval == "step" and c.reduce_on_plateau for c in trainer.lr_scheduler_configs):
        return "a schedule follows a metric by step"
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        return "its precision scales gradients"
    if trainer.world_size > 1:
        return "it trains on several devices"
    return ""


def _monitors_steps(monitor: LearningRateMonitor, trainer: lightning.Trainer) -> bool:
    by_step = any(config.interval == "step" for config in trainer.lr_scheduler_configs)
    return monitor.logging_interval == "step" or (monitor.logging_interval is None and by_step)


def _of_callbacks(trainer: Any, ours: tuple[type, ...]) -> str:
    others: list[Any] = [*trainer.callbacks, *trainer.loggers]
    for one in others:
        if isinstance(one, ours) or not isinstance(one, Callback):
            if not isinstance(one, ours):
                return f"{type(one).__name__} takes values by step"
            continue
        if isinstance(one, LearningRateMonitor) and not _monitors_steps(one, trainer):
            continue
        if type(one) is ModelCheckpoint and "'every_n_train_steps': 0" in one.state_key:
            continue
        name = type(one).__name__
        if isinstance(one, StochasticWeightAveraging):
            return f"{name} changes how it trains"
        parent = Checkpoint if isinstance(one, Checkpoint) else Callback
        for hook in _BATCH_HOOKS:
            if hasattr(parent, hook) and is_overridden(hook, one, parent):
                return f"{name} has an {hook}"
    return ""
