"""Lightning without banners, tips, hardware lines and warnings."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import lightning
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Checkpoint

NOISY_LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric", "lightning_utilities")


def hush_lightning() -> None:
    """Suppress Lightning's messages in this process from now on."""
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    warnings.filterwarnings("ignore", message=r".*does not have many workers.*")


class QuietTrainer(lightning.Trainer):
    """A Trainer without SIGTERM handling. Its class name also disables PL_TRAINER_* variables."""

    @property
    def received_sigterm(self) -> bool:
        """False: Lightning's handler forwards SIGTERM to ours, which decides."""
        return False


def quiet_trainer(default_root_dir: str | Path, **arguments: Any) -> lightning.Trainer:
    """A silent single-process Trainer without logger and checkpoints of its own, unless given.

    All Trainers are made here, to stay one process under batch systems and launchers, too (see
    `sweep.environment.launchers`).
    """
    alone = LightningEnvironment()
    alone.set_global_rank(0)  # at its import Lightning read it from RANK, SLURM_PROCID, ...
    settings: dict[str, Any] = {
        "logger": False,
        # False unless a Checkpoint is given: Lightning would add one of its own.
        "enable_checkpointing": any(
            isinstance(callback, Checkpoint) for callback in arguments.get("callbacks", ())
        ),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": str(default_root_dir),
    }
    plugins = [alone, *arguments.pop("plugins", ())]
    return QuietTrainer(**(settings | arguments), plugins=plugins)
