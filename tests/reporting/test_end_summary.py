"""The words at the end of a search."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from reporting_records import a_study

from sweep.config.settings import RunConfig
from sweep.reporting.summary import end_summary, gain, next_commands
from sweep.search.study import Outcome
from sweep.trial import StudyFinished

HERE = RunConfig(study="mnist-mlp", data="mnist")
AWAY = {
    "storage": "postgresql://me:secret@db/optuna", "tracking_uri": "https://me:secret@host",
}  # fmt: skip
NO_BEST = {"best_value": None, "best_number": None}


def the_end(**changes):
    values = {
        "time_ms": 1_034_000,
        "n_by_state": {"COMPLETE": 47, "PRUNED": 2, "FAIL": 1},
        "best_number": 12,
        "best_value": 0.9833,
        "baseline_value": 0.9633,
        "reason": "done",
    }
    return StudyFinished(**{**values, **changes})


def told(end, width=None, **outcome):
    return end_summary(
        HERE, Outcome(a_study(), end, **{"n_new": 1, "best": None, **outcome}), width=width
    )


def test_the_end_says_best_gain_places_and_commands():
    """After a search: counts, the best trial, its gain, where things are, what to type."""
    assert told(the_end()) == [
        "mnist-mlp: 50 of 50 trials in 34s (47 complete, 2 pruned, 1 failed)",
        "Best val_acc 0.9833 (highest) by trial 12",
        "2.00 points better than trial 0, the baseline (0.9633)",
        "",
        "MLflow:       sqlite:///mlflow.db",
        "Optuna:       sqlite:///mlruns/optuna.db",
        "checkpoints:  mlruns/.sweep/mnist-mlp",
        "",
        "Next:",
        "  sweep trials mnist-mlp --state fail          # why trials failed",
        "  sweep best mnist-mlp > best.yaml             # keep the best configuration",
        "  sweep train --config best.yaml --data mnist  "
        "# train it on train + validation, then test it",
        "  sweep confirm mnist-mlp                      # the best again on fresh seeds",
        "  sweep report mnist-mlp                       # one page that says what came out",
        "  sweep ui mnist-mlp                           # look at every trial",
    ]


def test_saved_is_said_only_of_what_is_saved():
    """Trials that have to train epochs again are named in its place."""
    end = the_end(reason="interrupted")
    assert "everything is saved" in told(end)[1]
    lines = told(end, unsaved=("trial 3 starts again: why",))
    assert lines[1:3] == ["Interrupted; the same command goes on.", "trial 3 starts again: why"]
    late = told(the_end(reason="timeout"), unsaved=("trial 3 starts again: why",))
    assert late[2] == "trial 3 starts again: why"


@pytest.mark.parametrize(
    ("direction", "value", "baseline", "words"),
    [
        ("maximize", 0.95, 0.96, "1.00 points worse than"),
        ("maximize", 0.95, 0.95, "no better than"),
        ("maximize", 12.5, 10.0, "2.500 better than"),
        ("minimize", 0.2, 0.3, "0.1000 better than"),
        ("minimize", 0.3, 0.2, "0.1000 worse than"),
    ],
)
def test_the_gain_is_honest(direction, value, baseline, words):
    """Worse is called worse, shares are compared in points, anything else in its own unit."""
    assert gain(a_study(direction=direction), value, baseline).startswith(words)


def test_a_baseline_that_wins_is_said_to():
    """Where trial 0 is the best, that is what is said."""
    lines = told(the_end(best_number=0, best_value=0.9633))
    assert lines[2] == "Nothing was better than trial 0, the baseline."


@pytest.mark.parametrize("reason", ["timeout", "interrupted", "failed", "exhausted"])
def test_an_early_end_says_why(reason):
    """A search that ended early says why on its second line, also without any best trial."""
    counts = {"FAIL": 3, "RUNNING": 2}
    end = the_end(reason=reason, best_value=None, best_number=None, n_by_state=counts)
    lines = told(end)
    assert lines[0] == "mnist-mlp: 3 of 50 trials in 34s (3 failed, 2 unfinished)"
    assert lines[3] == ""
    assert lines[2] == "No trial completed, so there is no best one."


def commands(end, *more, **settings):
    return next_commands(RunConfig(**settings), end, *more)


def test_commands_are_quoted_for_the_shell():
    """Names with blanks are quoted, and a store elsewhere is named."""
    end = the_end(n_by_state={})
    found = commands(end, study="my study", data_dir="a b", tracking_uri="sqlite:///x.db")
    assert [command for command, _ in found] == [
        "sweep best 'my study' > best.yaml",
        "sweep train --config best.yaml --data digits --data-dir 'a b'"
        " --tracking-uri sqlite:///x.db",
        "sweep report 'my study'",
        "sweep ui 'my study' --tracking-uri sqlite:///x.db",
    ]


def test_commands_name_stores_without_their_passwords(monkeypatch):
    """What another command cannot know is a flag; user and password are left to the user."""
    end = the_end(n_by_state={})
    assert [command for command, _ in commands(end, study="s", **AWAY)] == [
        "sweep best s --storage 'postgresql://***@db/optuna' > best.yaml",
        "sweep train --config best.yaml --data digits --tracking-uri 'https://***@host'",
        "sweep report s --storage 'postgresql://***@db/optuna'",
        "sweep ui s --tracking-uri 'https://***@host'",
    ]
    failed = the_end(**NO_BEST, n_by_state={"FAIL": 1})
    assert commands(failed, study="s", storage="postgresql://db/optuna") == [
        ("sweep trials s --state fail --storage postgresql://db/optuna", "why trials failed")
    ]
    monkeypatch.setenv("SWEEP_STORAGE", AWAY["storage"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", AWAY["tracking_uri"])
    assert [command for command, _ in commands(end, study="s", **AWAY)] == [
        "sweep best s > best.yaml", "sweep train --config best.yaml --data digits",
        "sweep report s", "sweep ui s",
    ]  # fmt: skip


def test_why_trials_failed_is_offered_only_where_some_did():
    """Without a best or a failed trial the only thing to type is what goes on."""
    nothing = the_end(**NO_BEST, n_by_state={})
    assert commands(nothing) == []
    assert commands(the_end(n_by_state={}), study="s", module="my.model:Net")[1] == (
        "sweep train --config best.yaml", "train it again, then test it"
    )  # fmt: skip
    going_on = commands(nothing, 0, "sweep run --study s")
    assert going_on == [("sweep run --study s", "go on with the search")]


def test_commands_stay_whole_on_a_narrow_terminal():
    """Where commands with their comments do not fit, a comment is a line above its command."""
    lines = told(the_end(), width=60)
    assert max(map(len, lines)) <= 60
    assert lines[-10:-8] == [
        "  # keep the best configuration", "  sweep best mnist-mlp > best.yaml",
    ]  # fmt: skip


def test_reporting_is_light():
    """Importing reporting loads neither rich nor anything heavier."""
    code = """if True:
        import sys
        import sweep.reporting.display, sweep.reporting.tables, sweep.reporting.summary
        heavy = {"rich", "torch", "lightning", "mlflow", "optuna", "ray", "numpy", "click"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
    """
    path = os.pathsep.join(p for p in sys.path if p)
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path}
    )
