"""What is measured of a module before its first trial."""

from __future__ import annotations

from pathlib import Path

import projects

from sweep.testing import example_task
from sweep.training.lightning_trainer import hush_lightning
from sweep.training.plain.ladder import trained_alone
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
