"""Faults of user code as the command line tells them, and what a search keeps of them."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from searches import TESTS, Call, mlflow_client, start_sweep, sweep, wait_for_line
from waiting import PATIENCE_S, wait_until

import sweep as library
from sweep.ledger.study import open_study
from sweep.ledger.trials import LONGEST_TRACEBACK, result_of
from sweep.trial import Failure, TrialFinished, TrialState

STORAGE = "sqlite:///mlruns/optuna.db"
WIDTHS = "# Widths.\nparameters:\n  width: {choices: [4, 6, 8]}\n"
RUN = (
    "run", "--executor", "inline", "--space", "space.yaml", "--metric", "val_f1", "--epochs", "1",
    "--sampler", "random", "--threads", "1",
)  # fmt: skip


def states(study: str) -> list[str]:
    """The state of each trial in the current folder's storage."""
    ledger = open_study(STORAGE, study)
    try:
        return [str(trial.state) for trial in ledger.trials()]
    finally:
        ledger.close()


IMPORTS = {
    "syntax": ("class Own(\n    pass\n", "1: SyntaxError: "),
    "exception": ("import os\n\nos.environ['NO_SUCH_NAME']\n", "3: KeyError: 'NO_SUCH_NAME'"),
    "import": ("\nimport no_such_library\n", "2: No module named 'no_such_library'"),
    "exit": ("import sys\nsys.exit(3)\n", "2: SystemExit: 3"),
    "attribute": ("import os\nos.no_such_name\n", "2: AttributeError: module 'os' has no"),
}


@pytest.mark.usefixtures("ready_store")
@pytest.mark.parametrize("kind", IMPORTS)
def test_a_file_that_cannot_be_imported_is_named_with_its_line(
    call: Call, tmp_path: Path, kind: str
) -> None:
    """Whatever it raises: exit code 2, one line with file, line, class and message."""
    text, said = IMPORTS[kind]
    (tmp_path / f"broken_{kind}.py").write_text(f"{text}\nOwn = None\n")
    (tmp_path / "space.yaml").write_text(WIDTHS)
    module = f"broken_{kind}:Own"
    for command in (("validate", "space.yaml"), RUN):
        code, _, errors = call(*command, "--module", module)
        assert code == 2
        (line,) = errors
        assert line.startswith(
            f"sweep: --module '{module}' cannot be imported: broken_{kind}.py:{said}"
        )
    debugged = call(*RUN, "--module", module, "--debug")[2]
    assert any(f'broken_{kind}.py", line {said[0]}' in line for line in debugged)


def test_wrong_names_are_refused_before_the_first_trial(call: Call, tmp_path: Path) -> None:
    """All at once, by `validate` and by a worker; the study takes the right file then."""
    space, module = tmp_path / "space.yaml", ("--module", "user_code:Demanding")
    space.write_text("# Two.\nparameters:\n  widht: {choices: [4]}\n  lr: {choices: [1]}\n")
    parts = ("'lr'", "'widht' (did you mean width?)", "needs 'depth'")
    for command in (("validate", "space.yaml", "--samples", "0"), (*RUN, "--study", "w")):
        code, _, errors = call(*command, *module)
        assert (code, len(errors)) == (2, len(parts)), errors
        assert all(part in line for part, line in zip(parts, errors, strict=True))
    space.write_text(WIDTHS + "fixed:\n  depth: 1\n")
    assert call("validate", "space.yaml", *module)[0] == 0
    assert call(*RUN, "--study", "w", "--trials", "1", *module)[0] == 0
    assert states("w") == ["COMPLETE"]


