"""Values exchanged between driver, workers and listeners: frozen, picklable, plain.

Driver and workers share them: no torch, Optuna or MLflow. Times are Unix times in milliseconds
(`time_ms`) or durations in seconds (`_s`). Epochs count from 1, trial numbers from 0.
"""

from __future__ import annotations

import enum
import hashlib
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sweep.appraisal import Appraisal

HyperValue = Any
"""A hyperparameter's value: str, int, float, bool, None or a tuple of those."""

Direction = Literal["maximize", "minimize"]
StopReason = Literal["pruned", "converged", "timeout", "interrupted"]
EndReason = Literal["done", "timeout", "interrupted", "failed", "exhausted"]
FailureKind = Literal["oom", "nan", "exception", "killed", "timeout", "left"]


@dataclass(frozen=True, slots=True)
class FailureClass:
    """How the driver treats one kind of failure."""

    meaning: str
    """One line for users."""
    is_transient: bool = False
    """The machine's fault: the trial is tried again."""
    is_counted: bool = True
    """Counts for `--max-failures`: it may be a bug that fails every trial."""
    costs_a_try: bool = True
    """Whether a transient one is among the few after which a trial fails for good."""


FAILURES: Mapping[FailureKind, FailureClass] = {
    "oom": FailureClass("out of memory", is_transient=True),
    "nan": FailureClass("the loss or the metric is not finite", is_counted=False),
    "exception": FailureClass("the trial's code raised an exception"),
    "killed": FailureClass("the worker process died", is_transient=True),
    "timeout": FailureClass("longer than --trial-timeout", is_counted=False),
    "left": FailureClass("its machine left the search", is_transient=True, costs_a_try=False),
}
"""All kinds of failure; everything else reads them here."""

MAX_RANKED = 100
"""Number of completed trials with a rank in MLflow: each rank costs a call of 5 ms."""


class TrialState(enum.StrEnum):
    """Optuna's states. In MLflow they are FINISHED, KILLED, FAILED, RUNNING and SCHEDULED."""

    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    FAIL = "FAIL"
    RUNNING = "RUNNING"
    WAITING = "WAITING"

    @property
    def is_finished(self) -> bool:
        """Whether the trial has ended for good and counts towards the study's total."""
        return self in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)

    @property
    def is_scored(self) -> bool:
        """Whether a trial in this state has an objective value."""
        return self in (TrialState.COMPLETE, TrialState.PRUNED)


Kind = Literal["module", "build", "objective"]
"""A LightningModule's class, a function that builds all, or any function with a score."""
KINDS: tuple[Kind, ...] = ("module", "build", "objective")
VALUE = "value"
"""The metric of an objective function, unless `--metric` names it."""
SECTIONS = ("model", "data", "trainer", "optimizer", "lr_scheduler")
"""Sections of a LightningCLI config, and first parts of dotted names."""
TRAINER_SETTINGS: Mapping[str, str] = {
    "max_epochs": "epochs", "accelerator": "accelerator", "devices": "devices",
    "precision": "precision", "strategy": "strategy",
}  # fmt: skip
"""Trainer argument -> the setting of sweep in its place."""


def trainers_fault(argument: str) -> str | None:
    """Why an argument of the Trainer cannot be given; None: it can."""
    if argument in TRAINER_SETTINGS:
        return f"trainer.{argument} is --{TRAINER_SETTINGS[argument]}"
    if argument == "callbacks":
        return "trainer.callbacks is --callback"
    if argument in ("default_root_dir", "num_nodes"):  # the trial's folder, one machine
        return f"trainer.{argument} is sweep's own: it cannot be set"
    return None


