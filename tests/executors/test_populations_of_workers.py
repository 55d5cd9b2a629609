"""How many workers train a module of one's own is no matter of its curves."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import sweep
from sweep.testing import RecordingListener
from sweep.trial import EpochReport


def curves(
    folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch, workers: int, executor: str
) -> dict[int, list[float]]:
    """Of four trials, all begun at once."""
    folder.mkdir()
    shutil.copyfile(store, folder / "mlflow.db")
    monkeypatch.chdir(folder)
    listener = RecordingListener()
    sweep.run(
        module="projects:Mixed", data="projects:Points", metric="val_loss", study="s", trials=4,
        vary={"lr": sweep.floats(1e-3, 1e-1, log=True), "dropout": sweep.floats(0.1, 0.5)},
        epochs=3, sampler="random", pruner="none", seed=5, workers=workers, executor=executor,
        population=4 // workers, log_models="none", precision="64-true", accelerator="cpu",
        listeners=(listener,),
    )  # fmt: skip
    found: dict[int, list[float]] = {}
    for report in listener.records:
        if isinstance(report, EpochReport):
            found.setdefault(report.number, []).append(report.metrics["val_loss"])
    return found


def test_two_workers_give_the_curves_of_one(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four trials in one population, here, or two in each of two workers."""
    one = curves(tmp_path / "one", empty_store, monkeypatch, 1, "inline")
    two = curves(tmp_path / "two", empty_store, monkeypatch, 2, "process")
    assert one.keys() == two.keys() == {0, 1, 2, 3}
    for number, curve in one.items():
        assert len(curve) == 3
        assert two[number] == pytest.approx(curve, rel=1e-10)