def test_names_of_nothing_are_said_before_other_settings(call: Call, tmp_path: Path) -> None:
    """A study that exists is no reason to call a mistyped class or function another setting."""
    (tmp_path / "space.yaml").write_text(WIDTHS)
    command = (*RUN, "--study", "n", "--trials", "1")
    assert call(*command, "--module", "user_code:Model")[0] == 0
    for module, data in (("user_code:Nope", "digits"), ("user_code:Model", "user_code:nope")):
        code, _, (line,) = call(*command, "--module", module, "--data", data)
        assert code == 2
        assert "module user_code has no 'Nope'" in line or "has no 'nope'" in line
    code, _, (line,) = call(*command, "--module", "user_code:TakesAny")
    assert "exists with other settings" in line
    assert "leave it out" in line


def test_what_varies_has_to_be_said(call: Call) -> None:
    """A module of one's own has no default space."""
    code, _, errors = call("run", "--module", "user_code:Model", "--metric", "val_f1")
    assert (code, len(errors)) == (2, 1)
    assert "nothing varies: say --vary NAME=LOW..HIGH" in errors[0]


@pytest.mark.usefixtures("ready_store")
def test_a_study_without_a_score_takes_other_settings(call: Call, tmp_path: Path) -> None:
    """Failed trials stay under their numbers; one trial with a score fixes the settings."""
    space = tmp_path / "space.yaml"
    command = (*RUN, "--study", "s", "--module", "user_code:Model")
    space.write_text("# Fails.\nparameters:\n  mode: {choices: [raise, exit]}\n")
    code, _, errors = call(*command, "--epochs", "2", "--trials", "2")
    said = "sweep: none of the 2 trials succeeded: `sweep trials s` shows why, `sweep retry s`"
    assert code == 6
    assert errors[0].startswith(said)
    code, _, errors = call(*command, "--epochs", "2", "--trials", "2")
    assert code == 6, "there is nothing to do, and still no trial has succeeded"
    assert errors[0].startswith(said)
    space.write_text(WIDTHS.replace("width", "mode: {choices: [fine]}\n  width"))
    code, _, errors = call(
        *command, "--trials", "3", "--direction", "minimize", "--sampler", "grid", "--seed", "7"
    )
    assert (code, errors) == (0, [])
    assert states("s") == ["FAIL", "FAIL", "COMPLETE"]
    assert call("doctor", "s")[0] == 0
    code, _, errors = call(*command, "--trials", "4", "--direction", "maximize")
    assert code == 2
    assert "exists with other settings" in errors[0]


@pytest.mark.usefixtures("ready_store")
def test_a_wrong_metric_does_not_bind_a_study(call: Call, tmp_path: Path) -> None:
    """The trial in which it was found goes on, under its number, with the right one."""
    (tmp_path / "space.yaml").write_text(WIDTHS)
    command = (*RUN, "--study", "m", "--module", "user_code:Model", "--trials", "2")
    code, _, errors = call(*command, "--epochs", "2", "--metric", "val_f1_score")
    assert code == 2
    assert "did you mean val_f1?" in errors[0]
    assert call(*command, "--epochs", "2")[0] == 0
    assert states("m") == ["COMPLETE", "COMPLETE"]


def test_files_of_an_inline_search_do_not_depend_on_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module that works in another folder finds it from the first one in each trial."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Path("elsewhere").mkdir()
    Path("space.yaml").write_text(WIDTHS)
    outcome = library.run(
        study="w", module="user_code:Wandering", space="space.yaml", metric="val_f1", epochs=2,
        trials=2, executor="inline", threads=1, checkpoint_interval_s=0.001,
    )  # fmt: skip
    assert outcome.end.n_by_state == {"COMPLETE": 2}
    assert Path.cwd() == tmp_path
    assert list(Path("elsewhere").iterdir()) == []
    kept = open_study(STORAGE, "w")
    assert (kept.config["work_dir"], kept.config["tracking_uri"]) == (
        "mlruns/.sweep", "sqlite:///mlflow.db",
    )  # fmt: skip
    kept.close()