@dataclass(frozen=True, slots=True)
class Task:
    """The settings of a study for its workers, sent once."""

    study: str
    """Name of the study."""
    seed: int
    """Seed of the study, the source of data split, data order and initial weights."""
    data: str
    """Name of a data set in `sweep.data.catalog`, or `package.module:function`."""
    data_dir: str | None
    """Folder of the data set's files; None: the user's cache."""
    module: str
    """`package.module:name` of what is trained: see `kind`."""
    epochs: int
    """Maximum number of epochs of a trial."""
    batch_size: int
    """Minibatch size, unless the trial's hyperparameters set one."""
    metric: str
    """Name of the objective's metric; a trial's value is this metric at its best epoch."""
    direction: Direction
    """Whether a larger or a smaller metric is better."""
    work_dir: str
    """The study's folder for checkpoints (`<work_dir>/trials/00017/best.ckpt`)."""
    log_file: str
    """File for the output of libraries."""
    session: str = ""
    """Of one search: what its workers prepare on a machine, they prepare once."""
    machine_dir: str = ""
    """Folder that the search's workers on a machine share; "": work_dir."""
    accelerator: str = "auto"
    """Lightning's `accelerator`."""
    devices: str = "1"
    """Lightning's `devices`: 1 or N of them, or their indices, as "2," or "0,2"."""
    strategy: str = "auto"
    """Lightning's `strategy` for several devices; auto: DDP."""
    precision: str = "32-true"
    """Lightning's `precision`."""
    n_threads: int | None = None
    """Threads for torch on a CPU; None: torch's own default."""
    kind: Kind = "module"
    """How `module` is called."""
    population: int | None = None
    """Trials that a worker trains at the same time; None: chosen by device; 1: plain trainer."""
    n_trials: int | None = None
    """Trials of the search; None: not known."""
    may_add_workers: bool = False
    """Whether the first worker may ask for others: `--workers auto`."""
    may_share_steps: bool = True
    """Whether trials of a user's module may take their steps together."""
    proof: bool = True
    """Compare a group's first steps with a trial's alone."""
    is_deterministic: bool = False
    """Whether a trial's curve must not depend on what else its worker trains, to the last bit."""
    was_larger: bool = False
    """The population was halved after a crash: a population of 1 uses the fused trainer, too."""
    checkpoint_interval_s: float = 30.0
    """Minimum time between two resume files of a trial."""
    trial_timeout_s: float | None = None
    """A trial fails after this time; None: no limit."""
    log_models: str = "auto"
    """Which completed trials export their model: all, best:K, none or auto."""
    worker_memory_gb: float | None = None
    """A worker process is replaced above this resident memory, in 1e9 bytes; None: no limit."""
    config: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Fixed arguments in LightningCLI's form, by section (see SECTIONS)."""
    callbacks: tuple[str, ...] = ()
    """`package.module:name` of each callback beside those of module and config."""
    probes: tuple[tuple[str, Mapping[str, HyperValue]], ...] = ()
    """Configurations for the preflight: one, then one with another value of each parameter."""
    names: tuple[str, ...] | None = None
    """Hyperparameters of the search space, checked against the module; None: not checked."""

    @property
    def n_devices(self) -> int:
        """Devices of one trial."""
        return count_devices(self.devices)


def count_devices(devices: str) -> int:
    """How many devices a value of `--devices` means.

    >>> count_devices("2"), count_devices("2,"), count_devices("[0, 2]")
    (2, 1, 2)
    """
    return int(devices) if devices.isdigit() else len(re.findall(r"\d+", devices))


@dataclass(frozen=True, slots=True)
class TrialSpec:
    """One configuration to train."""

    number: int
    """The trial's number in the study."""
    hyperparameters: Mapping[str, HyperValue]
    """Resolved hyperparameters, e.g. {"optimizer": "Adam", "lr": 1e-3, "hidden": (256, 64)}."""
    seed: int
    """Seed of initial weights and dropout: derive_seed(study seed, "init", number)."""
    start_epoch: int | None = None
    """Epoch of the population at the trial's start; its data order depends on it. None: new."""
    is_resumed: bool = False
    """Whether it goes on from the resume state among its files."""
    settings: str = ""
    """Other settings that bind a checkpoint (`sweep train`); "": those of the study."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a trial failed."""

    kind: FailureKind
    message: str
    """One line."""
    traceback: str = field(default="", repr=False)

    @property
    def is_transient(self) -> bool:
        """Whether the trial is tried again."""
        return FAILURES[self.kind].is_transient


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
    tags: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The study's settings at that time, if they have changed since."""
    logged: str = ""
    """Folder for what the module's logger gets; "": unknown."""


