"""`sweep check`: what a project can do, in lines; a first search space from its signatures."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.model_helpers import is_overridden

from sweep.errors import ConfigError
from sweep.files.trial_files import BEST, MODEL, RESUME_STATE, TrialFiles
from sweep.loading import one_line
from sweep.training.engine_choice import why_plain
from sweep.training.lightning_trainer import hush_lightning
from sweep.training.mlflow_calls import nothing_logged
from sweep.training.plain.ladder import climb
from sweep.training.plain.trainer import PlainTrainer
from sweep.training.process_state import undisturbed
from sweep.training.project.check import preflight
from sweep.training.project.project import Project
from sweep.trial import EpochReport, Notice, Orders, Report, Task, TrialSpec

FACTOR = 10.0
"""A first space varies a number between a tenth and ten times its default."""


def report(task: Task) -> list[str]:
    """Lines on arguments, metrics, and what a trial of one minibatch could do.

    Raises ConfigError with all faults, and what the module raised.
    """
    hush_lightning()
    with tempfile.TemporaryDirectory() as folder, nothing_logged(folder), undisturbed():
        small = dataclasses.replace(
            task, work_dir=folder, log_file=f"{folder}/log", n_threads=None
        )
        project = Project(small)
        if faults := project.faults(task.names or ()):
            raise ConfigError(faults)
        found = preflight(project, small)
        if found.error is not None and not found.faults:
            raise ConfigError(f"the first minibatch fails: {one_line(found.error, task.module)}")
        if found.faults:
            raise ConfigError(found.faults)
        (_, base), *_ = task.probes
        return [*_takes(project), *_logs(task, found.metrics), *_tried(small, project, base),
                *found.notices]  # fmt: skip


def _takes(project: Project) -> list[str]:
    return [
        f"{part.name} takes {', '.join(part.names) or 'nothing'}"
        + (f"; needs {', '.join(part.required)}" if part.required else "")
        for section, part in project.parts.items()
        if section in ("model", "data")
    ]


def _logs(task: Task, metrics: Sequence[str]) -> list[str]:
    logged = f"one minibatch logs {', '.join(metrics) or 'nothing'}"
    is_there = task.metric in metrics
    where = "" if is_there else ": not in the first minibatch, so it must come later"
    return [logged, f"objective: {task.metric}, {task.direction}{where}"]


def _tried(task: Task, project: Project, values: Mapping[str, Any]) -> list[str]:
    """A trial of one minibatch, by the trainer of a search."""
    limits = {"limit_train_batches": 1, "limit_val_batches": 1}
    config = {**task.config, "trainer": {**task.config.get("trainer", {}), **limits}}
    small = dataclasses.replace(task, config=config, epochs=2, probes=(), log_models="all",
                                checkpoint_interval_s=0.0, names=None)  # fmt: skip
    exchange = _One(TrialSpec(0, values, 0))
    PlainTrainer(small).train(exchange)
    files, built = TrialFiles(task.work_dir, 0), project.built(TrialSpec(0, values, 0))
    said = " ".join(exchange.said)
    why_not = said.partition("no logged model: ")[2] or "the trial did not complete"
    return [
        "resumed after a kill: " + ("yes" if exchange.was_kept else f"no: {said}"),
        "loaded by sweep.best: " + ("yes" if files.size(BEST) else "no"),
        "tested by sweep train: " + ("yes" if is_overridden("test_step", built.module) else "no"),
        "exported: " + ("yes" if files.size(MODEL) else f"no: {why_not}"),
        f"trials at a time: {_at_a_time(task, project)}",
    ]


def _at_a_time(task: Task, project: Project) -> str:
    why = why_plain(task)
    return f"1, in the plain path: {why}" if why else climb(task, project).said or "1"


class _One:
    """Orders one trial, and looks for its resume file as it trains."""

    def __init__(self, spec: TrialSpec) -> None:
        self._start: tuple[TrialSpec, ...] = (spec,)
        self.said: list[str] = []
        self.was_kept = False

    def __call__(self, reports: Sequence[Report], n_free: int) -> Orders:
        start, self._start = self._start, ()
        self.said += [one.message for one in reports if isinstance(one, Notice)]
        self.was_kept |= any(isinstance(one, EpochReport) for one in reports) and not any(
            RESUME_STATE in text for text in self.said
        )
        return Orders(start=start, is_last=True)


def write_space(task: Task, path: Path) -> list[str]:
    """Write a space file in which each plain number and switch of the constructors varies."""
    project = Project(task)
    varied: dict[str, Any] = {}
    for section, part in project.parts.items():
        if section in ("model", "data"):
            for name, default in part.defaults.items():
                if (spec := _first_range(default)) is not None:
                    varied[f"{section}.{name}"] = spec
    if not varied:
        raise ConfigError(f"no argument of {task.module} has a number or a switch as its default")
    if path.exists():
        raise ConfigError(f"{path} exists already: name another file, or move it")
    lines = [f"  {name}: {spec}" for name, spec in varied.items()]
    text = "\n".join([f"# A first space for {task.module}: narrow it.", "parameters:", *lines, ""])
    path.write_text(text, encoding="utf-8")
    return [f"{path}: {len(varied)} parameters vary, between a tenth and ten times their defaults"]


def _first_range(default: Any) -> str | None:
    """What a space file says of a number or a switch."""
    if isinstance(default, bool):
        return "{choices: [false, true]}"
    if isinstance(default, int) and default > 1:
        return f"{{int: [{max(1, default // 4)}, {default * 4}], log: true}}"
    if isinstance(default, float) and 0 < default < 1e6:
        low, high = default / FACTOR, default * FACTOR
        if default < 1 <= high:  # a share, most likely
            high = max(default, 0.9)
        return f"{{float: [{low:.6g}, {high:.6g}], log: true}}"
    return None
