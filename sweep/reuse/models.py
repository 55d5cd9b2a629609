"""The logged model of a trial that got none as it ended."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import lightning

from sweep.config.settings import RunConfig
from sweep.errors import ConfigError
from sweep.repair.records import StudyRecords
from sweep.reuse.best import opened
from sweep.tracking import mirror
from sweep.training.exports import try_export


def log_model(
    study: str, number: int, module: lightning.LightningModule, where: RunConfig
) -> None:
    """Export `module`, the trained one of trial `number`, and bring the trial's run up to it.

    Raises ConfigError for a module that cannot be exported, StoreError.
    """
    with opened(study, where) as (ledger, config), tempfile.TemporaryDirectory() as folder:
        known = StudyRecords(config, ledger)
        info, history = known.study(), known.trial(number)
        assert history.finished is not None
        shape = info.dataset.feature_shape if info.dataset else ()
        file, why = try_export(Path(folder) / "model.pt2", module, shape, config.module)
        if file is None:
            raise ConfigError(f"{config.module} cannot be exported: {why}")
        finished = dataclasses.replace(history.finished, model_file=file)
        mirror.sync_trial(
            config.tracking_uri, info, dataclasses.replace(history, finished=finished)
        )
