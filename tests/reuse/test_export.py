"""Exported models answer as their checkpoint does, or are not written."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from searches import Call
from torch import Tensor, nn

import sweep
from sweep.errors import ConfigError
from sweep.reuse import Best
from sweep.reuse.export import ONNX_PACKAGES, Subject, export_subject, largest_difference

LACKING = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]


def as_the_readme_says(folder: Path) -> Callable[[Tensor], Any]:
    """The model, loaded by the lines of the README beside it."""
    block = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert block
    names: dict[str, Any] = {}
    here = Path.cwd()
    os.chdir(folder)
    try:
        exec(block[1], names)
    finally:
        os.chdir(here)
    model: Callable[[Tensor], Any] = names["model"]
    return model


def see_that_it_answers_alike(best: Best, folder: Path, shape: tuple[int, ...]) -> None:
    """For 1, 7 and 1,000 rows of our own, and as the files say."""
    about = json.loads((folder / "export.json").read_text())
    assert about["input"]["shape"] == ["n", *shape]
    assert about["metric"]["value"] == best.score
    model, module = as_the_readme_says(folder), best.load()
    for n in (1, 7, 1000):
        x = torch.rand(n, *shape)
        with torch.no_grad():
            expected = module(x)
            given = model(x.numpy() if about["format"] == "onnx" else x)  # type: ignore[arg-type]
        np.testing.assert_allclose(np.asarray(given), expected.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("to", ["pt2", "state-dict"])
def test_an_export_gives_what_the_checkpoint_gives(best: Best, tmp_path: Path, to: str) -> None:
    """Loaded as its README says, for any number of rows."""
    done = best.export(tmp_path / "out", to)
    assert max(done.differences.values()) == 0.0
    assert sorted(done.differences) == [1, 7, 1000]
    see_that_it_answers_alike(best, tmp_path / "out", (1, 8, 8))
    assert len([*(tmp_path / "out").iterdir()]) == 3


def test_a_missing_onnx_is_a_line_with_its_remedy(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written, and the line says what to install."""
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # to Python that is not installed
    said = r"needs .*onnxscript.*: pip install onnx onnxscript onnxruntime"
    with pytest.raises(ConfigError, match=said):
        sweep.best("digits-mlp").export(tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(bool(LACKING), reason="needs onnx, onnxscript and onnxruntime")
def test_onnx_gives_what_the_checkpoint_gives(best: Best, tmp_path: Path) -> None:
    """By onnxruntime."""
    done = best.export(tmp_path, "onnx")
    assert max(done.differences.values()) < 1e-5
    see_that_it_answers_alike(best, tmp_path, (1, 8, 8))


@pytest.mark.usefixtures("ready_store")
def test_a_module_of_ones_own(call: Call, tmp_path: Path) -> None:
    """Its input is that of its data; what torch.export cannot take says why on one line."""
    (tmp_path / "space.yaml").write_text("parameters: {width: {choices: [4]}}\n")
    given: dict[str, Any] = {
        "metric": "val_f1", "space": "space.yaml", "trials": 1, "epochs": 1, "threads": 1,
        "executor": "inline", "log_models": "none",
    }  # fmt: skip
    sweep.run(study="own", module="user_code:Model", **given)
    code, out, errors = call("export", "own", "out")
    assert (code, errors) == (0, [])
    assert out.splitlines()[-1] == (
        "largest difference from its checkpoint: 0 for 1 row, 0 for 7 rows, 0 for 1,000 rows"
    )
    see_that_it_answers_alike(sweep.best("own"), tmp_path / "out", (1, 8, 8))
    (tmp_path / "leaving.yaml").write_text("parameters: {where: {choices: [export]}}\n")
    given |= {"space": "leaving.yaml"}
    sweep.run(study="leaving", module="user_code:Leaving", **given)
    code, out, errors = call("export", "leaving", 0, "none")
    assert (code, out, len(errors)) == (2, "", 1)
    assert "user_code:Leaving cannot be exported: " in errors[0]
    assert "left in export" in errors[0]
    assert not [*(tmp_path / "none").iterdir()]


class Noise(nn.Module):
    """Answers differently each time."""

    def forward(self, x: Tensor) -> Tensor:
        """With random numbers."""
        return x + torch.rand_like(x)


def test_a_model_that_answers_otherwise_is_not_written(tmp_path: Path) -> None:
    """It is said how far off it is, and for how many rows."""
    subject = Subject("mine:Noise", Noise(), torch.rand(5, 3), "", Noise, {})
    with pytest.raises(ConfigError, match=r"differs from its checkpoint by .* for 1 row:"):
        export_subject(subject, tmp_path, "state-dict")
    assert not [*tmp_path.iterdir()]


def test_differences_are_the_largest_and_never_hidden() -> None:
    """NaN against a number, and another shape, are infinite."""
    a, b = torch.tensor([1.0, float("nan"), float("inf")]), torch.tensor([1.5, 1.0, 2.0])
    assert largest_difference([a[:1]], [b[:1]]) == 0.5
    assert largest_difference([a], [a]) == 0.0
    assert largest_difference([a[:2]], [b[:2]]) == float("inf")
    assert largest_difference([a], [b[:2]]) == float("inf")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("digits-mlp", "99", "out"), "no scored trial 99"),
        (("digit-mlp", "out"), "did you mean digits-mlp"),
        (("digits-mlp", "1", "2", "out"), "say a study and the number of a trial"),
        (("digits-mlp", "out", "--to", "pt3"), "'pt3' is not one of"),
    ],
)
def test_a_wrong_command_is_one_line(
    searched: Path, call: Call, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    """It names what was wrong, and nothing is written."""
    stores = "--storage", f"sqlite:///{searched}/mlruns/optuna.db"
    code, out, errors = call("export", *arguments, *stores)
    assert (code, out, len(errors)) == (2, "", 1)
    assert said in errors[0]
    assert not (tmp_path / "out").exists()
