"""What a user sees of a search as it begins, and as it is looked at later."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from searches import SWEEP, Call, environment, query

from sweep.reporting.lines import parse_line


def test_the_first_line_comes_before_the_heavy_imports(tmp_path: Path) -> None:
    """In a pipe, too: a notice says what is being done before anything slow is loaded."""
    program = """
import sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name in ("optuna", "mlflow", "torch", "lightning", "numpy", "rich"):
            print("LOADS", name, flush=True)
sys.meta_path.insert(0, Watch())
from sweep.cli import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, "run", "--study", "x", "--storage", "nosuch://x"],
        cwd=tmp_path, env=environment(), text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 4
    first, *others = done.stdout.splitlines()
    assert parse_line(first) == {"notice": "x: loading Optuna, MLflow and PyTorch ..."}
    assert others[0].startswith("LOADS")


def asked(call: Call, *arguments: str) -> Any:
    """The JSON that a command prints."""
    code, out, errors = call(*arguments, "--format", "json")
    assert (code, errors) == (0, [])
    return json.loads(out)


@pytest.mark.usefixtures("six")
def test_trials_are_chosen(call: Call) -> None:
    """--where, --state and --columns choose rows and columns, in every format."""
    rows = asked(call, "trials", "six")
    small = sorted(row["number"] for row in rows if row["lr"] < 0.01)
    assert 0 < len(small) < 6, "the space has both"
    found = asked(call, "trials", "--where", "lr<0.01", "--columns", "number,lr")
    assert sorted(row["number"] for row in found) == small
    assert list(found[0]) == ["number", "lr"]
    assert len(asked(call, "trials", "--state", "complete")) == 6
    assert asked(call, "trials", "--state", "fail") == []
    assert call("trials", "--state", "fail")[1] == "six: none of its 6 trials matches\n"
    for option, wrong, right in (
        ("--where", "lrr<1", "lr"), ("--columns", "lrr", "lr"), ("--state", "complet", "complete"),
    ):  # fmt: skip
        code, _, errors = call("trials", option, wrong)
        assert (code, len(errors)) == (2, 1)
        assert f"did you mean {right}?" in errors[0]


@pytest.mark.usefixtures("six")
def test_json_has_lists_and_csv_ends_lines_with_lf(call: Call) -> None:
    """A list is a list in JSON; CSV holds no carriage return."""
    assert all(isinstance(row["hidden"], list) for row in asked(call, "trials"))
    assert isinstance(asked(call, "show", "0")["hyperparameters"]["hidden"], list)
    for command in ("list", "trials"):
        assert "\r" not in call(command, "--format", "csv")[1]


def test_json_is_json_also_where_a_metric_was_not_finite(call: Call, six: Path) -> None:
    """NaN and infinity in a stored result are null."""
    changed = query(
        six / "mlruns" / "optuna.db",
        "UPDATE trial_user_attributes SET value_json = replace(replace(value_json, "
        '\'"val_loss": \', \'"val_loss": NaN, "was": \'), \'"train_loss": \', '
        "'\"train_loss\": Infinity, \"other\": ') WHERE key = 'sweep:result' RETURNING trial_id",
    )
    assert len(changed) == 6
    assert asked(call, "show", "0")["best_metrics"]["val_loss"] is None
    score = asked(call, "best", "six")["score"]
    assert (score["val_loss"], score["train_loss"]) == (None, None)


@pytest.mark.usefixtures("six")
def test_show_names_a_checkpoint_that_exists(call: Call) -> None:
    """The work folder's copy of the best few trials, MLflow's artifact for the others."""
    places = [Path(asked(call, "show", str(number))["checkpoint"]) for number in range(6)]
    assert all(place.is_file() for place in places)
    in_work_folder = [place for place in places if ".sweep" in place.parts]
    assert len(in_work_folder) == 5


def test_show_names_no_checkpoint_that_is_gone(call: Call, six: Path) -> None:
    """Where neither the work folder nor MLflow has the file, the checkpoint is null."""
    for file in six.rglob("best.ckpt"):
        file.unlink()
    assert asked(call, "show", "0")["checkpoint"] is None


@pytest.mark.usefixtures("six")
def test_seconds_are_the_same_everywhere(call: Call) -> None:
    """`trials` and `show` give one number for a trial."""
    for row in asked(call, "trials"):
        assert asked(call, "show", str(row["number"]))["seconds"] == row["seconds"] > 0


@pytest.mark.usefixtures("six")
def test_a_trial_for_people_has_its_curve_in_a_line(call: Call) -> None:
    """A table draws the curve and says both ends; the bookkeeping of epochs is left out."""
    points = list(asked(call, "show", "0")["curve"].values())
    lines = call("show", "0")[1].splitlines()
    (curve,) = [line for line in lines if line.startswith("curve:")]
    assert f"{points[0]:.4f} to {points[-1]:.4f}" in curve
    assert not any("epoch_s" in line for line in lines)


def test_a_terminal_without_the_letters_is_served(six: Path) -> None:
    """Drawings and an ellipsis are ASCII where standard output is, and nothing fails."""
    done = subprocess.run(
        [*SWEEP, "show", "six", "0"], cwd=six, env=environment(PYTHONIOENCODING="ascii"),
        capture_output=True, check=True,
    )  # fmt: skip
    assert b"curve:" in done.stdout
    assert done.stdout.isascii()
