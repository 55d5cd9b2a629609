"""What the workers of a search must know, and how they are started early. Free of Optuna."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.config.lightning_file import sections_of
from sweep.config.settings import RunConfig
from sweep.data import catalog as datasets
from sweep.executors import make_executor
from sweep.protocols import Executor
from sweep.trial import Task

if TYPE_CHECKING:
    from sweep.space import Space


SESSION = uuid.uuid4().hex
"""Of this process's searches."""


def begin_loading(config: RunConfig, space: Space | None = None) -> Executor:
    """Start workers, which load their libraries from now on; the caller must kill the executor.

    Call it before Optuna is imported, so that both load at the same time. Raises ConfigError or
    DataError if the data cannot be fetched.
    """
    if config.executor != "ray":  # whose nodes fetch it, each once
        datasets.prepare(config.data, config.data_dir)
    executor = make_executor(
        config.executor, config.workers, address=config.ray_address, gpus=config.gpus_per_worker,
        cpus=config.cpus_per_worker,
    )  # fmt: skip
    with contextlib.suppress(OSError):  # a folder that cannot be written: the search says so
        executor.warm_up(make_task(config, space))
    return executor


def make_task(config: RunConfig, space: Space | None = None) -> Task:
    """The settings of a search for its workers; without `space`, names are not checked."""
    return Task(
        study=config.study_name,
        seed=config.seed,
        data=config.data,
        data_dir=config.data_dir,
        module=config.module,
        kind=config.kind,
        epochs=config.epochs,
        batch_size=config.batch_size,
        metric=config.metric,
        direction=config.resolved_direction,
        work_dir=str(config.study_dir.resolve()),
        log_file=str((config.study_dir / "sweep.log").resolve()),
        accelerator=config.accelerator,
        devices=config.devices,
        strategy=config.strategy,
        precision=config.precision,
        n_threads=1 if config.deterministic else config.threads,
        population=config.population,
        is_deterministic=config.deterministic,
        proof=config.proof,
        n_trials=config.trials,
        may_add_workers=config.workers is None and config.executor == "process",
        checkpoint_interval_s=config.checkpoint_interval_s,
        trial_timeout_s=config.trial_timeout_s,
        log_models=config.log_models,
        worker_memory_gb=config.worker_memory_gb,
        names=None if space is None else space.names,
        probes=_probes(config, space),
        callbacks=config.callback,
        session=SESSION,
        config=sections_of(Path(config.lightning)) if config.lightning else {},
    )


def _probes(config: RunConfig, space: Space | None) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    """Configurations for the preflight; none where there is nothing to try in advance."""
    if space is None or config.is_mlp or config.kind == "objective":
        return ()
    return space.probes(config.seed)


def sources_of(config: RunConfig) -> dict[str, str]:
    """The user's own code that a search names: module, data."""
    return {"data": config.data} | ({} if config.is_mlp else {"module": config.module})