EPOCHS_DONE = "epochs_done"
"""Metric beside a user's own: epochs trained, where reports are not one an epoch."""


@dataclass(frozen=True, slots=True)
class EpochReport:
    """Record: one trial's metrics after one epoch, or after a validation within an epoch."""

    number: int
    epoch: int
    """Counts the trial's reports, from 1: the epoch, if none is within one."""
    metrics: Mapping[str, float]
    """Metric name -> value; train_loss, val_loss and val_acc for MLPClassifier, always epoch_s.

    epoch_s is the trial's share of the epoch's time in seconds: 1/32 of it in a population of 32.
    """
    time_ms: int
    start_epoch: int = 0
    """Epoch of the population at the trial's start."""
    is_replay: bool = False
    """Read from the checkpoint of a resumed trial: recorded, but not judged again."""

    @property
    def epochs_done(self) -> float:
        """Epochs trained, e.g. 2.25 after a validation within the third."""
        return self.metrics.get(EPOCHS_DONE, self.epoch)


@dataclass(frozen=True, slots=True)
class Pulse:
    """Record: a trial is within an epoch, and can take orders."""

    number: int
    epoch: int
    """Its reports so far."""


@dataclass(frozen=True, slots=True)
class TrialResult:
    """A trainer's final report on a trial. The driver decides what state a stopped one gets."""

    number: int
    outcome: Literal["finished", "stopped", "failed"]
    n_epochs: int
    """Epochs trained, including those before a resume."""
    best_epoch: int | None = None
    """Epoch of the kept checkpoint; None: no epoch was trained."""
    has_checkpoint: bool = False
    """Whether the Lightning checkpoint of the best epoch is among its files."""
    has_model: bool = False
    """Whether the same model is, as a torch.export archive (.pt2)."""
    failure: Failure | None = None
    """Set if `outcome` is "failed"."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Tags for MLflow, e.g. "sweep.trainer"."""


@dataclass(frozen=True, slots=True)
class TrialFinished:
    """Record: a trial ended, or was interrupted (WAITING)."""

    number: int
    state: TrialState
    time_ms: int
    value: float | None
    """The objective: the metric at the best epoch; None: no epoch was trained."""
    best_epoch: int | None
    best_metrics: Mapping[str, float]
    """Metrics of the best epoch."""
    n_epochs: int
    checkpoint: str | None = None
    model_file: str | None = None
    failure: Failure | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    has_logged: bool = False
    """Whether the module's logger got anything."""


@dataclass(frozen=True, slots=True)
class TrialHistory:
    """A trial's complete record, for MLflow."""

    started: TrialStarted
    reports: Sequence[EpochReport] = ()
    """By epoch."""
    finished: TrialFinished | None = None
    """None: the trial is running."""
    lost: Sequence[str] = ()
    """Missing parts, in ledger and files, e.g. "its checkpoint"."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """A completed trial in the study's ranking."""

    number: int
    name: str
    """Readable run name."""
    value: float
    """The objective."""


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """Origin and split of the data; MLflow's dataset input."""

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
    std: float = 1.0
    """Mean and standard deviation over all values of the training samples."""


