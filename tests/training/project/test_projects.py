"""Projects that were not written for sweep, unedited: searched, resumed and loaded.

Each trains in a trial as in a `Trainer.fit` of its own after `seed_everything`, bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import projects
import pytest
import torch
from own_fits import EPOCHS, METRICS, PROJECTS, alone, built_by_hand, curve_of

from sweep.config.settings import RunConfig
from sweep.files.trial_files import BEST, RESUME_STATE, TrialFiles
from sweep.reuse import final_training
from sweep.reuse.loading import load
from sweep.reuse.recipe import Recipe
from sweep.testing import ScriptedExchange, example_task
from sweep.training.lightning_trainer import hush_lightning
from sweep.training.plain.trainer import PlainTrainer
from sweep.training.resuming import seed_everything
from sweep.trial import StopReason, TrialSpec

SEED = 11


def trained(
    folder: Path, case: str, *, stop_after: int | None = None, is_resumed: bool = False,
    reason: StopReason = "interrupted",
) -> ScriptedExchange:  # fmt: skip
    """One trial, interrupted after so many epochs."""
    name, of_data, given = PROJECTS[case]
    task = example_task(
        folder, module=name, data=of_data or "module",
        metric=METRICS.get(case, "val_loss"), direction="minimize", epochs=EPOCHS, population=1,
        names=tuple(given), log_models="none",
    )  # fmt: skip
    spec = dataclasses.replace(TrialSpec(0, given, SEED), is_resumed=is_resumed)
    stops = {} if stop_after is None else {0: stop_after}
    exchange = ScriptedExchange([spec], stops, reason)
    PlainTrainer(task).train(exchange)
    return exchange


@pytest.mark.parametrize("case", PROJECTS)
def test_a_trial_is_a_fit_of_its_own(tmp_path: Path, case: str) -> None:
    """The same curve, bit for bit; interrupted and resumed, too; its best weights load."""
    hush_lightning()
    whole = trained(tmp_path / "whole", case)
    result = whole.results()[0]
    assert result.failure is None
    assert result.outcome == "finished"
    seed_everything(SEED)
    module, data = built_by_hand(case)
    expected = alone(module, data, tmp_path)
    found = curve_of(whole)
    assert len(found) == len(expected)
    for epoch, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert ours == {k: theirs[k] for k in ours}, epoch

    if len(expected) == EPOCHS:  # not stopped by itself
        trained(tmp_path / "parts", case, stop_after=2)
        assert TrialFiles(tmp_path / "parts" / "example", 0).size(RESUME_STATE) > 0
        assert curve_of(trained(tmp_path / "parts", case, is_resumed=True)) == found

    name, of_data, given = PROJECTS[case]
    recipe = Recipe(model=given, module=name, data=of_data or "module")
    kept = TrialFiles(tmp_path / "whole" / "example", 0).path(BEST)
    loaded = load(recipe, RunConfig(), kept)
    weights = torch.load(kept, weights_only=True)["state_dict"]
    assert all(torch.equal(weights[k], value) for k, value in loaded.state_dict().items())


@pytest.mark.usefixtures("ready_store")
@pytest.mark.parametrize("case", PROJECTS)
def test_a_project_is_pruned_and_trained_downstream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """A pruned trial keeps its best weights; the training after the search has a checkpoint that
    loads, whatever the module can or cannot be tested on."""
    monkeypatch.chdir(tmp_path)
    name, of_data, given = PROJECTS[case]
    pruned = trained(tmp_path, case, stop_after=1, reason="pruned").results()[0]
    assert (pruned.outcome, pruned.n_epochs, pruned.best_epoch) == ("stopped", 1, 1)
    recipe = Recipe(model=given, module=name, data=of_data or "module", epochs=2, study=case)
    assert load(recipe, RunConfig(), TrialFiles(tmp_path / "example", 0).path(BEST))
    done = final_training.train(recipe, RunConfig(accelerator="cpu"), tmp_path / "final.ckpt")
    assert done.n_epochs == 2
    assert load(recipe, RunConfig(), done.checkpoint)


def n_set_up(folder: Path, data: str, given: list[Mapping[str, Any]]) -> int:
    """How often `setup` ran in trials with these arguments, one after the other."""
    projects.SET_UP.clear()
    names = tuple({name for values in given for name in values})
    task = example_task(
        folder, module="projects:Line", data=f"projects:{data}", metric="val_loss", epochs=1,
        direction="minimize", population=1, names=names, log_models="none",
    )  # fmt: skip
    PlainTrainer(task).train(
        ScriptedExchange([TrialSpec(number, values, 1) for number, values in enumerate(given)])
    )
    return len(projects.SET_UP)


@pytest.mark.parametrize(
    ("data", "given", "n"),
    [
        ("Counted", [{"lr": 0.1}, {"lr": 0.2}, {"lr": 0.3}], 1),
        ("Counted", [{"noise": 0.1}, {"noise": 0.2}, {"noise": 0.2}], 2),
        ("Drawing", [{"lr": 0.1}, {"lr": 0.2}, {"lr": 0.3}], 3),
        ("TornDown", [{"lr": 0.1}, {"lr": 0.2}], 2),
    ],
)
def test_data_are_set_up_once_where_that_changes_nothing(
    tmp_path: Path, data: str, given: list[Mapping[str, Any]], n: int
) -> None:
    """Anew for other arguments, for a setup that draws random numbers, and after a teardown."""
    assert n_set_up(tmp_path, data, given) == n


@pytest.mark.parametrize(("keeps", "n"), [(False, 2), (True, 4)])
def test_data_are_prepared_once_a_search(tmp_path: Path, keeps: bool, n: int) -> None:
    """By the first of its workers, and again for other arguments; by each trial if it leaves
    something in the DataModule."""
    task = example_task(
        tmp_path, module="projects:Line", data="projects:Prepared", metric="val_loss", epochs=1,
        direction="minimize", population=1, names=("lr", "noise"), log_models="none",
        session="one", config={"data": {"root": str(tmp_path), "keeps": keeps}},
    )  # fmt: skip
    given = [{"lr": lr, "noise": noise} for noise in (0.1, 0.2) for lr in (0.1, 0.2)]
    for number, values in enumerate(given):  # a worker each
        PlainTrainer(task).train(ScriptedExchange([TrialSpec(number, values, 1)]))
    file = tmp_path / "prepared.txt"
    assert len(file.read_text().splitlines()) == n
    PlainTrainer(dataclasses.replace(task, session="two")).train(
        ScriptedExchange([TrialSpec(4, given[0], 1)])
    )
    assert len(file.read_text().splitlines()) == n + 1
