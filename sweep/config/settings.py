"""Settings: one frozen RunConfig, each field with its flag, parser, default and help."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from sweep.config import parsers
from sweep.data.catalog import MODULES_OWN, dataset_names
from sweep.databases import sqlite
from sweep.errors import ConfigError, shown
from sweep.executors import EXECUTORS
from sweep.hyperparameters import DEFAULT_MODULE, MLP_METRICS
from sweep.objective import Objective, told_direction
from sweep.redact import redacted
from sweep.search.pruners import PRUNERS
from sweep.search.samplers import SAMPLERS
from sweep.trial import KINDS, VALUE, Direction, Kind

_DIRECTION = "--direction must be said for --metric {metric}: maximize or minimize"
OTHER_VARIABLES: Final = ("SWEEP_KERNEL", "SWEEP_TEST_MNIST")
"""Other environment variables of sweep."""
PLACES: Final = ("storage", "tracking_uri", "work_dir")
"""Settings that locate a study."""
DEFAULT_SPACE: Final = "mlp"
STRATEGIES: Final = (
    "auto", "ddp", "ddp_find_unused_parameters_true", "fsdp", "fsdp_cpu_offload",
)  # fmt: skip
PRECISIONS: Final = ("32-true", "64-true", "16-mixed", "bf16-mixed", "bf16-true", "16-true")


def _option(
    group: str, default: Any, parse: parsers.Parser | tuple[str, ...], metavar: str, help: str,
    **more: Any,
) -> Any:  # fmt: skip
    """A config field: its heading in --help, its default, its parser or words, its help.

    `more`: choices, for completion; is_identity, if it cannot change within a study.
    """
    if isinstance(parse, tuple):
        more["choices"], parse = parse, parsers.choice(parse)
    texts = {"group": group, "metavar": metavar, "help": help}
    metadata = {"parse": parse, "choices": (), "is_identity": False, **texts, **more}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True, repr=False)
class RunConfig:
    """The settings of `sweep run`. Each field's help has its unit and default."""

    # fmt: off
    study: str | None = _option(
        "search", None, parsers.study_name, "NAME",
        "Name of the study (default: DATA-SPACE, or MODULE-SPACE).",
    )
    trials: int = _option(
        "budget", 50, parsers.count(1), "N",
        "Finished trials that the study is to have in all; run again to continue.",
    )
    epochs: int = _option(
        "budget", 10, parsers.count(1), "N", "Epochs a trial trains at most.", is_identity=True,
    )
    data: str = _option(
        "search", "digits", parsers.data_name, "NAME",
        "Data set; digits needs no download. Or your own: package.module:name of a "
        "LightningDataModule or a function.", is_identity=True, choices=tuple(dataset_names()),
    )
    data_dir: str | None = _option(
        "search", None, parsers.path, "DIR", "Folder that already holds the data set's files.",
    )
    space: str | None = _option(
        "search", None, parsers.path, "FILE",
        "Search space: a name of `sweep spaces`, or a YAML file (default: mlp, unless --vary or "
        "--module is given).", is_identity=True,
    )
    vary: tuple[str, ...] = _option(
        "search", (), parsers.pairs, "NAME=SPEC",
        "Let a name vary: LOW..HIGH with :log or :step=N, or A,B,C. Repeatable; with --space, on "
        "top of it.",
    )
    set: tuple[str, ...] = _option(
        "search", (), parsers.pairs, "NAME=VALUE",
        "Fix a name, such as model.depth, data.root or trainer.max_steps. Repeatable.",
    )
    module: str = _option(
        "search", DEFAULT_MODULE, parsers.module_path, "CLASS",
        "LightningModule to train, as package.module:Class or file.py:Class; a function or an "
        "instance will do.", is_identity=True,
    )
    kind: Kind = _option(
        "search", "module", KINDS, "KIND",
        "How --module is called: module; build, a function of the parameters that returns module, "
        "data and Trainer arguments; or objective, any function of (params, report).",
        is_identity=True,
    )
    lightning: str | None = _option(
        "search", None, parsers.path, "FILE",
        "A LightningCLI config: what it sets is fixed, other flags come before it.",
    )
    callback: tuple[str, ...] = _option(
        "search", (), parsers.import_paths, "CLASS",
        "Lightning callback of each trial, as package.module:Class. Repeatable.",
        is_identity=True,
    )
    sampler: str = _option(
        "search", "tpe", parsers.choice(tuple(SAMPLERS), or_import="class"), "NAME",
        f"Who proposes: {', '.join(SAMPLERS)}, or package.module:Class.", choices=tuple(SAMPLERS),
    )
    history: int | None = _option(
        "search", None, parsers.count(1), "N",
        "tpe and gp look at the best and the latest trials, N in all (default: at all).",
    )
    pruner: str = _option(
        "search", "none", tuple(PRUNERS), "NAME",
        f"Who ends poor trials early: {', '.join(PRUNERS)}.",
    )
    metric: str = _option(
        "search", "val_acc", parsers.text, "NAME", "The objective: this metric at its best epoch.",
        is_identity=True, choices=MLP_METRICS,
    )
    direction: Direction | Literal["auto"] = _option(
        "search", "auto", ("auto", "maximize", "minimize"), "WORD",
        "maximize or minimize; auto: as the metric's name tells, else it has to be said.",
        is_identity=True,
    )
    seed: int = _option(
        "search", 0, parsers.count(0), "N",
        "Data split, data order, initial weights and proposals derive from it.", is_identity=True,
    )
    deterministic: bool = _option(
        "search", False, parsers.switch, "",
        "The same configurations and curves with any number of workers: proposals depend on "
        "earlier generations of 16 trials, workers train on one thread.", is_identity=True,
    )
    batch_size: int = _option(
        "search", 64, parsers.count(1), "N", "Minibatch size, unless the search space sets one.",
        is_identity=True,
    )
    patience: int | None = _option(
        "budget", None, parsers.count(1), "EPOCHS",
        "End a trial after so many epochs without a better metric.", is_identity=True,
    )
    baseline: bool = _option(
        "search", True, parsers.switch, "",
        "Train the reference network (128-64, SGD, lr 0.01) as trial 0.", is_identity=True,
    )
    timeout_s: float | None = _option(
        "budget", None, parsers.duration, "TIME",
        "Stop the search after this time (90, 15m, 2h); run again to continue.",
    )
    trial_timeout_s: float | None = _option(
        "budget", None, parsers.duration, "TIME",
        "A trial that takes longer fails with class timeout.",
    )
    max_failures: int = _option(
        "budget", 5, parsers.count(1), "N",
        "Stop the search after so many identical failures in a row.",
    )
    executor: str = _option(
        "machine", "process", tuple(EXECUTORS), "NAME",
        f"Where trials train: {', '.join(f'{k} ({v.meaning})' for k, v in EXECUTORS.items())}.",
    )
    ray_address: str = _option(
        "machine", "auto", parsers.text, "HOST:PORT",
        "The Ray cluster of --executor ray; auto: the one that runs on this machine.",
    )
    gpus_per_worker: float | None = _option(
        "machine", None, parsers.share_of_devices, "X",
        "GPUs of a worker on Ray, such as 1 or 0.5 (default: 1 where the cluster has any).",
    )
    cpus_per_worker: int | None = _option(
        "machine", None, parsers.count(1), "N",
        "CPUs of a worker on Ray (default: 1 beside a GPU, else those of the smallest node).",
    )
    workers: int | None = _option(
        "machine", None, parsers.population, "N",
        "Workers: a number, or auto: one, or one a core where that is measured to be faster; on "
        "Ray as many as its nodes have room for.",
    )
    population: int | None = _option(
        "machine", None, parsers.population, "N",
        "Trials trained at once by a worker: auto, a number, or 1 (plain).",
    )
    proof: bool = _option(
        "machine", True, parsers.switch, "",
        "Compare the steps that trials of a module take together with a trial's alone first.",
    )
    accelerator: str = _option(
        "machine", "auto", ("auto", "cpu", "gpu", "cuda", "mps"), "NAME",
        "Lightning's accelerator.",
    )
    devices: str = _option(
        "machine", "1", parsers.device_count, "N",
        "Devices of one trial: a number, or indices as '2,' or '0,2'.",
    )
    strategy: str = _option(
        "machine", "auto", STRATEGIES, "NAME",
        f"How several devices share a trial: {', '.join(STRATEGIES)} (auto: ddp).",
    )
    precision: str = _option(
        "machine", "32-true", PRECISIONS, "NAME",
        f"Lightning's precision: {', '.join(PRECISIONS)}.", is_identity=True,
    )
    threads: int | None = _option(
        "machine", None, parsers.count(1), "N",
        "Threads that torch uses on a CPU (default: torch's own choice).",
    )
    worker_memory_gb: float | None = _option(
        "machine", None, parsers.gigabytes_or_none, "GB",
        "Replace a worker that takes more memory at an epoch's end; its trials go on. Or none.",
    )
    checkpoint_interval_s: float = _option(
        "stores", 30.0, parsers.duration, "TIME", "Resume state is written at most this often.",
    )
    keep: int | None = _option(
        "stores", None, parsers.count(1), "K",
        "Keep checkpoints and models of the best K trials only (default: of all).",
    )
    disk_limit_gb: float | None = _option(
        "stores", None, parsers.gigabytes, "GB",
        "Keep the study's checkpoints and models within this many gigabytes.",
    )
    log_models: str = _option(
        "stores", "auto", parsers.logged_models, "WHICH",
        "Completed trials whose model goes to MLflow: all, best:K (as they end), none, or auto: "
        "best:10 where exporting takes longer than 50 ms, else all.",
        choices=("auto", "all", "best:10", "none"),
    )
    storage: str = _option(
        "stores", "sqlite:///mlruns/optuna.db", parsers.address, "URL", "Optuna storage URL.",
    )
    tracking_uri: str = _option(
        "stores", "sqlite:///mlflow.db", parsers.address, "URI", "MLflow tracking URI.",
    )
    work_dir: str = _option(
        "stores", "mlruns/.sweep", parsers.path, "DIR",
        "Folder for checkpoints, locks and logs of all studies.",
    )
    # fmt: on

    def __repr__(self) -> str:
        """All settings but the defaults, without credentials."""
        said = {
            f.name: getattr(self, f.name) for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
        }  # fmt: skip
        return redacted(f"RunConfig({', '.join(f'{k}={shown(v)}' for k, v in said.items())})")

    @property
    def study_name(self) -> str:
        """The study's name: as given, or DATA-SPACE; MODULE-SPACE if it brings its own data."""
        if self.study:
            return self.study
        source = self.module.rpartition(":")[2] if self.data == MODULES_OWN else self.data
        return (
            f"{source.replace('.py:', '.').replace(':', '.').replace('/', '.')}-{self.space_name}"
        )

    @property
    def space_name(self) -> str:
        """Name of the search space: of its file, or "vary"."""
        return Path(self.space_file).stem if self.space_file else "vary"

    @property
    def space_file(self) -> str:
        """`space`, or the default space of MLPClassifier; "": the space is `vary` alone."""
        return self.space or ("" if self.vary or not self.is_mlp else DEFAULT_SPACE)

    @property
    def study_dir(self) -> Path:
        """The study's own folder for checkpoints, lock and log."""
        return Path(self.work_dir) / self.study_name

    @property
    def is_mlp(self) -> bool:
        """Whether the module is MLPClassifier, whose names and metrics are known beforehand."""
        return self.module == DEFAULT_MODULE

    def anchored(self) -> RunConfig:
        """With absolute paths for a search in this process, whose folder user code may change."""
        if self.executor != "inline":
            return self
        return dataclasses.replace(
            self,
            work_dir=str(Path(self.work_dir).absolute()),
            storage=sqlite.anchored(self.storage),
            tracking_uri=sqlite.anchored(self.tracking_uri),
        )

    @property
    def resolved_direction(self) -> Direction:
        """`direction`; auto: by the metric's name. Raises ConfigError for an unknown metric."""
        direction = told_direction(self.metric) if self.direction == "auto" else self.direction
        if direction is None and self.kind == "objective" and self.metric == VALUE:
            return "minimize"  # as in Optuna; the worker says so
        if direction is None:
            raise ConfigError(_DIRECTION.format(metric=shown(self.metric)[1:-1]))
        return direction

    @property
    def objective(self) -> Objective:
        """The metric and its direction. Raises ConfigError (see `resolved_direction`)."""
        return Objective(self.metric, self.resolved_direction)


def public_name(field_name: str) -> str:
    """A setting's name for users: the field's without its unit (data_dir, timeout, disk_limit)."""
    return field_name.removesuffix("_s").removesuffix("_gb")


def flag_name(field_name: str) -> str:
    """The flag of a field: its public name with dashes."""
    return "--" + public_name(field_name).replace("_", "-")


def setting_names() -> dict[str, str]:
    """Public name -> field name of every setting, in the order of the fields."""
    return {public_name(f.name): f.name for f in dataclasses.fields(RunConfig)}
