"""Values exchanged between driver, workers and listeners.

All of them are frozen, picklable and made of plain values. This module imports neither torch nor
Optuna nor MLflow, because driver and workers share it.
"""

from __future__ import annotations

import enum
import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

HyperValue = Any
"""A hyperparameter's value: str, int, float, bool, None or a tuple of those."""

Direction = Literal["maximize", "minimize"]
StopReason = Literal["pruned", "converged", "timeout", "interrupted"]
EndReason = Literal["done", "timeout", "interrupted", "failed", "exhausted"]
FailureKind = Literal["oom", "nan", "exception", "killed", "timeout"]


MAX_RANKED = 100
"""Number of completed trials with a rank in MLflow: each rank is a call of 5 ms."""


class TrialState(enum.StrEnum):
    """Optuna's states; MLflow's are FINISHED, KILLED, FAILED, RUNNING, SCHEDULED."""

    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    FAIL = "FAIL"
    RUNNING = "RUNNING"
    WAITING = "WAITING"

    @property
    def is_finished(self) -> bool:
        """Whether a trial in this state counts towards the study's total."""
        return self in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass(frozen=True, slots=True)
class Task:
    """The settings of a study for its workers, sent once."""

    study: str
    """Name of the study."""
    seed: int
    """Seed of the study: data split, data order and initial weights derive from it."""
    data: str
    """Name of a data set in `sweep.data.catalog`."""
    data_dir: str | None
    """Folder of the data set's files; None: the user's cache."""
    module: str
    """`package.module:Class` of the LightningModule."""
    epochs: int
    """Most epochs of a trial."""
    batch_size: int
    """Minibatch size of trials whose search space does not set one."""
    metric: str
    """The metric whose best epoch is the objective."""
    direction: Direction
    """Whether a larger or a smaller metric is better."""
    work_dir: str
    """The study's folder for checkpoints (`<work_dir>/trials/00017/best.ckpt`)."""
    log_file: str
    """File for the output of libraries."""
    accelerator: str = "auto"
    """Lightning's `accelerator`."""
    devices: str = "1"
    """Lightning's `devices`."""
    precision: str = "32-true"
    """Lightning's `precision`."""
    n_threads: int | None = None
    """Threads for torch on a CPU; None: torch's own default."""
    population: int | None = None
    """Trials trained at the same time by a worker; None: by the device; 1: plain."""
    was_larger: bool = False
    """The population was halved from a larger one: a population of 1 is fused, too."""
    checkpoint_interval_s: float = 30.0
    """Resume state is written at most this often, in seconds."""
    trial_timeout_s: float | None = None
    """Most seconds of a trial, then it has failed; None: no limit."""
    log_models: str = "auto"
    """Completed trials whose model is exported: all, best:K, none or auto."""
    worker_memory_gb: float | None = None
    """A worker process with more resident memory is replaced, in 1e9 bytes; None: no limit."""
    names: tuple[str, ...] | None = None
    """Hyperparameters of the search space; None: unknown, so not checked."""
    space: str = ""
    """The search space as `--space` names it, for messages."""


@dataclass(frozen=True, slots=True)
class TrialSpec:
    """One configuration to train."""

    number: int
    """The trial's number in the study, from 0."""
    hyperparameters: Mapping[str, HyperValue]
    """Resolved hyperparameters, e.g. {"optimizer": "Adam", "lr": 1e-3, "hidden": (256, 64)}."""
    seed: int
    """Seed of initial weights and dropout: derive_seed(study seed, "init", number)."""
    start_epoch: int | None = None
    """Population epoch it first started in (decides its data order); None: not started yet."""
    is_resumed: bool = False
    """Whether it goes on from the resume state among its files."""
    settings: str = ""
    """Whatever else a checkpoint must share to be continued from; "": the study's, which do."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a trial failed."""

    kind: FailureKind
    message: str
    """One line."""
    traceback: str = field(default="", repr=False)

    @property
    def is_transient(self) -> bool:
        """Whether the failure is not the trial's fault, so that it is tried again."""
        return self.kind in ("oom", "killed")


@dataclass(frozen=True, slots=True)
class TrialStarted:
    """Record: a trial was handed to a trainer."""

    number: int
    name: str
    """Readable run name, e.g. "t017 Adam lr=1.2e-3 256-64"."""
    hyperparameters: Mapping[str, HyperValue]
    params: Mapping[str, HyperValue]
    """Optuna's own parameters (flat), e.g. {"hidden.0": 256}."""
    time_ms: int
    """Unix time in milliseconds."""
    tags: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The study's settings during its training, if they have changed since."""


@dataclass(frozen=True, slots=True)
class EpochReport:
    """Record: one trial's metrics after one epoch."""

    number: int
    epoch: int
    """Counts from 1."""
    metrics: Mapping[str, float]
    """At least train_loss, val_loss, val_acc for MLPClassifier; epoch_s always.

    epoch_s is the trial's share of the epoch, in seconds: in a population of 32 it is 1/32 of the
    epoch's time.
    """
    time_ms: int
    """Unix time in milliseconds."""
    start_epoch: int = 0
    """Population epoch the trial first started in."""
    is_replay: bool = False
    """Repeated by a trial resumed from its checkpoint: for the record, not for pruning."""


