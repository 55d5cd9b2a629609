"""The preflight: what is found in a minibatch before trial 0, and what is not refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from projects import Line

from sweep.errors import ConfigError
from sweep.space import parse_space, with_changes
from sweep.testing import ScriptedExchange, example_task
from sweep.training.plain.trainer import PlainTrainer
from sweep.training.project.check import is_read
from sweep.trial import Notice, TrialSpec


def check(folder: Path, module: str, *vary: str, metric: str = "val_loss") -> list[str]:
    """Faults, or else notices, of a search over a module of `projects` and its points."""
    space = parse_space(with_changes("", vary, ()), "vary", is_mlp=False)
    task = example_task(
        folder, module=f"projects:{module}", data="projects:Points", metric=metric, epochs=1,
        direction="minimize", population=1, names=space.names, probes=space.probes(0),
    )  # fmt: skip
    exchange = ScriptedExchange([TrialSpec(0, dict(space.draw(0)), 7)])
    try:
        PlainTrainer(task).train(exchange)
    except ConfigError as error:
        return [*error.faults]
    return [report.message for report in exchange.reports if isinstance(report, Notice)]


@pytest.mark.parametrize(
    ("module", "vary"),
    [
        ("Line", "unused=1,2"),
        ("Line", "stored=0.1..0.5"),
        ("Kept", "dropout=0.1..0.5"),
        ("Overridden", "width=4,8"),
        ("Overridden", "model.width=4,8"),
    ],
)
def test_a_parameter_that_changes_nothing_is_refused(
    tmp_path: Path, module: str, vary: str
) -> None:
    """Kept in hparams or as an attribute, but looked at by nobody."""
    (fault,) = check(tmp_path, module, "lr=0.001..0.1:log", vary)
    assert fault.startswith(f"{vary.partition('=')[0]} changes nothing: neither weights")


@pytest.mark.parametrize(
    "vary",
    ["lr=0.001..0.1:log", "noise=0.1..0.5", "batch_size=8,16", "width=4,8", "l1=0.0..0.1",
     "gamma=0.1..0.9", "data.noise=0.1..0.5", "model.lr=0.1,0.2",
     "trainer.gradient_clip_val=0.1,0.2"],
)  # fmt: skip
def test_a_living_parameter_is_not_refused(tmp_path: Path, vary: str) -> None:
    """Whatever it changes: weights, minibatches, loss, optimizer, schedule or Trainer."""
    assert not any("changes nothing" in line for line in check(tmp_path, "Living", vary))


def test_a_parameter_for_later_is_said_and_not_refused(tmp_path: Path) -> None:
    """It acts after an epoch: the first minibatch cannot show it."""
    said = check(tmp_path, "Living", "unfreeze_at=3,4")
    assert "unfreeze_at changes nothing in the first minibatch" in said


@pytest.mark.parametrize(
    ("metric", "fault"),
    [
        (
            "val_los",
            "--metric must be one of val_loss, but got 'val_los' (did you mean val_loss?)",
        ),
        ("val_rare", ""),
        ("quite_another", ""),
    ],
)
def test_a_misspelt_metric_is_told_before_trial_0(tmp_path: Path, metric: str, fault: str) -> None:
    """Not one that the module logs at times, nor one that is like nothing it logs."""
    said = check(tmp_path, "Living", "lr=0.001..0.1:log", metric=metric)
    assert (said[:1] == [fault]) == bool(fault)


@pytest.mark.parametrize(
    ("vary", "fault"),
    [
        ("lr=low,high", "model.lr must be a number, but got '"),
        ("width=1.5,2.5", "model.width must be a whole number, but got "),
        ("lrr=1,2", "no argument 'lrr' of projects:Living or projects:Points (did you mean lr?)"),
        ("model.lrr=1,2", "an argument of projects:Living must be one of "),
        ("data.nose=1,2", "an argument of projects:Points must be one of "),
        ("trainer.gradient_clip=1,2", "an argument of Trainer must be one of "),
    ],
)
def test_a_wrong_name_or_type_is_one_line(tmp_path: Path, vary: str, fault: str) -> None:
    """Before the first trial, with the nearest name."""
    assert check(tmp_path, "Living", vary)[0].startswith(fault)


def test_a_module_that_fails_fails_its_trials_alone(tmp_path: Path) -> None:
    """The preflight says nothing of it: another configuration may train."""
    assert check(tmp_path, "Failing", "lr=0.001..0.1:log") == []


def test_reading_is_told_from_keeping() -> None:
    """`self.x = x` reads nothing; `self.hparams.x` and `f(x)` do."""
    assert not is_read(Line, "stored")
    assert not is_read(Line, "unused")
    assert is_read(Line, "lr")
