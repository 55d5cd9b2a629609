"""A finished search, as its commands show it."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from searches import Call, mlflow_client, sweep


@pytest.fixture(scope="module")
def done(
    tmp_path_factory: pytest.TempPathFactory, empty_store: Path
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A folder with one finished search of five trials, and what `sweep run` said."""
    folder = tmp_path_factory.mktemp("done")
    shutil.copyfile(empty_store, folder / "mlflow.db")
    said = sweep(folder, "run", "--trials", "5", "--epochs", "4")
    assert said.returncode == 0, said.stderr
    return folder, said


Done = tuple[Path, subprocess.CompletedProcess[str]]


def in_folder(call: Call, monkeypatch: pytest.MonkeyPatch, done: Done) -> Call:
    """The same, in the folder of the finished search."""
    monkeypatch.chdir(done[0])
    return call


@pytest.fixture
def ask(call: Call, monkeypatch: pytest.MonkeyPatch, done: Done) -> Call:
    """Run `sweep` in this process, in the folder of the finished search."""
    return in_folder(call, monkeypatch, done)


def test_a_stored_study_fills_in_what_is_not_said(ask: Call, done: Done) -> None:
    """A study's own settings come before the defaults."""
    code, out, _ = ask("run", "--study", "digits-mlp", "--trials", "9", "--print-config")
    assert code == 0
    rows = {line.split(":")[0]: line for line in out.splitlines()}
    assert rows["epochs"].split() == ["epochs:", "4", "#", "study"]


def test_a_search_says_what_happened_and_what_to_do_next(done: Done) -> None:
    """A line a trial that can be grepped, the best against trial 0, and commands to type."""
    lines = done[1].stdout.splitlines()
    trials = [line for line in lines if line.startswith("trial=")]
    assert len(trials) == 5
    for line in trials:
        fields = dict(word.split("=", 1) for word in line.split())
        assert {"trial", "state", "val_acc", "best", "epoch", "seconds", "lr"} <= set(fields)
    text = done[1].stdout
    assert "digits-mlp: 5 of 5 trials" in text
    assert "trial 0, the baseline" in text
    for command in (
        "sweep best digits-mlp > best.yaml",
        "sweep train --config",
        "sweep ui digits-mlp",
    ):
        assert command in text


def test_a_search_writes_nothing_to_standard_error(done: Done) -> None:
    """No banner, tip, warning or traceback of any library reaches the user."""
    assert done[1].stderr == ""


def test_a_search_leaves_only_its_stores_behind(done: Done) -> None:
    """mlflow.db and mlruns, so that a bare `mlflow ui` finds them."""
    left = {path.name for path in done[0].iterdir()}
    assert {p.removesuffix("-wal").removesuffix("-shm") for p in left} == {"mlflow.db", "mlruns"}


def test_optuna_and_mlflow_agree(done: Done) -> None:
    """Five complete trials in one, five finished children of one parent in the other."""
    trials = optuna.load_study(
        study_name="digits-mlp", storage=f"sqlite:///{done[0]}/mlruns/optuna.db"
    ).trials
    assert [t.state.name for t in trials] == ["COMPLETE"] * 5
    client = mlflow_client(done[0])
    experiment = client.get_experiment_by_name("digits-mlp")
    runs = client.search_runs([experiment.experiment_id])
    children = [r for r in runs if "mlflow.parentRunId" in r.data.tags]
    assert len(children) == 5
    assert {r.info.status for r in runs} == {"FINISHED"}
    scores = sorted(t.value for t in trials)
    kept = sorted(
        max(m.value for m in client.get_metric_history(r.info.run_id, "val_acc")) for r in children
    )
    assert kept == pytest.approx(scores)


def test_running_again_adds_nothing(ask: Call, done: Done) -> None:
    """The total is there: exit code 0, and how to get more."""
    code, out, errors = ask("run", "--trials", "5")
    assert (code, errors) == (0, [])
    assert "already has 5 finished trials: nothing to do for --trials 5. Ask for more, e.g." in out


