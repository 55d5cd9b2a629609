"""The logged model of a trial that got none as it ended."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import lightning

from sweep.config.settings import RunConfig
from sweep.errors import ConfigError, DiskError
from sweep.loading import one_line, raised_by_user_code
from sweep.repair.recollection import Recollections
from sweep.reuse.best import opened
from sweep.tracking import bring_up
from sweep.training.exports import export_model
from sweep.training.modules import sample_shape


def log_model(
    study: str, number: int, module: lightning.LightningModule, where: RunConfig
) -> None:
    """Export `module`, the trained one of trial `number`, and bring the trial's run up to it.

    Raises ConfigError for a module that cannot be exported, StoreError.
    """
    with opened(study, where) as (ledger, config), tempfile.TemporaryDirectory() as folder:
        known = Recollections(config, ledger)
        info, history = known.study(), known.trial(number).history
        assert history.finished is not None
        shape = info.dataset.feature_shape if info.dataset else ()
        try:
            file = export_model(Path(folder) / "model.pt2", module, sample_shape(module, shape))
        except DiskError:
            raise
        except BaseException as error:
            why = one_line(raised_by_user_code(error), config.module)
            raise ConfigError(f"{config.module} cannot be exported: {why}") from error
        finished = dataclasses.replace(history.finished, model_file=file)
        bring_up(config.tracking_uri, info, dataclasses.replace(history, finished=finished))
