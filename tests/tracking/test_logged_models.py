"""Which trials get a logged model, and a model later for one that got none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mlflow
import pytest
import torch
from searches import Call

import sweep
from sweep.testing import example_task
from sweep.training.model_choice import ModelChoice
from sweep.training.run import Run
from sweep.trial import TrialSpec


def included(folder: Path, how: str, values: Sequence[float], direction: str) -> list[int]:
    """Trials that get a model where they end with `values`, one after the other."""
    task = example_task(folder, log_models=how, direction=direction, metric="score")
    choice, found = ModelChoice(task), []
    for number, value in enumerate(values):
        run = Run(TrialSpec(number, {}, 0), task)
        run.take({"score": value})
        found += [number] if choice.includes(run) else []
    return found


@pytest.mark.parametrize(
    ("how", "direction", "expected"),
    [
        ("all", "maximize", [0, 1, 2, 3, 4, 5]),
        ("none", "maximize", []),
        ("best:2", "maximize", [0, 1, 2, 5]),
        ("best:2", "minimize", [0, 1, 3, 4]),
        ("best:1", "maximize", [0, 2]),
        ("auto", "maximize", [0, 1, 2, 3, 4, 5]),
    ],
)
def test_the_best_as_they_end(
    tmp_path: Path, how: str, direction: str, expected: list[int]
) -> None:
    """Those are chosen that are among the best K when they end."""
    assert included(tmp_path, how, [0.4, 0.3, 0.9, 0.2, 0.1, 0.5], direction) == expected


def test_auto_is_what_an_export_takes(tmp_path: Path) -> None:
    """The second export decides, once: slow ones leave the best ten, and that is said."""
    slow = ModelChoice(example_task(tmp_path, module="mine:Net"))
    assert [slow.exported(s) for s in (3.0, 0.2, 0.2)] == [
        "",
        "exporting mine:Net takes 200 ms: only trials among the best 10 as they end get a logged "
        "model (--log-models all: each of them)",
        "",
    ]
    for module, times in (("mine:Net", (3.0, 0.04, 0.2)), (None, (3.0, 0.2, 0.2))):
        task = example_task(tmp_path, **({"module": module} if module else {}))
        choice = ModelChoice(task)
        assert [choice.exported(s) for s in times] == [""] * 3


@pytest.mark.filterwarnings("ignore")
def test_a_model_is_logged_on_demand(tmp_path: Path, call: Call) -> None:
    """A search for the best trial's model alone; doctor misses nothing; another trial gets its
    model later, which predicts as its checkpoint, once."""
    flags = ("--study", "s", "--trials", 4, "--epochs", 1, "--executor", "inline", "--threads", 1)
    code, _, errors = call("run", *flags, "--log-models", "best:1", "--sampler", "random")
    assert (code, errors) == (0, [])
    uris = [sweep.best("s", trial=number).model_uri for number in range(4)]
    assert uris[0] is not None
    assert None in uris
    number = uris.index(None)
    assert call("doctor", "s")[0] == 0
    code, out, said = call("best", "s", "--trial", number, "--log-model")
    assert code == 0, said
    found = sweep.best("s", trial=number)
    assert [found.model_uri] == said
    assert "hidden" in out
    x = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        expected = found.load()(x)
    loaded = mlflow.pytorch.load_model(found.model_uri)
    torch.testing.assert_close(loaded(x), expected, rtol=1e-4, atol=1e-5)
    assert found.log_model() == found.model_uri
    assert call("doctor", "s")[0] == 0