@dataclass(frozen=True, slots=True)
class TrialResult:
    """The last word of a trainer on a trial. Whether it counts as PRUNED is the driver's say."""

    number: int
    outcome: Literal["finished", "stopped", "failed"]
    n_epochs: int
    """Epochs trained in all."""
    best_epoch: int | None = None
    """Epoch of the kept checkpoint, from 1."""
    has_checkpoint: bool = False
    """Whether the Lightning checkpoint of the best epoch is among its files."""
    has_model: bool = False
    """Whether the same model is, as a torch.export archive (.pt2)."""
    failure: Failure | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    """Further tags: trainer, start epoch, ..."""


@dataclass(frozen=True, slots=True)
class TrialFinished:
    """Record: a trial has its final state."""

    number: int
    state: TrialState
    time_ms: int
    value: float | None
    """The objective: the metric at the best epoch."""
    best_epoch: int | None
    best_metrics: Mapping[str, float]
    """Metrics of the best epoch."""
    n_epochs: int
    checkpoint: str | None = None
    model_file: str | None = None
    failure: Failure | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TrialHistory:
    """A trial's whole record, for MLflow."""

    started: TrialStarted
    reports: Sequence[EpochReport] = ()
    """Its epochs, oldest first."""
    finished: TrialFinished | None = None
    """None: it runs."""
    lost: Sequence[str] = ()
    """Parts that neither ledger nor files have any more, e.g. "its checkpoint"."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """One place among a study's completed trials."""

    number: int
    name: str
    """Readable run name."""
    value: float
    """The objective."""


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """Origin and split of the data, MLflow's dataset input."""

    name: str
    source: str
    """URL or description of the origin."""
    digest: str
    """At most 36 characters; changes when data or split change."""
    feature_shape: tuple[int, ...]
    """Shape of one sample, e.g. (1, 28, 28)."""
    n_classes: int
    n_train: int
    n_val: int
    mean: float = 0.0
    """Of the training values."""
    std: float = 1.0
    """Of the training values."""


DEVICE_TAG = "sweep.device"
"""Tag of a study: the device of its last worker."""


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """Record: a worker has loaded its data and can train. A trainer's first report."""

    dataset: DatasetInfo
    device: str
    """As torch names it, e.g. "cpu" or "cuda:0 NVIDIA H100"."""
    n_slots: int
    """Trials it trains at the same time."""
    time_ms: int


@dataclass(frozen=True, slots=True)
class StudyInfo:
    """A study as it opens, for listeners."""

    name: str
    n_trials: int
    """Finished trials of the study at its end."""
    metric: str
    direction: Direction
    epochs: int
    config: Mapping[str, Any] = field(repr=False)
    """The whole resolved configuration, plain values."""
    space_name: str
    space_text: str = field(repr=False)
    """The search-space file as it was read."""
    time_ms: int
    tags: Mapping[str, str] = field(default_factory=dict)
    """Git commit, versions, ..."""
    dataset: DatasetInfo | None = None
    """Known beforehand, or None: workers say it with WorkerReady."""
    n_done: int = 0
    """Trials finished before the study was opened (a continued study)."""
    best_value: float | None = None
    """Best objective among those, or None."""
    best_number: int | None = None
    """The trial with the best value."""
    ranking: Sequence[Ranked] = ()
    """The best of them, best first, at most `MAX_RANKED`."""
    is_known: bool = False
    """MLflow had the study when an earlier search opened it, with the same address."""


@dataclass(frozen=True, slots=True)
class StudyFinished:
    """Record: the search came to an end (done, timed out, interrupted or failed)."""

    time_ms: int
    n_by_state: Mapping[str, int]
    best_number: int | None
    best_value: float | None
    baseline_value: float | None
    """Objective of trial 0 when it is the reference network, else None."""
    reason: EndReason
    ranking: Sequence[Ranked] = ()
    """The best completed trials, best first, at most `MAX_RANKED`."""


@dataclass(frozen=True, slots=True)
class Notice:
    """Record: one line for the user (a population was halved, ...)."""

    time_ms: int
    message: str


Report = WorkerReady | Notice | EpochReport | TrialResult
Record = WorkerReady | TrialStarted | EpochReport | TrialFinished | StudyFinished | Notice


@dataclass(frozen=True, slots=True)
class Stop:
    """Order: end this trial now, keep its best checkpoint."""

    number: int
    reason: StopReason


@dataclass(frozen=True, slots=True)
class Orders:
    """The driver's answer at an epoch boundary."""

    stop: tuple[Stop, ...] = ()
    start: tuple[TrialSpec, ...] = ()
    is_last: bool = False
    """No trial will come any more: leave when the running ones are done."""
    is_stopping: bool = False
    """The search ends early (Ctrl-C, time limit): a silent worker is killed."""


def derive_seed(study_seed: int, *path: int | str) -> int:
    """A 63-bit seed from (study seed, path).

    >>> derive_seed(0, "init", 3) == derive_seed(0, "init", 3) != derive_seed(0, "init", 4)
    True
    """
    text = "/".join(str(part) for part in (study_seed, *path))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def seconds_of(epochs: Iterable[Mapping[str, float]]) -> float:
    """A trial's training time in seconds, from the metrics of its epochs.

    Trials of a population share an epoch's time (`EpochReport.metrics`), so the sum over all
    trials is the training time of the workers.
    """
    return round(sum(metrics.get("epoch_s", 0.0) for metrics in epochs), 4)


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000
