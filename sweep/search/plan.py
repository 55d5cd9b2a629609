"""What N trials would take, from a short search: time, memory, disk and money. Free of Optuna."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sweep.config.settings import RunConfig
from sweep.files.trial_files import BEST, MODEL, RESUME_STATE
from sweep.search.calibration import LEAST_SPREAD, Calibration
from sweep.space import Space

KEPT_HERE = 5
"""Best trials whose files stay in the work folder, too (`keeping.retention`)."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The same search on a number of devices: those measured, or a multiple."""

    devices: int
    workers: int
    """On all of them."""
    time_s: float
    """From the command to its end."""
    low_s: float
    high_s: float
    """Within these bounds the time is expected."""
    device_hours: float
    cost: float | None
    """In the currency of the price; None without one."""
    basis: str
    """measured, or how it follows from what was."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a search would take."""

    study: str
    trials: int
    """Trials it would train: fewer than asked for if its space has no more."""
    epochs: int
    """Of a trial, at most."""
    measured: Calibration
    epochs_per_s: float
    """Of all measured workers together."""
    work_dir_bytes: float
    """Files of running and of the best trials."""
    mlflow_bytes: float
    """Checkpoints and models."""
    database_bytes: float
    """Rows of Optuna's and MLflow's databases, as SQLite keeps them."""
    estimates: tuple[Estimate, ...]
    """For the devices that were measured, twice as many, ..."""
    notes: tuple[str, ...]
    """What the numbers leave out."""


def plan_of(
    config: RunConfig, space: Space, measured: Calibration, max_devices: int = 1,
    price_per_hour: float | None = None,
) -> Plan:  # fmt: skip
    """The plan of a search that a calibration stands for.

    Args:
        config: Settings of the search.
        space: Its search space.
        measured: A short search with these.
        max_devices: Devices in the last estimate, at most. The first has those that were measured,
            the others have multiples of it.
        price_per_hour: Of one device, in any currency.
    """
    n_trials = _n_trials(config, space)
    n_rows = max(1, max_devices // measured.n_devices)
    estimates = [_estimate(n_trials, k, measured, price_per_hour) for k in range(1, n_rows + 1)]
    files = measured.file_bytes
    best, model = files.get(BEST, 0.0), files.get(MODEL, files.get(BEST, 0.0))
    n_kept, n_models = (
        min(n_trials, config.keep or n_trials),
        _n_models(config, measured, n_trials),
    )
    n_at_once = min(n_trials, measured.n_slots * measured.n_workers)
    return Plan(
        study=config.study_name, trials=n_trials, epochs=config.epochs, measured=measured,
        epochs_per_s=config.epochs * measured.n_workers / measured.trial_s,
        work_dir_bytes=min(n_kept, KEPT_HERE) * (best + model * (n_models > 0))
        + n_at_once * files.get(RESUME_STATE, 0.0),
        mlflow_bytes=n_kept * best + min(n_kept, n_models) * model,
        database_bytes=n_trials * measured.record_bytes, estimates=tuple(estimates),
        notes=tuple(_notes(config, measured, n_trials, estimates[0])),
    )  # fmt: skip


def _n_trials(config: RunConfig, space: Space) -> int:
    """Trials of the search; a finite space may have fewer, with the baseline beside them."""
    n = space.n_configurations()
    most = config.trials if n is None else n + (config.baseline and config.is_mlp)
    return min(config.trials, most)


def _estimate(n_trials: int, times: int, measured: Calibration, price: float | None) -> Estimate:
    """On so many times the measured devices: each has its share, and trains as those did."""
    share = math.ceil(math.ceil(n_trials / times) / measured.n_workers)
    train_s = measured.late_s + share * measured.trial_s
    besides_s = measured.start_s + measured.end_s
    time_s = besides_s + train_s
    if times == 1:
        time_s = max(time_s, besides_s + measured.slowest_s)
    if times == 1 and measured.is_whole:
        time_s = measured.total_s
    # Fewer trials at a time may share less than those that were measured.
    high_s = max(time_s, besides_s + min(measured.slowest_s, train_s * times))
    spread = LEAST_SPREAD if times == 1 and measured.is_whole else measured.spread
    hours = times * measured.n_devices * time_s / 3600
    return Estimate(
        devices=times * measured.n_devices, workers=times * measured.n_workers, time_s=time_s,
        low_s=time_s * (1 - spread), high_s=high_s * (1 + spread),
        device_hours=hours, cost=None if price is None else price * hours,
        basis=_basis(times, measured),
    )  # fmt: skip


def _basis(times: int, measured: Calibration) -> str:
    if times > 1:
        if measured.n_devices > 1:
            return f"assumed: each {measured.n_devices} as fast as these"
        return "assumed: each as fast as this one"
    return "measured to its end" if measured.is_whole else "from what was measured"


def _n_models(config: RunConfig, measured: Calibration, n_trials: int) -> float:
    """Trials with a logged model. The best K as they end are K (1 + log(n / K)) in the mean."""
    how = config.log_models
    if how == "none":
        return 0
    if how == "auto" and any("get a logged model" in line for line in measured.said):
        how = "best:10"
    if not how.startswith("best:"):
        return n_trials
    k = min(n_trials, int(how.partition(":")[2]))
    return min(n_trials, k * (1 + math.log(n_trials / k)))


def _notes(config: RunConfig, measured: Calibration, n_trials: int, one: Estimate) -> list[str]:
    notes = []
    if n_trials < config.trials:
        notes.append(f"the space has no more than {n_trials} configurations")
    shorter = [f"--pruner {config.pruner}"] if config.pruner != "none" else []
    shorter += [f"--patience {config.patience}"] if config.patience else []
    if shorter:
        notes.append(f"an upper bound: {' and '.join(shorter)} will end trials early")
    if config.timeout_s and one.time_s > config.timeout_s:
        n_calls = math.ceil(one.time_s / config.timeout_s)
        notes.append(
            f"--timeout {config.timeout_s:g} s ends a call before that: about {n_calls} calls"
        )
    if config.trial_timeout_s and measured.slowest_s > config.trial_timeout_s:
        notes.append(
            f"a trial takes up to {measured.slowest_s:.0f} s, and fails after --trial-timeout "
            f"{config.trial_timeout_s:g} s"
        )
    if measured.n_failed:
        n_over = measured.n_failed + measured.n_ended
        notes.append(f"{measured.n_failed} of {n_over} trials failed: {measured.failure}")
    if not measured.n_ended:
        notes.append(
            "no trial came to its end: what it costs to save one is not in the time (a longer "
            "--for sees it)"
        )
    if not measured.device.startswith("cpu"):
        notes.append("memory is the worker's on the host, not the device's")
    return notes
