"""Searches over functions: those that build module and data, and any that returns a number."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import lightning
import projects
import pytest
from searches import as_if_alone, in_this_process, inline

import sweep as library
from sweep.errors import ConfigError
from sweep.ledger.study import open_study

pytestmark = pytest.mark.usefixtures("ready_store")

FILE = """
import projects
import torch


def build(t):
    module = projects.Line(lr=t["lr"])
    data = projects.Points(batch_size=t["size"])
    return module, data, {"gradient_clip_val": 0.5}


class Own(projects.Line):
    def train_dataloader(self):
        return torch.utils.data.DataLoader([(torch.ones(4), torch.ones(()))] * 8, 4)

    def val_dataloader(self):
        return self.train_dataloader()


def alone(t):
    return Own(lr=t.get("lr"))


def shape(params, report):
    for epoch in range(report.epochs):
        report((params["x"] - 2) ** 2 + 1 / (1 + epoch), epoch=epoch)
    (report.folder / "note.txt").write_text("kept")


def value(params, report):
    return (params["x"] - 2) ** 2


def chatty(params, report):
    for _ in range(100):
        report(params["x"])


def empty(params, report):
    params["x"]


def deaf(params, report):
    return 1.0


def counted(params, report):
    return sum(params[f"x_{i}"] for i in range(2))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A project's folder, the current one; nothing of it is loaded in the next test."""
    (tmp_path / "fun.py").write_text(FILE)
    shutil.copy(projects.__file__, tmp_path)  # for other processes
    with as_if_alone(tmp_path, SWEEP_EXECUTOR="inline"):
        yield tmp_path


def values(study: str) -> list[float | None]:
    """The value of each trial."""
    return [t.value for t in open_study("sqlite:///mlruns/optuna.db", study).trials()]


def test_a_function_builds_module_data_and_trainer(folder: Path) -> None:
    """Searched, its best loaded and trained on; in Python and from the command line."""
    outcome = library.run(
        build="fun.py:build", vary={"lr": library.floats(0.01, 0.1), "size": [8, 16]},
        metric="val_loss", trials=2, epochs=2, study="b",
    )  # fmt: skip
    assert outcome.end.reason == "done"
    best = library.best("b")
    assert type(best.load()).__name__ == "Line"
    assert best.load().hparams.lr == best.config["lr"]
    again = inline(folder, "run", "--study", "b", "--trials", "3")
    assert again.returncode == 0, again.stderr
    (folder / "best.yaml").write_text(inline(folder, "best", "b").stdout)
    trained = inline(folder, "train", "--config", "best.yaml")
    assert trained.returncode == 0, trained.stderr
    assert "test_loss=" in trained.stdout
    refused = inline(folder, "best", "b", "--format", "lightning-cli")
    assert refused.returncode == 2
    assert "LightningCLI has no form" in refused.stderr