ENDS = """
import pathlib
import time
from user_code import Model

class Ends(Model):
    n = 0
    def training_step(self, batch, batch_idx):
        Ends.n += 1
        if Ends.n <= 2:  # before the first trial, and in it
            raise KeyboardInterrupt("mine")
        pathlib.Path("asleep").touch()
        time.sleep(600)
"""


@pytest.mark.usefixtures("ready_store")
def test_ctrl_c_is_told_from_a_keyboard_interrupt_of_user_code(tmp_path: Path) -> None:
    """Inline: what a module raises fails its trial; the user's second Ctrl-C ends the search."""
    (tmp_path / "ends.py").write_text(ENDS)
    (tmp_path / "space.yaml").write_text(WIDTHS)
    path = os.pathsep.join([str(TESTS), *filter(None, sys.path)])
    search = start_sweep(tmp_path, *RUN, "--module", "ends:Ends", env={"PYTHONPATH": path})
    assert 'message="KeyboardInterrupt: mine (ends.py:11)"' in wait_for_line(search, "trial=0")
    wait_until(lambda: (tmp_path / "asleep").exists())
    for _ in range(2):
        time.sleep(0.8)  # it must sleep before the first one: Python sees one that comes just
        search.send_signal(signal.SIGINT)  # before a sleep together with the second
    out, err = search.communicate(timeout=PATIENCE_S)
    assert search.returncode == 130, out + err
    assert "interrupted" in err


FLUENT = """
import mlflow
import mlflow.pytorch
from user_code import Model

mlflow.pytorch.autolog(log_models=False)
mlflow.set_tracking_uri("sqlite:///another.db")

class Fluent(Model):
    def on_validation_epoch_end(self):
        mlflow.log_metric("extra", self.hparams.width, step=self.current_epoch)
        if self.hparams.width == 4:
            mlflow.log_param("note", "mine")
"""


@pytest.mark.usefixtures("ready_store")
@pytest.mark.parametrize("executor", ["process", "inline"])
def test_metrics_of_mlflows_own_calls_are_the_trials(tmp_path: Path, executor: str) -> None:
    """Whatever address the module sets: no other run, no other store, one notice of the rest."""
    (tmp_path / "fluent.py").write_text(FLUENT)
    (tmp_path / "space.yaml").write_text(WIDTHS)
    path = os.pathsep.join([str(TESTS), *filter(None, sys.path)])
    done = sweep(
        tmp_path, *RUN, "--module", "fluent:Fluent", "--study", "f", "--executor", executor,
        "--sampler", "grid", "--trials", "3", "--epochs", "2", env={"PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("parameters, tags and files do not") == 1
    assert not (tmp_path / "another.db").exists()
    client = mlflow_client(tmp_path)
    places = {e.name: e.experiment_id for e in client.search_experiments()}
    runs = [run for place in places.values() for run in client.search_runs([place])]
    children = [run for run in runs if run.data.tags.get("sweep.role") == "trial"]
    assert (len(runs), len(children)) == (4, 3)
    for run in children:
        points = client.get_metric_history(run.info.run_id, "extra")
        assert [(p.step, p.value) for p in points] == [
            (epoch, float(run.data.params["width"])) for epoch in (1, 2)
        ]
    assert list((tmp_path / "mlruns" / ".sweep" / "f").glob(".mlflow*")) == []


def test_a_long_traceback_is_kept_from_its_end() -> None:
    """The ledger keeps a bounded text that ends with the error, in whole lines."""
    text = "".join(f"  line {n}\n" for n in range(9999)) + "KeyError: 'x'\n"
    record = TrialFinished(
        0, TrialState.FAIL, 0, None, None, {}, 0, failure=Failure("exception", "KeyError", text)
    )
    kept = result_of(record, "t000", [])["failure"]["traceback"]
    assert len(kept) <= LONGEST_TRACEBACK + 4
    assert kept.startswith("...\n  line ")
    assert kept.endswith("  line 9998\nKeyError: 'x'\n")
