"""Lightning without banners: tips, hardware lines and warnings go to the log, not the user."""

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
    """Keep Lightning's messages from the terminal, in this process, from now on."""
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    warnings.filterwarnings("ignore", message=r".*does not have many workers.*")


class QuietTrainer(lightning.Trainer):
    """A Trainer that leaves signals alone. Its name has no PL_TRAINER_* variables, either."""

    @property
    def received_sigterm(self) -> bool:
        """Never: Lightning's handler passes SIGTERM on to ours, which decides."""
        return False


def quiet_trainer(default_root_dir: str | Path, **arguments: Any) -> lightning.Trainer:
    """A Trainer that prints nothing, writes no file by itself, and is the only process.

    Each Trainer is made here: one process, whatever batch systems and launchers left in the
    environment (see `sweep.environment.surroundings`).
    """
    alone = LightningEnvironment()
    alone.set_global_rank(0)  # Lightning took it from RANK, SLURM_PROCID, ... when it was imported
    settings: dict[str, Any] = {
        "logger": False,
        # Only for a Checkpoint of ours: without one Lightning would add its own.
        "enable_checkpointing": any(
            isinstance(callback, Checkpoint) for callback in arguments.get("callbacks", ())
        ),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1_000_000,
        "default_root_dir": str(default_root_dir),
    }
    plugins = [alone, *arguments.pop("plugins", ())]
    return QuietTrainer(**(settings | arguments), plugins=plugins)