def test_any_function_is_searched(folder: Path) -> None:
    """Its reports are its curve; it may be pruned; its folder is its own; other kinds of faults
    are one line each."""
    done = in_this_process(
        folder, {}, "run", "--module", "fun.py:shape", "--kind", "objective", "--vary",
        "x=-5.0..5.0", "--trials", "6", "--epochs", "4", "--study", "s", "--pruner", "median",
        "--seed", "1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "value is minimized" in done.stdout
    trials = open_study("sqlite:///mlruns/optuna.db", "s").trials()
    assert next([*t.curve] for t in trials if str(t.state) == "COMPLETE") == [1, 2, 3, 4]
    assert {t.value for t in trials} == {min(t.curve.values()) for t in trials}
    outcome = library.run(
        objective="fun.py:value", vary={"x": library.ints(0, 4)}, sampler="grid", trials=5,
        study="v", direction="minimize",
    )  # fmt: skip
    assert outcome.end.best_value == 0.0
    assert sorted(value or 0.0 for value in values("v")) == [0, 1, 1, 4, 4]
    refused = inline(folder, "train", "--study", "v")
    assert refused.returncode == 2
    assert "trains by itself" in refused.stderr


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("chatty", "reports more often than --epochs says (3)"),
        ("empty", "must return a number"),
        ("deaf", "fun.py:deaf ignores x: nothing in it reads 'x'"),
        ("missing", "has no 'missing'"),
    ],
)
def test_what_a_function_does_wrong_is_said(folder: Path, name: str, said: str) -> None:
    """Before the first trial where it can be seen, else as the trial's failure."""
    done = inline(folder, "run", "--module", f"fun.py:{name}", "--kind", "objective", "--vary",
                 "x=1.0..2.0", "--trials", "1", "--epochs", "3", "--study", "w")  # fmt: skip
    assert done.returncode != 0
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("folder")
def test_objects_of_the_program_train_in_its_process() -> None:
    """Instances, closures and lambdas have no name that another process could import."""
    scale = 3.0
    outcome = library.run(
        objective=lambda params, report: scale * params["x"], vary={"x": [1.0, 2.0, 3.0]},
        trials=3, study="closure",
    )  # fmt: skip
    assert outcome.end.best_value == 3.0
    searched = library.run(
        module=projects.Line, data=projects.Points(batch_size=8), vary={"lr": [0.01, 0.02]},
        metric="val_loss", trials=2, epochs=1, study="instance",
    )  # fmt: skip
    assert searched.end.reason == "done"
    with pytest.raises(ConfigError, match="leave it out to train in this process"):
        library.run(module=projects.Line, data=projects.Points(), executor="process")
    with pytest.raises(ConfigError, match="module and objective are two ways"):
        library.run(module=projects.Line, objective=lambda params, report: 1.0)


@pytest.mark.usefixtures("folder")
def test_names_that_are_put_together_are_no_ignored_ones() -> None:
    """And two objects of a kind are two objects."""
    found = library.run(
        objective="fun.py:counted", vary={"x_0": [1, 2], "x_1": [1, 2]}, trials=4, study="counted"
    )
    assert found.end.best_value == 2
    seen = []
    callbacks = [Counting(seen, 1), Counting(seen, 2)]
    library.run(
        module=projects.Line, data=lambda: projects.Points(), callbacks=callbacks,
        vary={"lr": [0.01, 0.02]}, metric="val_loss", trials=1, epochs=1, study="callbacks",
    )  # fmt: skip
    assert seen[-2:] == [1, 2]


class Counting(lightning.pytorch.callbacks.Callback):
    """Leaves its number."""

    def __init__(self, seen: list[int], number: int) -> None:
        self.seen, self.number = seen, number

    def __deepcopy__(self, memo: object) -> Counting:
        return Counting(self.seen, self.number)

    def on_train_end(self, trainer: object, pl_module: object) -> None:
        self.seen.append(self.number)


@pytest.mark.usefixtures("folder")
def test_a_function_that_trains_by_itself_takes_no_data() -> None:
    """Flags that would be ignored are refused."""
    with pytest.raises(ConfigError, match="trains by itself, so leave out --data"):
        library.run(objective="fun.py:value", data="digits", vary={"x": [1, 2]})
    with pytest.raises(ConfigError, match="brings its own, so leave out --callback"):
        library.run(build="fun.py:build", vary={"lr": [0.1, 0.2]}, metric="val_loss",
                    callbacks=[lightning.pytorch.callbacks.LearningRateMonitor])  # fmt: skip


def test_a_build_function_may_return_a_module_alone(folder: Path) -> None:
    """Its own loaders are used; a parameter that it ignores is refused."""
    done = inline(folder, "run", "--module", "fun.py:alone", "--kind", "build", "--vary",
                 "lr=0.01,0.02", "--metric", "val_loss", "--trials", "1", "--epochs", "1",
                 "--study", "alone")  # fmt: skip
    assert done.returncode == 0, done.stderr
    refused = inline(folder, "run", "--module", "fun.py:alone", "--kind", "build", "--vary",
                    "depth=1,2", "--metric", "val_loss", "--study", "deaf")  # fmt: skip
    assert refused.returncode == 2
    assert "ignores depth" in refused.stderr
