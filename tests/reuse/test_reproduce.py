"""A recorded trial trained again: the same curve, or what is not as it was."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from searches import INLINE, Call

import sweep
from sweep.config.settings import RunConfig
from sweep.errors import ConfigError, NotFoundError
from sweep.ledger.study import open_study
from sweep.trial import TrialState

SHARED: dict[str, Any] = INLINE | {"population": None}


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """A folder with a search of the built-in network whose population lost trials on its way."""
    folder = tmp_path_factory.mktemp("pruned")
    shutil.copyfile(empty_store, folder / "mlflow.db")
    with contextlib.chdir(folder):
        sweep.run(
            study="p", trials=12, epochs=4, sampler="random", pruner="median", space="mlp_small",
            **SHARED | {"population": 3},
        )  # fmt: skip
    return folder


def everything(folder: Path) -> dict[str, str]:
    """A digest of every file; of the databases, of what is in them."""
    found = {}
    for path in (p for p in folder.rglob("*") if p.is_file()):
        content = path.read_bytes()
        if path.suffix == ".db":
            with contextlib.closing(sqlite3.connect(path)) as connection:
                content = "\n".join(connection.iterdump()).encode()
        if not path.name.endswith(("-wal", "-shm")):
            found[str(path)] = hashlib.sha256(content).hexdigest()
    return found


def test_pruned_neighbours_do_not_matter(pruned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone, each trial has its curve again to the last bit, the pruned ones as far as theirs
    goes; nothing was written to the study or to MLflow."""
    monkeypatch.chdir(pruned)
    before = everything(pruned)
    with contextlib.closing(open_study(RunConfig().storage, "p")) as ledger:
        trials = ledger.trials()
    was_pruned = [trial.number for trial in trials if trial.state is TrialState.PRUNED]
    late = [trial.number for trial in trials if trial.start_epoch > 0]
    assert was_pruned
    assert late
    for number in [*was_pruned[:2], *late[-2:], 0]:
        again = sweep.reproduce("p", number)
        assert (again.difference, again.changed) == (0.0, ())
        assert again.n_epochs == len(again.curve) == len(trials[number].reports)
        assert again.verdict.endswith(f"the same curve to the last bit, {again.n_epochs} reports")
    assert everything(pruned) == before


def test_another_version_is_said(pruned: Path, call: Call, tmp_path: Path) -> None:
    """Also where the curve is the same: the exit code is of the curve."""
    shutil.copytree(pruned, tmp_path, dirs_exist_ok=True)
    with contextlib.closing(open_study(RunConfig().storage, "p")) as ledger:
        torchs = ledger.tags["sweep.version.torch"]
        ledger.note_tags({"sweep.version.torch": "1.0.0", "sweep.device": "cuda NVIDIA H100"})
    code, out, errors = call("reproduce", "p", 0)
    assert (code, errors) == (0, [])
    assert f"  version of torch has changed: 1.0.0 then, {torchs} now" in out.splitlines()
    assert "  device has changed: cuda NVIDIA H100 then, cpu, " in out


DATA = """
import torch

def data():
    x, y = torch.load("rows.pt", weights_only=True)
    return {"train": (x[:300], y[:300]), "val": (x[300:], y[300:])}
"""


def rows(shift: float) -> tuple[torch.Tensor, torch.Tensor]:
    """400 samples of four classes."""
    x = torch.rand(400, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 16
    return x + shift, (x.sum((1, 2, 3)) * 3).long() % 4


@pytest.mark.usefixtures("ready_store")
def test_changed_data_are_said(call: Call, tmp_path: Path) -> None:
    """The curve is another, and why; with the old data it is the same again. A module of one's
    own, whose trials trained side by side."""
    (tmp_path / "rowsfile.py").write_text(DATA)
    (tmp_path / "space.yaml").write_text("parameters: {width: {choices: [4, 8, 6]}}\n")
    torch.save(rows(0.0), "rows.pt")
    sweep.run(
        study="own", module="user_code:Model", data="rowsfile.py:data", metric="val_f1",
        space="space.yaml", trials=3, epochs=2, **SHARED,
    )  # fmt: skip
    code, out, errors = call("reproduce", "own", 2)
    assert (code, errors) == (0, []), out
    assert "trial 2 of own: the same curve" in out
    torch.save(rows(2.0), "rows.pt")
    code, out, errors = call("reproduce", "own", 2)
    assert (code, errors) == (1, [])
    verdict, why, *others = out.splitlines()
    assert verdict.startswith("trial 2 of own: another curve (largest difference: val_")
    assert why.startswith("  the data have changed: digest ")
    assert others == []
    torch.save(rows(0.0), "rows.pt")
    (tmp_path / "rowsfile.py").write_text(DATA + "# edited\n")
    code, out, errors = call("reproduce", "own", 2)
    assert code == 0
    assert "  the data's source file has changed: " in out


def test_what_has_no_curve_is_refused(pruned: Path, tmp_path: Path, call: Call) -> None:
    """An unknown trial, one that has not ended, a command without a number: one line each."""
    shutil.copytree(pruned, tmp_path, dirs_exist_ok=True)
    with contextlib.closing(open_study(RunConfig().storage, "p")) as ledger:
        queued = ledger.enqueue({"lr": 0.1})
    with pytest.raises(NotFoundError, match=r"but not 99"):
        sweep.reproduce("p", 99)
    with pytest.raises(ConfigError, match=f"trial {queued} of p has not ended: it is WAITING"):
        sweep.reproduce("p", queued)
    for wrong in (("p",), ("p", "x", "1")):
        code, out, errors = call("reproduce", *wrong)
        assert (code, out, len(errors)) == (2, "", 1)
        assert "the number of a trial" in errors[0]