def test_fewer_trials_than_there_are_do_not_change_the_total(ask: Call) -> None:
    """The summary and the stored settings keep the five that are finished."""
    code, out, errors = ask("run", "--trials", "2")
    assert (code, errors) == (0, [])
    assert "nothing to do for --trials 2" in out
    assert "digits-mlp: 5 of 5 trials" in out
    assert "trials: 5 " in ask("run", "--print-config")[1]
    assert "--trials 55" in out


def test_other_settings_are_another_study(ask: Call) -> None:
    """The same name with other settings is refused with what changed."""
    code, _, errors = ask("run", "--trials", "9", "--epochs", "5", "--executor", "inline")
    assert code == 2
    assert "--epochs was 4 and is now 5" in errors[0]
    assert "--study" in errors[0]


@pytest.mark.parametrize("command", ["list", "trials", "show"])
def test_rows_in_three_formats(ask: Call, command: str) -> None:
    """Table, JSON and CSV hold the same number of rows."""
    what = () if command != "show" else ("digits-mlp",)
    counts = {"list": 1, "trials": 5}
    code, table, _ = ask(command, *what)
    assert code == 0
    assert table
    _, text, _ = ask(command, *what, "--format", "json")
    rows = json.loads(text)
    _, text, _ = ask(command, *what, "--format", "csv")
    assert list(csv.reader(io.StringIO(text)))
    if command in counts:
        assert len(rows) == len(list(csv.DictReader(io.StringIO(text)))) == counts[command]


def test_trials_sort(ask: Call) -> None:
    """Best first, or by any column; a column that is not there is named."""
    values = [row["value"] for row in json.loads(ask("trials", "--format", "json")[1])]
    assert values == sorted(values, reverse=True)
    rows = json.loads(ask("trials", "--sort", "number", "--limit", "3", "--format", "json")[1])
    assert [row["number"] for row in rows] == [0, 1, 2]
    code, _, errors = ask("trials", "--sort", "lrr")
    assert (code, len(errors)) == (2, 1)
    assert "lr" in errors[0]


def test_the_only_study_is_shown_without_a_name(ask: Call) -> None:
    """`show` takes it as trials, best and doctor do."""
    assert ask("show") == ask("show", "digits-mlp")


def test_a_column_that_is_not_there_is_named_with_its_flag(ask: Call) -> None:
    """The nearest column, too."""
    code, _, (line,) = ask("trials", "--sort", "vla")
    assert code == 2
    assert line.startswith("sweep: --sort must be one of number, ")


def test_a_recipe_is_no_file_of_settings(ask: Call) -> None:
    """One line says which command reads it."""
    Path("recipe.yaml").write_text(ask("best")[1])
    assert ask("run", "--config", "recipe.yaml") == (
        2, "", ["sweep: recipe.yaml is a recipe of `sweep best`: it is for "
                "`sweep train --config recipe.yaml`"]
    )  # fmt: skip


def test_show_a_trial(ask: Call) -> None:
    """A study's trial by name and number, or by number alone where there is one study."""
    code, named, _ = ask("show", "digits-mlp", "0", "--format", "json")
    assert code == 0
    assert ask("show", "0", "--format", "json")[1] == named
    assert "128-64" in named or "[128, 64]" in " ".join(named.split())
    code, _, errors = ask("show", "99")
    assert (code, len(errors)) == (2, 1)
    assert "trials 0 to 4" in errors[0]


@pytest.mark.parametrize("wrong", [("best", "digit-mlp"), ("show", "digit-mlp"), ("trials", "x")])
def test_an_unknown_study_is_named(ask: Call, wrong: tuple[str, str]) -> None:
    """Exit code 2, with the studies there are."""
    code, _, errors = ask(*wrong)
    assert (code, len(errors)) == (2, 1)
    assert "digits-mlp" in errors[0]


def test_best_without_mlflow(ask: Call) -> None:
    """The configuration is here though the tracking server is away."""
    code, out, _ = ask("best", "--tracking-uri", "http://127.0.0.1:1")
    assert code == 0
    assert yaml.safe_load(out)["study"] == "digits-mlp"


