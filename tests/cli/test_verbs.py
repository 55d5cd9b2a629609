"""A search is watched and steered from another terminal, whether anybody runs it or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from searches import INLINE, Call, start_sweep
from waiting import PATIENCE_S, wait_until

import sweep
from sweep.errors import ConfigError
from sweep.reporting.lines import parse_line

SLOW = """
import pathlib
import time


def slow(params, report):
    while True:
        report(params["x"])
        if pathlib.Path("hurry").exists():
            break
        time.sleep(0.2)
    return params["x"]
"""
COMMAND = (
    "run", "--study", "slow", "--module", "slow.py:slow", "--kind", "objective",
    "--vary", "x=0.5..9.5", "--trials", "1", "--epochs", "1000000",
)  # fmt: skip


def trials_of(study: str) -> list[optuna.trial.FrozenTrial]:
    """What plain Optuna reads in the current folder."""
    return optuna.load_study(study_name=study, storage="sqlite:///mlruns/optuna.db").trials


def states(study: str) -> list[str]:
    return [trial.state.name for trial in trials_of(study)]


def fields(call: Call, study: str) -> dict[str, Any]:
    """`sweep status --format json`."""
    code, out, errors = call("status", study, "--format", "json")
    assert (code, errors) == (0, [])
    values: dict[str, Any] = json.loads(out)
    return values


@pytest.mark.usefixtures("ready_store")
def test_each_verb_reaches_a_search_that_runs(call: Call, tmp_path: Path) -> None:
    """Its only trial runs and none is to come: it is extended, the queued configuration comes
    next when the trial is pruned, and it stops as after Ctrl-C. Then the next search ends the
    trial that was pruned while nobody ran the study."""
    (tmp_path / "slow.py").write_text(SLOW)
    with start_sweep(tmp_path, *COMMAND) as process:
        try:
            check_verbs(call, process.pid)
            assert call("stop", "slow")[1].startswith(f"slow: asked process {process.pid} on ")
            out, errors = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    assert (process.returncode, errors) == (130, "")
    assert "1 of 3 trials" in out
    assert "asked to stop by process " in out
    assert "sweep run --study slow  # go on" in out
    assert states("slow") == ["PRUNED", "WAITING"]
    said = call("prune", "slow", 1)[1]
    assert said.startswith("nobody runs slow: the next `sweep run --study slow` ends trial 1 as P")
    Path("hurry").touch()
    assert sweep.run(study="slow", **INLINE).end.reason == "done"
    assert sorted(states("slow")) == ["COMPLETE", "PRUNED", "PRUNED"]


def check_verbs(call: Call, pid: int) -> None:
    """On trial 0, which runs alone."""
    wait_until(lambda: Path("mlruns/optuna.db").exists() and states_begun() == ["RUNNING"])
    wait_until(lambda: fields(call, "slow")["running"][0]["epochs"] > 0, "no word of the driver")
    seen = fields(call, "slow")
    assert (seen["state"], seen["finished"], seen["of"]) == ("running", 0, 1)
    assert seen["by"].startswith(f"process {pid} on ")
    lines = [parse_line(line) for line in call("status", "slow")[1].splitlines()]
    assert [line.get("state") for line in lines] == ["running", "RUNNING"]
    assert "all 1 trials of the study are taken" in call("enqueue", "slow", "x=2.5")[1]
    assert call("extend", "slow", "--trials", 3)[1].startswith(f"asked process {pid} on ")
    wait_until(lambda: fields(call, "slow")["of"] == 3, "it was not extended")
    assert "end trial 0 as PRUNED, at its next report" in call("prune", "slow", 0)[1]
    wait_until(lambda: states("slow") == ["PRUNED", "RUNNING"], "trial 0 was not pruned")
    assert trials_of("slow")[1].params == {"x": 2.5}
    code, _, errors = call("prune", "slow", 0)
    assert (code, errors) == (2, ["sweep: trial 0 of slow has ended: it is PRUNED"])


def states_begun() -> list[str]:
    """[] until the study is there."""
    storage = optuna.storages.RDBStorage("sqlite:///mlruns/optuna.db")
    return states("slow") if storage.get_all_studies() else []


@pytest.mark.usefixtures("six")
def test_a_verb_to_a_study_that_nobody_runs_is_kept(call: Call) -> None:
    """The total grows at once, a configuration waits for the next search; nothing is stopped."""
    assert fields(call, "six") | {"best": 0} == {
        "study": "six", "state": "idle", "by": None, "finished": 6, "of": 6, "complete": 6,
        "pruned": 0, "fail": 0, "metric": "val_acc", "best": 0, "eta_s": None, "running": [],
        "best_trial": sweep.best("six").trial, "interrupted": [], "queued": 0,
    }  # fmt: skip
    assert call("stop", "six")[1] == "nobody runs six: there is nothing to stop\n"
    assert call("extend", "--trials", 7)[1] == (
        "nobody runs six: the next `sweep run --study six` goes on to 7 trials in all, 1 more "
        "than before\n"
    )
    assert "trains trial 6 next: t006 " in call("enqueue", "lr=0.0123", "optimizer=Adam")[1]
    assert "1 queued" in sweep.status("six").headline
    sweep.run(study="six", **INLINE)
    last = trials_of("six")[6]
    assert (last.state.name, last.params["lr"]) == ("COMPLETE", 0.0123)
    code, out, _ = call("status", "--watch")
    (line,) = out.splitlines()
    assert (code, parse_line(line)["trials"]) == (0, "7/7")


@pytest.mark.usefixtures("six")
def test_what_cannot_be_done_is_one_line(call: Call) -> None:
    """Unknown names and values outside the space, all at once; a smaller total; a double."""
    for command, said in (
        (("enqueue", "six", "lr=7", "optimiser=SGD"), ["did you mean optimizer?", "but got 7"]),
        (
            ("enqueue", "six", "momentum=0.5", "optimizer=Adam"),
            ["momentum must be left out"],
        ),
        (("extend", "six", "--trials", "6"), ["must be more than the 6 that six is to have"]),
        (("prune", "six", "6"), ["study 'six' has trials 0 to 5, but not 6"]),
        (("prune", "seven", "6"), ["study must be one of six, but got 'seven'"]),
        (("prune", "six"), ["say a study and the number of a trial, not 'six'"]),
        (("status", "six", "--watch", "--format", "json"), ["leave out --format json"]),
    ):
        code, out, errors = call(*command)
        assert (code, out, len(errors)) == (2, "", len(said)), errors
        assert [e for part, e in zip(said, errors, strict=True) if part not in e] == []
    known = dict(sweep.best("six").config)
    with pytest.raises(ConfigError, match="of six has this configuration: it is COMPLETE"):
        sweep.enqueue("six", known)
    with pytest.raises(ConfigError, match="an argument of extend must be one of study, trials, s"):
        sweep.extend("six", 8, storge="sqlite:///x.db")
    assert len(trials_of("six")) == 6
