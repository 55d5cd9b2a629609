"""What was asked for: flags, environment and files become one frozen, checked RunConfig.

Precedence: flag, environment, file, the study's stored configuration, default. Every fault is
found before anything runs and all are reported at once.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from sweep import options, parsers, sqlite
from sweep.datasets import dataset_names
from sweep.errors import ConfigError, must_be_one_of
from sweep.trial import Direction

DEFAULT_MODULE: Final = "sweep.training.mlp:MLPClassifier"
SAMPLERS: Final = ("tpe", "gp", "cmaes", "qmc", "random", "grid", "nsga2")
PRUNERS: Final = ("none", "median", "asha", "hyperband", "patient")
MLP_METRICS: Final = ("val_acc", "val_loss", "train_loss")
PRECISIONS: Final = ("32-true", "64-true", "16-mixed", "bf16-mixed", "bf16-true", "16-true")


def _option(
    default: Any,
    parse: parsers.Parser,
    help: str,
    *,
    metavar: str,
    is_identity: bool = False,
    choices: tuple[str, ...] = (),
    env: tuple[str, ...] = (),
) -> Any:
    """A config field: its default, its parser, and what --help says of it."""
    return dataclasses.field(
        default=default,
        metadata={
            "parse": parse, "help": help, "metavar": metavar, "is_identity": is_identity,
            "choices": choices, "env": env,
        },
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that `sweep run` was asked for. Field help says units and why that default."""

    # fmt: off
    study: str | None = _option(
        None, parsers.study_name, "Name of the study (default: DATA-SPACE).", metavar="NAME",
    )
    trials: int = _option(
        50, parsers.count(1),
        "Finished trials that the study is to have in all; run again to continue.", metavar="N",
    )
    epochs: int = _option(
        10, parsers.count(1), "Epochs a trial trains at most.", metavar="N", is_identity=True,
    )
    data: str = _option(
        "digits", parsers.data_name,
        "Data set; digits needs no download. Or your own: package.module:function.",
        metavar="NAME", is_identity=True, choices=tuple(dataset_names()),
    )
    data_dir: str | None = _option(
        None, parsers.text, "Folder that already holds the data set's files.", metavar="DIR",
        env=("SWEEP_DATA_DIR",),
    )
    space: str = _option(
        "mlp", parsers.text, "Search space: a name of `sweep spaces`, or a YAML file.",
        metavar="FILE", is_identity=True,
    )
    module: str = _option(
        DEFAULT_MODULE, parsers.module_path, "LightningModule to train, as package.module:Class.",
        metavar="CLASS", is_identity=True,
    )
    sampler: str = _option(
        "tpe", parsers.choice(SAMPLERS, or_import="class"),
        f"Who proposes: {', '.join(SAMPLERS)}, or package.module:Class.", metavar="NAME",
        choices=SAMPLERS,
    )
    pruner: str = _option(
        "none", parsers.choice(PRUNERS), f"Who ends poor trials early: {', '.join(PRUNERS)}.",
        metavar="NAME", choices=PRUNERS,
    )
    metric: str = _option(
        "val_acc", parsers.text, "The objective: this metric at its best epoch.", metavar="NAME",
        is_identity=True, choices=MLP_METRICS,
    )
    direction: Direction | Literal["auto"] = _option(
        "auto", parsers.choice(("auto", "maximize", "minimize")),
        "maximize or minimize; auto minimizes what ends in loss or error.", metavar="WORD",
        is_identity=True, choices=("auto", "maximize", "minimize"),
    )
    seed: int = _option(
        0, parsers.count(0),
        "Data split, data order, initial weights and proposals derive from it.", metavar="N",
        is_identity=True,
    )
    batch_size: int = _option(
        64, parsers.count(1), "Minibatch size, unless the search space sets one.", metavar="N",
        is_identity=True,
    )
    patience: int | None = _option(
        None, parsers.count(1), "End a trial after so many epochs without a better metric.",
        metavar="EPOCHS", is_identity=True,
    )
    baseline: bool = _option(
        True, parsers.switch, "Train the reference network (128-64, SGD, lr 0.01) as trial 0.",
        metavar="", is_identity=True,
    )
    timeout_s: float | None = _option(
        None, parsers.duration,
        "Stop the search after this time (90, 15m, 2h); run again to continue.", metavar="TIME",
    )
    trial_timeout_s: float | None = _option(
        None, parsers.duration, "A trial that takes longer fails with class timeout.",
        metavar="TIME",
    )
    max_failures: int = _option(
        5, parsers.count(1), "Stop the search after so many identical failures in a row.",
        metavar="N",
    )
    executor: str = _option(
        "process", parsers.choice(("process", "inline")),
        "Where trials train: process (local workers) or inline (this process).", metavar="NAME",
        choices=("process", "inline"),
    )
    workers: int = _option(
        1, parsers.count(1), "Worker processes; more than one pays on several GPUs only.",
        metavar="N",
    )
    population: int | None = _option(
        None, parsers.population,
        "Trials trained at once by a worker: auto, a number, or 1 (plain).", metavar="N",
    )
    accelerator: str = _option(
        "auto", parsers.choice(("auto", "cpu", "gpu", "cuda", "mps")), "Lightning's accelerator.",
        metavar="NAME", choices=("auto", "cpu", "gpu", "cuda", "mps"),
    )
    devices: str = _option(
        "1", parsers.device_count, "Which device: 1, or an index as '2,'.", metavar="ID",
    )
    precision: str = _option(
        "32-true", parsers.choice(PRECISIONS), f"Lightning's precision: {', '.join(PRECISIONS)}.",
        metavar="NAME", is_identity=True, choices=PRECISIONS,
    )
    threads: int | None = _option(
        None, parsers.count(1), "Threads that torch uses on a CPU (default: torch's own choice).",
        metavar="N",
    )
    worker_memory_gb: float | None = _option(
        None, parsers.gigabytes_or_none,
        "Replace a worker that takes more memory at an epoch's end; its trials go on. Or none.",
        metavar="GB",
    )
    checkpoint_interval_s: float = _option(
        30.0, parsers.duration, "Resume state is written at most this often.", metavar="TIME",
    )
    keep: int | None = _option(
        None, parsers.count(1),
        "Keep checkpoints and models of the best K trials only (default: of all).", metavar="K",
    )
    disk_limit_gb: float | None = _option(
        None, parsers.gigabytes,
        "Keep the study's checkpoints and models within this many gigabytes.", metavar="GB",
    )
    log_models: bool = _option(
        True, parsers.switch, "Log each completed trial's model to MLflow.", metavar="",
    )
    storage: str = _option(
        "sqlite:///mlruns/optuna.db", parsers.address, "Optuna storage URL.", metavar="URL",
    )
    tracking_uri: str = _option(
        "sqlite:///mlflow.db", parsers.address, "MLflow tracking URI.", metavar="URI",
        env=("MLFLOW_TRACKING_URI",),
    )
    work_dir: str = _option(
        "mlruns/.sweep", parsers.text, "Folder for checkpoints, locks and logs of all studies.",
        metavar="DIR",
    )
    # fmt: on

    @property
    def study_name(self) -> str:
        """The study's name: as given, or DATA-SPACE."""
        if self.study:
            return self.study
        data = self.data.replace(":", ".")
        return f"{data}-{Path(self.space).stem}"

    @property
    def study_dir(self) -> Path:
        """The study's own folder for checkpoints, lock and log."""
        return Path(self.work_dir) / self.study_name

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
        """`direction` with auto decided by the metric's name."""
        if self.direction != "auto":
            return self.direction
        return "minimize" if self.metric.endswith(("loss", "error")) else "maximize"