def test_best_in_four_formats(ask: Call) -> None:
    """All hold the same configuration, and each is valid in its language."""
    texts = {f: ask("best", "--format", f)[1] for f in ("yaml", "json", "lightning", "python")}
    recipe = yaml.safe_load(texts["yaml"])
    assert json.loads(texts["json"])["model"] == recipe["model"]
    assert recipe["run_id"]
    arguments = yaml.safe_load(texts["lightning"])["model"]["init_args"]
    assert arguments["lr"] == recipe["model"]["lr"]
    compile(texts["python"], "best.py", "exec")
    code, out, _ = ask("best", "--trial", "0")
    assert (code, yaml.safe_load(out)["trial"]) == (0, 0)
    assert ask("best", "--trial", "99")[0] == 2


def test_train_what_best_printed(ask: Call, done: Done) -> None:
    """A test accuracy at the end, tracked as a run of its own that names the trial."""
    (done[0] / "best.yaml").write_text(ask("best")[1])
    code, out, errors = ask("train", "--config", "best.yaml", "--output", "out/model.ckpt")
    (done[0] / "best.yaml").unlink()
    assert (code, errors) == (0, [])
    said = dict(line.split("=", 1) for line in out.splitlines() if line.startswith("test_"))
    assert 0.8 < float(said["test_acc"]) <= 1
    run_id = next(line for line in out.splitlines() if line.startswith("MLflow run: ")).split()[-1]
    assert (done[0] / "out" / "model.ckpt").is_file()
    assert "an earlier one" not in out
    client = mlflow_client(done[0])
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test_acc"] == pytest.approx(float(said["test_acc"]), abs=1e-4)
    origin = client.get_run(run.data.tags["sweep.from_run"])
    assert origin.info.run_id == run.data.tags["sweep.from_run"]


def test_train_a_trial_by_number(ask: Call) -> None:
    """--study and --trial, with other settings said on the line; an earlier file goes, and that
    is said."""
    Path("out").mkdir(exist_ok=True)
    Path("out/zero.ckpt").touch()
    code, out, errors = ask(
        "train", "--study", "digits-mlp", "--trial", "0", "--epochs", "1", "--quiet",
        "--output", "out/zero.ckpt",
    )  # fmt: skip
    assert (code, errors) == (0, [])
    assert out.startswith("test_")
    assert "out/zero.ckpt (replaced an earlier one)\n" in out
    assert "epoch=" not in out


@pytest.mark.usefixtures("ready_store")
def test_quiet_and_verbose(call: Call) -> None:
    """-q prints the summary only, -v a line per epoch; colour only for a terminal."""
    common = ("run", "--executor", "inline", "--epochs", "3")
    code, out, errors = call(*common, "--trials", "1", "-q")
    assert (code, errors) == (0, [])
    assert "trial=" not in out
    code, out, errors = call(*common, "--trials", "2", "-v")
    assert (code, errors) == (0, [])
    assert len([line for line in out.splitlines() if line.startswith("trial=1 ")]) == 4
    assert "\x1b[" not in out


@pytest.mark.usefixtures("ready_store")
def test_a_failed_search_has_its_exit_code(call: Call, tmp_path: Path) -> None:
    """Trials that all fail end with exit code 6 and one line."""
    (tmp_path / "hot.yaml").write_text("# Too hot.\nparameters:\n  lr: {float: [1e11, 1e12]}\n")
    code, _, errors = call(
        "run", "--space", "hot.yaml", "--trials", "2", "--no-baseline", "--executor", "inline",
        "--epochs", "2",
    )  # fmt: skip
    assert (code, len(errors)) == (6, 1)
    assert errors[0].startswith("sweep: none of the 2 trials succeeded")


def test_python_gives_the_same(done: Done, monkeypatch: pytest.MonkeyPatch, ask: Call) -> None:
    """sweep.best is what `sweep best` prints."""
    import sweep as library

    best = library.best("digits-mlp")
    printed: dict[str, Any] = yaml.safe_load(ask("best", "digits-mlp")[1])
    assert (best.trial, best.run_id) == (printed["trial"], printed["run_id"])


@pytest.mark.usefixtures("six")
@pytest.mark.parametrize("flag", ["--data", "--module"])
def test_a_module_that_is_nowhere_is_no_other_setting(call: Call, flag: str) -> None:
    """Of a study that exists: the name is the fault that is told."""
    code, _, (said,) = call("run", "--study", "six", flag, "nowhere:thing", "--trials", "7")
    assert code == 2
    assert said.endswith("cannot be imported: No module named 'nowhere'")