DEVICE_TAG = "sweep.device"
"""Tag of a study: the device of its last worker."""


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """Record: a worker has loaded its data. The first report of every trainer."""

    dataset: DatasetInfo | None
    """None: the module's own loaders, of which nothing is known."""
    device: str
    """As torch names it, e.g. "cpu" or "cuda:0 NVIDIA H100"."""
    n_slots: int
    """Trials that the worker trains at the same time."""
    time_ms: int
    n_workers: int = 1
    n_threads: int | None = None
    """Workers that the search is to have, and CPU threads of each, by measurement."""
    may_share_steps: bool = True
    """Whether trials may take their steps together, by measurement."""


@dataclass(frozen=True, slots=True)
class StudyInfo:
    """A study at the start of a search, for listeners."""

    name: str
    n_trials: int
    """Number of finished trials that the study is to have in all."""
    metric: str
    direction: Direction
    epochs: int
    config: Mapping[str, Any] = field(repr=False)
    """The resolved configuration in plain values, without credentials."""
    space_name: str
    space_text: str = field(repr=False)
    """Text of the search-space file."""
    time_ms: int
    tags: Mapping[str, str] = field(default_factory=dict)
    """Git commit, versions, ..."""
    dataset: DatasetInfo | None = None
    """None in a new study: a worker's WorkerReady describes the data."""
    n_done: int = 0
    """Trials finished by earlier searches."""
    best_value: float | None = None
    """Best objective among those."""
    best_number: int | None = None
    """The trial with the best objective."""
    ranking: Sequence[Ranked] = ()
    """The best completed trials, best first, at most `MAX_RANKED`."""
    is_known: bool = False
    """An earlier search opened the study in the MLflow store of the same address."""


@dataclass(frozen=True, slots=True)
class StudyFinished:
    """Record: the end of a search."""

    time_ms: int
    n_by_state: Mapping[str, int]
    best_number: int | None
    best_value: float | None
    baseline_value: float | None
    """Objective of trial 0 if that is the baseline."""
    reason: EndReason
    ranking: Sequence[Ranked] = ()
    """The best completed trials, best first, at most `MAX_RANKED`."""
    appraisal: Appraisal | None = None  # what the best value is worth


@dataclass(frozen=True, slots=True)
class Notice:
    """Record: one line for the user, e.g. that a population was halved."""

    time_ms: int
    message: str


@dataclass(frozen=True, slots=True)
class StudyExtended:
    """Record: a user gave the running search more trials."""

    time_ms: int
    n_trials: int
    """Number of finished trials that the study is to have in all."""


Report = WorkerReady | Notice | EpochReport | Pulse | TrialResult
Record = (
    WorkerReady | TrialStarted | EpochReport | Pulse | TrialFinished | StudyExtended
    | StudyFinished | Notice
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stop:
    """Order: end this trial at its epoch's end and keep its best checkpoint."""

    number: int
    reason: StopReason


@dataclass(frozen=True, slots=True)
class Orders:
    """The driver's answer to reports: trials to stop, trials to start."""

    stop: tuple[Stop, ...] = ()
    start: tuple[TrialSpec, ...] = ()
    is_last: bool = False
    """No further trial will come: the worker exits when its running trials have ended."""
    is_stopping: bool = False
    """The search ends early (Ctrl-C, time limit): executors kill workers that do not answer."""


def derive_seed(study_seed: int, *path: int | str) -> int:
    """A seed of 63 bits, a hash of (study seed, path).

    >>> derive_seed(0, "init", 3) == derive_seed(0, "init", 3) != derive_seed(0, "init", 4)
    True
    """
    text = "/".join(str(part) for part in (study_seed, *path))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def seconds_of(epochs: Iterable[Mapping[str, float]]) -> float:
    """A trial's training time in seconds, from its epochs' metrics. Trials of a population share
    each epoch's time: the sum over all trials is the workers' training time."""
    return round(sum(metrics.get("epoch_s", 0.0) for metrics in epochs), 4)


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


def notice(message: str) -> Notice:
    """A line for the user, now."""
    return Notice(now_ms(), message)
