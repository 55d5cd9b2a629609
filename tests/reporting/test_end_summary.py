"""The words at the end of a search."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from reporting_records import a_study

from sweep.reporting.summary import end_summary, gain, next_commands
from sweep.trial import StudyFinished


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


def test_the_end_says_best_gain_places_and_commands():
    """After a search: counts, the best trial, its gain, where things are, what to type."""
    lines = end_summary(
        a_study(),
        the_end(),
        best_name="t012 Adam lr=1.2e-3 256-64",
        places={"MLflow": "sqlite:///mlflow.db", "log": "mlruns/.sweep/mnist-mlp/log.txt"},
        commands=next_commands("mnist-mlp", "mnist"),
    )
    assert lines == [
        "mnist-mlp: 50 of 50 trials in 34s (47 complete, 2 pruned, 1 failed)",
        "Best val_acc 0.9833 (highest) by t012 Adam lr=1.2e-3 256-64",
        "2.00 points better than trial 0, the baseline (0.9633)",
        "",
        "MLflow:  sqlite:///mlflow.db",
        "log:     mlruns/.sweep/mnist-mlp/log.txt",
        "",
        "Next:",
        "  sweep best mnist-mlp > best.yaml             # keep the best configuration",
        "  sweep train --config best.yaml --data mnist  "
        "# train it on train + validation, then test it",
        "  mlflow ui                                    # look at every trial",
    ]


def test_saved_is_said_only_of_what_is_saved():
    """Trials that have to train epochs again are named in its place."""
    end = the_end(reason="interrupted")
    assert "everything is saved" in end_summary(a_study(), end)[1]
    lines = end_summary(a_study(), end, unsaved=["trial 3 starts again: why"])
    assert lines[1:3] == ["Interrupted; the same command goes on.", "trial 3 starts again: why"]
    late = end_summary(a_study(), the_end(reason="timeout"), unsaved=["trial 3 starts again: why"])
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
    lines = end_summary(a_study(), the_end(best_number=0, best_value=0.9633))
    assert lines[-1] == "Nothing was better than trial 0, the baseline."


@pytest.mark.parametrize("reason", ["timeout", "interrupted", "failed", "exhausted"])
def test_an_early_end_says_why(reason):
    """A search that ended early says why on its second line, also without any best trial."""
    counts = {"FAIL": 3, "RUNNING": 2}
    end = the_end(reason=reason, best_value=None, best_number=None, n_by_state=counts)
    lines = end_summary(a_study(), end)
    assert lines[0] == "mnist-mlp: 3 of 50 trials in 34s (3 failed, 2 unfinished)"
    assert len(lines) == 3
    assert lines[2] == "No trial completed, so there is no best one."


def test_commands_are_quoted_for_the_shell():
    """Names with blanks are quoted, and a store elsewhere is opened with `sweep ui`."""
    commands = next_commands("my study", "mnist", data_dir="a b", is_default_store=False)
    assert [command for command, _ in commands] == [
        "sweep best 'my study' > best.yaml",
        "sweep train --config best.yaml --data mnist --data-dir 'a b'",
        "sweep ui",
    ]


def test_commands_name_stores_without_their_passwords():
    """What another command cannot know is a flag; user and password are left to the user."""
    commands = next_commands(
        "s", "digits", storage="postgresql://me:secret@db/optuna",
        tracking_uri="https://me:secret@host", is_default_store=False,
    )  # fmt: skip
    assert [command for command, _ in commands] == [
        "sweep best s --storage 'postgresql://***@db/optuna' > best.yaml",
        "sweep train --config best.yaml --data digits --tracking-uri 'https://***@host'",
        "sweep ui --tracking-uri 'https://***@host'",
    ]
    failed = next_commands(
        "s", "digits", storage="postgresql://db/optuna", has_best=False, has_failed=True
    )
    assert failed == [
        ("sweep trials s --state fail --storage postgresql://db/optuna", "why trials failed")
    ]


def test_why_trials_failed_is_offered_only_where_some_did():
    """Without a best or a failed trial the only thing to type is what goes on."""
    assert next_commands("s", "digits", has_best=False) == []
    assert next_commands("s", None)[1] == (
        "sweep train --config best.yaml", "train it again, then test it"
    )  # fmt: skip
    going_on = next_commands("s", "digits", has_best=False, going_on="sweep run --study s")
    assert going_on == [("sweep run --study s", "go on with the search")]


def test_commands_stay_whole_on_a_narrow_terminal():
    """Where commands with their comments do not fit, a comment is a line above its command."""
    commands = next_commands("mnist-mlp", "mnist")
    lines = end_summary(a_study(), the_end(), commands=commands, width=60)
    assert max(map(len, lines)) <= 60
    assert lines[-6:-4] == [
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
