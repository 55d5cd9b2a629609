"""What is measured of a module before its first trial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import projects
import torch

from sweep.testing import example_task
from sweep.training.lightning_trainer import hush_lightning
from sweep.training.plain.ladder import Ladder, climb, trained_alone
from sweep.training.project.project import Project
from sweep.trial import TrialSpec


def test_a_loader_that_takes_long_is_no_part_of_the_step(tmp_path: Path) -> None:
    """Nor if it takes longer at one time than at another: a step is timed between its loads."""
    hush_lightning()
    projects.Late.n_given = 0
    task = example_task(
        tmp_path, module="projects:Line", data="projects:Late", metric="val_loss",
        direction="minimize", names=("lr",),
    )  # fmt: skip
    alone = trained_alone(task, Project(task, None), TrialSpec(0, {"lr": 0.01}, seed=0))
    assert alone is not None
    assert 1e-4 < alone.step_of_one_thread_s < 0.05
    assert 1e-4 < alone.step_s < 0.05
    assert alone.load_s >= 0.01


def climbed(folder: Path, **changes: Any) -> Ladder:
    """What a search of a module on two threads does."""
    hush_lightning()
    values: dict[str, Any] = {
        "module": "projects:Line", "data": "projects:Points", "metric": "val_loss", "epochs": 4,
        "direction": "minimize", "names": ("lr", "data.batch_size"),
        "probes": (("", {"lr": 0.01, "data.batch_size": 2}),),
        "n_threads": None, "n_trials": 1000,
    }  # fmt: skip
    task = example_task(folder, **(values | changes))
    n_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        return climb(task, Project(task, None))
    finally:
        torch.set_num_threads(n_threads)


def test_one_thread_trains_where_it_is_faster_than_all(tmp_path: Path) -> None:
    """Unless the number of threads was asked for; where workers may be added, each has one."""
    crowded = {"module": "projects:Crowded", "population": 1}
    ladder = climbed(tmp_path / "measured", **crowded)
    assert (ladder.n_workers, ladder.n_threads) == (1, 1)
    assert ladder.said.endswith("one thread, which is faster just now than 2")
    ladder = climbed(tmp_path / "asked", n_threads=2, **crowded)
    assert (ladder.n_workers, ladder.n_threads) == (1, 2)
    ladder = climbed(tmp_path / "workers", may_add_workers=True, **crowded)
    assert (ladder.n_workers, ladder.n_threads) == (2, 1)


def test_steps_that_others_hold_up_leave_time_for_those_of_one_thread(tmp_path: Path) -> None:
    """Where two threads wait for each other beside other programs, the time for trying ends."""
    held_up = {"lr": 0.01, "slow_s": 1.5, "data.batch_size": 2}
    ladder = climbed(
        tmp_path, module="projects:Crowded", population=1, names=tuple(held_up),
        probes=(("", held_up),),
    )  # fmt: skip
    assert ladder.n_threads == 1


def test_a_short_search_does_not_try_to_share_steps(tmp_path: Path) -> None:
    """Trying takes longer than all its steps; a longer one tries, and so does a population that
    was asked for."""
    short = climbed(tmp_path / "short", n_trials=4)
    assert not short.may_share_steps
    assert "less time than trying to share them" in short.said
    assert climbed(tmp_path / "long").may_share_steps
    assert "less time" not in climbed(tmp_path / "asked", n_trials=4, population=4).said
