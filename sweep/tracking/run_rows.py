"""What a run has in MLflow beside its files, and the plain way to write it: the client's methods.

Imports mlflow: only the driver may load this module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, final

from mlflow import MlflowClient
from mlflow.entities import (
    DatasetInput,
    LoggedModel,
    LoggedModelOutput,
    Metric,
    Param,
    Run,
    RunData,
    RunTag,
)

N_METRICS, N_PARAMS = 800, 90
"""What one log_batch call may hold: MLflow allows 1000 in all, 100 params and 100 tags."""


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run that begins."""

    experiment_id: str
    name: str
    time_ms: int
    """Unix time in milliseconds."""
    tags: Mapping[str, str]
    params: Mapping[str, str]
    inputs: Sequence[DatasetInput]


@dataclass(frozen=True, slots=True)
class NewModel:
    """A logged model of a run, whose files are yet to be stored."""

    experiment_id: str
    run_id: str
    name: str
    tags: Mapping[str, str]
    params: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Output:
    """A logged model whose files are stored."""

    model_id: str
    step: int
    """Epoch of the weights."""
    is_ready: bool = False
    """Whether MLflow calls it so already."""
    is_linked: bool = False
    """Whether the run names it as its output already."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ends."""

    status: str
    """FINISHED, KILLED or FAILED."""
    time_ms: int
    """Unix time in milliseconds."""
    output: Output | None = None


class RunRows(Protocol):
    """Writes runs of a store. Everything but new runs and models may be written twice."""

    def make_run(self, new: NewRun) -> Run:
        """Make a run, with its name, tags, params and the data that it reads."""
        ...

    def make_model(self, new: NewModel) -> LoggedModel:
        """Make a logged model that is not ready yet."""
        ...

    def log(
        self, run_id: str, metrics: Sequence[Metric], params: Mapping[str, str],
        tags: Mapping[str, str],
    ) -> None:  # fmt: skip
        """Log all of it."""
        ...

    def finish(
        self, run_id: str, metrics: Sequence[Metric], tags: Mapping[str, str], ending: Ending
    ) -> None:
        """Log all of it, then give the run its final status: one that has it lacks nothing."""
        ...


@final
class OneByOne:
    """By the client's public methods."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client

    def make_run(self, new: NewRun) -> Run:
        """See `RunRows`."""
        run = self._client.create_run(new.experiment_id, new.time_ms, dict(new.tags), new.name)
        if new.inputs:
            self._client.log_inputs(run.info.run_id, list(new.inputs))
        self.log(run.info.run_id, (), new.params, {})
        return Run(run.info, RunData(params=params_of(new.params), tags=tags_of(run.data.tags)))

    def make_model(self, new: NewModel) -> LoggedModel:
        """See `RunRows`."""
        return self._client.create_logged_model(
            experiment_id=new.experiment_id,
            name=new.name,
            source_run_id=new.run_id,
            tags=dict(new.tags),
            params=dict(new.params),
        )

    def log(
        self, run_id: str, metrics: Sequence[Metric], params: Mapping[str, str],
        tags: Mapping[str, str],
    ) -> None:  # fmt: skip
        """See `RunRows`. In one call where MLflow's limits allow."""
        rows, marks = params_of(params), tags_of(tags)
        while metrics or rows or marks:
            self._client.log_batch(run_id, metrics[:N_METRICS], rows[:N_PARAMS], marks[:N_PARAMS])
            metrics, rows, marks = metrics[N_METRICS:], rows[N_PARAMS:], marks[N_PARAMS:]

    def finish(
        self, run_id: str, metrics: Sequence[Metric], tags: Mapping[str, str], ending: Ending
    ) -> None:
        """See `RunRows`."""
        output = ending.output
        if output and not output.is_ready:
            self._client.finalize_logged_model(output.model_id, "READY")
        if output and not output.is_linked:
            self._client.log_outputs(run_id, [LoggedModelOutput(output.model_id, output.step)])
        self.log(run_id, metrics, {}, tags)
        self._client.set_terminated(run_id, ending.status, ending.time_ms)


def params_of(values: Mapping[str, str]) -> list[Param]:
    """A table as MLflow takes it."""
    return [Param(key, value) for key, value in values.items()]


def tags_of(values: Mapping[str, str]) -> list[RunTag]:
    """A table as MLflow takes it."""
    return [RunTag(key, str(value)) for key, value in values.items()]
