"""Records as a driver writes them, for the tests of the displays."""

from __future__ import annotations

from sweep.trial import (
    DatasetInfo,
    EpochReport,
    StudyInfo,
    TrialFinished,
    TrialStarted,
    TrialState,
    WorkerReady,
)


def a_study(**changes):
    values = {
        "name": "mnist-mlp",
        "n_trials": 50,
        "metric": "val_acc",
        "direction": "maximize",
        "epochs": 10,
        "config": {"data": "mnist"},
        "space_name": "mlp",
        "space_text": "",
        "time_ms": 1_000_000,
    }
    return StudyInfo(**{**values, **changes})


def started(number, *, time_ms=1_000_000, **hyperparameters):
    hyperparameters = hyperparameters or {"optimizer": "Adam", "lr": 1.2e-3, "hidden": (256, 64)}
    name = f"t{number:03d} Adam lr=1.2e-3 256-64"
    return TrialStarted(number, name, hyperparameters, {}, time_ms)


def report(number, epoch, value, *, time_ms=1_001_000, is_replay=False, **metrics):
    metrics = {"val_acc": value, "epoch_s": 1.0, **metrics}
    return EpochReport(number, epoch, metrics, time_ms, is_replay=is_replay)


def finished(number, value=0.98, *, state=TrialState.COMPLETE, time_ms=1_003_100, **changes):
    return TrialFinished(
        number, state, time_ms, value, changes.pop("best_epoch", 7), {}, 10, **changes
    )


def ready(n_slots=32, device="cpu, 2 threads"):
    data = DatasetInfo("digits", "sklearn", "0", (1, 8, 8), 10, 1, 1)
    return WorkerReady(data, device, n_slots, 0)


def curve(number, epochs):
    """Started, then a curve that rises."""
    reports = [report(number, e, 0.9 + 0.008 * e + number / 1e4) for e in range(1, epochs + 1)]
    return [started(number), *reports]