@dataclass(frozen=True)
class Resolved:
    """A configuration and where each of its values came from."""

    config: RunConfig
    origins: Mapping[str, str]
    """Field name -> flag, environment NAME, file NAME, study or default."""


def resolve(
    flags: Mapping[str, Any],
    env: Mapping[str, str] | None = None,
    file: Path | None = None,
    stored: Mapping[str, Any] | None = None,
) -> Resolved:
    """Merge the four sources into one checked configuration.

    Raises ConfigError with all faults: unknown names, wrong types, values out of range.
    """
    env = os.environ if env is None else env
    from_file = read_config_file(file) if file else {}
    faults: list[str] = []
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for field in dataclasses.fields(RunConfig):
        raw, origin = _pick(field, flags, env, (from_file, file), stored or {})
        origins[field.name] = origin
        if origin == "default" or raw is None:
            continue
        try:
            values[field.name] = field.metadata["parse"](_label(field.name, origin), raw)
        except ConfigError as error:
            faults += error.faults
    known = [f.name for f in dataclasses.fields(RunConfig)]
    faults += [
        f"{file}: " + must_be_one_of("a setting", key, known) for key in from_file
        if key not in known
    ]  # fmt: skip
    config = RunConfig(**values)  # faulty settings have their defaults here
    faults += _cross_check(config)
    if faults:
        raise ConfigError(faults)
    return Resolved(config, origins)


