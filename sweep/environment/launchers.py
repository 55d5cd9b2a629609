"""The environment of a process: variables, import path, standard streams, home folder.

A trial depends on its study alone: parts of the environment that would change it are set aside.
"""

from __future__ import annotations

import contextlib
import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path

FOREIGN = frozenset(
    {
        # Lightning: who it is among several processes, and where the others are
        "RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
        "STANDALONE_PORT", "PL_GLOBAL_SEED", "PL_SEED_WORKERS",
        # torchrun
        "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE",
        "ROLE_WORLD_SIZE",
        # Slurm; the rest of its variables (SLURM_JOB_ID, SLURM_TMPDIR, ...) are left to the user
        "SLURM_NTASKS", "SLURM_NPROCS", "SLURM_NTASKS_PER_NODE", "SLURM_PROCID", "SLURM_LOCALID",
        "SLURM_NODEID",
        # LSF
        "LSB_DJOB_RANKFILE",
        # MLflow: the run, experiment or model to write to, and how
        "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME",
        "MLFLOW_ACTIVE_MODEL_ID", "_MLFLOW_ACTIVE_MODEL_ID", "MLFLOW_RUN_CONTEXT",
        "MLFLOW_TRUNCATE_LONG_VALUES", "MLFLOW_ENABLE_ASYNC_LOGGING",
        "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "MLFLOW_LOG_MODEL_COMPRESSION",
        "MLFLOW_LOCK_MODEL_DEPENDENCIES", "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING",
    }
)  # fmt: skip
"""Variables of batch systems, launchers and libraries with an effect on training."""
FOREIGN_PREFIXES = (
    "PL_TRAINER_",  # Lightning: default arguments of each Trainer
    "TORCHELASTIC_",
    "JSM_NAMESPACE_",  # LSF's jsrun
    "OMPI_COMM_WORLD_", "MV2_COMM_WORLD_", "PMI_", "PMIX_", "MPI_LOCAL",  # mpirun
)  # fmt: skip
NO_HOME = "/nonexistent"
"""Debian's word for it: some libraries want a home directory, whether it exists or not."""
PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])


def without_foreign(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` without FOREIGN variables."""
    return {k: v for k, v in environment.items() if not _is_foreign(k)}


@contextlib.contextmanager
def foreign_set_aside() -> Iterator[None]:
    """Within, this process has no FOREIGN variables."""
    found = {k: v for k, v in os.environ.items() if _is_foreign(k)}
    for name in found:
        del os.environ[name]
    ensure_home()
    try:
        yield
    finally:
        os.environ.update(found)


def _is_foreign(name: str) -> bool:
    return name in FOREIGN or name.startswith(FOREIGN_PREFIXES)


def ensure_home() -> None:
    """Set HOME if neither it nor the user database names one: importing MLflow needs it."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = NO_HOME


def import_path() -> list[str]:
    """`sys.path` for a worker: the standard library, sweep's own folder, then the others.

    The current folder is left out: a user's file there must not shadow a library. Objects named
    by the user are found there all the same (`sweep.loading.import_object`).
    """
    first = [entry for entry in sys.path if _is_standard(entry)]
    try:
        folder = str(Path.cwd())
    except FileNotFoundError:  # it was removed
        folder = ""
    others = [
        entry for entry in sys.path
        if entry not in (*first, PACKAGE_ROOT) and not is_folder(entry, folder)
    ]  # fmt: skip
    return [*first, PACKAGE_ROOT, *others]


@contextlib.contextmanager
def importable(folder: str) -> Iterator[None]:
    """Within, modules are found in `folder` after the standard library and before the others.

    Afterwards it is the last place to look, so that later imports of libraries are safe.
    """
    before = [entry for entry in sys.path if not is_folder(entry, folder)]
    n_standard = max((i + 1 for i, p in enumerate(before) if _is_standard(p)), default=0)
    sys.path[:] = [*before[:n_standard], folder, *before[n_standard:]]
    try:
        yield
    finally:
        sys.path[:] = [*(entry for entry in sys.path if entry != folder), folder]


def is_folder(entry: str, folder: str) -> bool:
    """Whether an entry of `sys.path` is `folder`, also by another name; sweep's own never is."""
    if entry == PACKAGE_ROOT:
        return False
    try:
        return entry in ("", ".", folder) or os.path.realpath(entry) == os.path.realpath(folder)
    except FileNotFoundError:  # a relative entry, in a folder that was removed
        return False


def _is_standard(entry: str) -> bool:
    return entry in _STANDARD or entry.startswith(f"{_LIBRARY}{os.sep}lib-dynload")


_LIBRARY = sysconfig.get_path("stdlib")
_ZIPPED = f"python{sys.version_info.major}{sys.version_info.minor}.zip"
_STANDARD = (_LIBRARY, sysconfig.get_path("platstdlib"), str(Path(_LIBRARY).parent / _ZIPPED))


def fill_standard_streams() -> None:
    """Open /dev/null for closed file descriptors 0 to 2.

    The next opened file would get such a number, and be overwritten in child processes.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            os.set_inheritable(number, True)