def flag_name(field_name: str) -> str:
    """The flag of a field: its name with dashes, without the unit."""
    return "--" + field_name.removesuffix("_s").removesuffix("_gb").replace("_", "-")


def identity_changes(config: RunConfig, stored: Mapping[str, Any]) -> list[str]:
    """One sentence for each setting that makes this another search than the stored one."""
    changes = []
    now = dataclasses.asdict(config)
    for field in dataclasses.fields(RunConfig):
        if not field.metadata["is_identity"] or field.name == "space":
            continue
        before = stored.get(field.name, field.default)
        if before != now[field.name]:
            flag = flag_name(field.name)
            changes.append(f"{flag} was {before!r} and is now {now[field.name]!r}")
    return changes


def read_config_file(path: Path) -> dict[str, Any]:
    """The mapping in a YAML config file. Raises ConfigError where it is none."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold `setting: value` lines, but got {content!r}")
    return {str(key): value for key, value in content.items()}


def _pick(
    field: dataclasses.Field[Any],
    flags: Mapping[str, Any],
    env: Mapping[str, str],
    file: tuple[Mapping[str, Any], Path | None],
    stored: Mapping[str, Any],
) -> tuple[Any, str]:
    if flags.get(field.name) is not None:
        return flags[field.name], "flag"
    for name in (*field.metadata["env"], f"SWEEP_{field.name.removesuffix('_s').upper()}"):
        if env.get(name):
            return env[name], f"environment {name}"
    if file[0].get(field.name) is not None:
        return file[0][field.name], f"file {file[1]}"
    if stored.get(field.name) is not None:
        return stored[field.name], "study"
    return field.default, "default"


def _label(field_name: str, origin: str) -> str:
    if origin.startswith("environment"):
        return origin.removeprefix("environment ")
    if origin.startswith("file"):
        return f"{origin.removeprefix('file ')}: {field_name}"
    return flag_name(field_name) if origin == "flag" else field_name


def _cross_check(config: RunConfig) -> list[str]:
    faults = []
    if config.module == DEFAULT_MODULE and config.metric not in MLP_METRICS:
        faults.append(must_be_one_of("--metric", config.metric, MLP_METRICS))
    if config.executor == "inline" and config.workers > 1:
        faults.append("--executor inline runs in this process: --workers must be 1")
    if _same_database(config.storage, config.tracking_uri):
        faults.append(
            "--storage and --tracking-uri name one database: Optuna and MLflow need one each"
        )
    if config.executor == "inline" and config.worker_memory_gb is not None:
        faults.append("--executor inline runs in this process: --worker-memory must be none")
    if not parsers.STUDY_NAME.fullmatch(config.study_name):
        faults.append(
            f"{config.study_name!r} cannot be a study's name: give one with --study NAME"
        )
    return faults


def _same_database(storage: str, tracking_uri: str) -> bool:
    """Whether both would make tables in one place, where they trip over each other's names."""
    path = sqlite.path_of(storage)
    return storage == tracking_uri or (path is not None and path == sqlite.path_of(tracking_uri))


def vocabulary(config: RunConfig) -> tuple[str, ...] | None:
    """Names that a search space may use: MLPClassifier's; None (any) for a user's module."""
    if config.module != DEFAULT_MODULE:
        return None
    return (*options.MODEL_ARGUMENTS, *options.TRAINING_ARGUMENTS)
