"""The commands, as a user types them: real processes for searches, `main()` for mistakes."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from searches import SWEEP, Call, environment
from waiting import wait_until

from sweep.cli.main import COMMANDS
from sweep.cli.options import GROUPS

MOST_MODULES = 150
"""Beyond those of click; 127 when this was written, of which 30 are sweep's."""
HEAVY = ("torch", "lightning", "mlflow", "optuna", "ray", "sklearn", "numpy", "pandas")


# help and start-up


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(call: Call, command: str) -> None:
    """A sentence, an example that begins with the command itself, and nothing cut off."""
    code, text, _ = call(command, "--help")
    assert code == 0
    assert f"  sweep {command}" in text.split("Example")[1]
    assert "..." not in call("--help")[1].split("Commands:")[1]


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["--version"], ["best", "-h"]]
)
def test_help_loads_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    """No torch, Lightning, MLflow, Optuna, numpy or scikit-learn; at most MOST_MODULES more than
    click loads: a third of a second on a slow processor."""
    program = (
        "import sys, click\nn_before = len(sys.modules)\nfrom sweep.cli import main\n"
        f"sys.argv = ['sweep', *{arguments!r}]\n"
        "try:\n    main()\n"
        f"finally:\n    print('LOADED', [m for m in {HEAVY!r} if m in sys.modules])\n"
        "    print('MORE', len(sys.modules) - n_before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment(), text=True,
        capture_output=True, check=True,
    )  # fmt: skip
    assert "LOADED []" in done.stdout
    assert int(done.stdout.rpartition("MORE ")[2]) <= MOST_MODULES


@pytest.mark.parametrize("case", ["port", "host"])
def test_an_address_that_cannot_be_listened_on_is_refused(call: Call, case: str) -> None:
    """`sweep ui` says so before it says where its pages are."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        where = ("--port", port) if case == "port" else ("--host", "192.0.2.1")
        code, out, errors = call("ui", *where)
    assert (code, out, len(errors)) == (2, "", 1)
    assert errors[0].startswith(f"sweep: --{case} must be")


def test_the_page_of_a_study_that_is_not_there_is_refused(call: Call, empty_store: Path) -> None:
    """`sweep ui STUDY` names the studies there are, and starts no server."""
    shutil.copyfile(empty_store, "mlflow.db")
    MlflowClient(f"sqlite:///{Path.cwd()}/mlflow.db").create_experiment("digits-mlp")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    code, out, errors = call("ui", "digits-mpl", "--port", port)
    assert (code, out) == (2, "")
    assert errors == [
        "sweep: MLflow at sqlite:///mlflow.db has no study 'digits-mpl': study must be one of "
        "digits-mlp, but got 'digits-mpl' (did you mean digits-mlp?)"
    ]


def test_the_page_of_a_study_is_opened_once_its_server_answers(
    tmp_path: Path, empty_store: Path
) -> None:
    """`sweep ui STUDY --open` gives the printed address to the browser."""
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").create_experiment("digits-mlp")
    browser = tmp_path / "browser"
    browser.write_text('#!/bin/sh\necho "$1" > opened.new; mv opened.new opened\n')
    browser.chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    env = environment(
        BROWSER=str(browser), MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false", MLFLOW_WORKERS="1"
    )
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [*SWEEP, "ui", "digits-mlp", "--open", "--port", str(port)], cwd=tmp_path, env=env,
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        wait_until((tmp_path / "opened").exists)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    page = (tmp_path / "opened").read_text().strip()
    assert page == f"http://127.0.0.1:{port}/#/experiments/1/runs?workflowType=machine_learning"
    assert f"MLflow UI on {page} " in (tmp_path / "log").read_text()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed(call: Call, shell: str) -> None:
    """A script for each shell that names the command's variable."""
    code, text, _ = call("completion", shell)
    assert code == 0
    assert "_SWEEP_COMPLETE" in text


def test_completion_knows_choices(tmp_path: Path) -> None:
    """The shell is offered samplers and data sets."""
    done = subprocess.run(
        [sys.executable, "-c", "from sweep.cli import main; main()"], cwd=tmp_path, text=True,
        capture_output=True, check=False, env=environment(
            _SWEEP_COMPLETE="bash_complete", COMP_WORDS="sweep run --sampler g", COMP_CWORD="3"
        ),
    )  # fmt: skip
    assert done.stdout.split() == ["plain,gp", "plain,grid"]


# mistakes

RUN_INLINE = ("run", "--executor", "inline", "--trials", "1")
MISTAKES: dict[str, tuple[tuple[str, ...], int, tuple[str, ...]]] = {
    "command": (("bset",), 2, ("did you mean best?",)),
    "option": (("run", "--trails", "3"), 2, ("--trials",)),
    "data": (("run", "--data", "mnits"), 2, ("did you mean mnist?",)),
    "space": (("run", "--space", "mpl"), 2, ("did you mean mlp?",)),
    "space file": (("run", "--space", "none.yaml"), 2, ("none.yaml",)),
    "sampler": (("run", "--sampler", "tpee"), 2, ("did you mean tpe?",)),
    "sampler class": ((*RUN_INLINE, "--sampler", "no.such:Sampler"), 2, ("no.such:Sampler",)),
    "grid": ((*RUN_INLINE, "--sampler", "grid"), 2, ("lr", "momentum")),
    "metric": (("run", "--metric", "val_accuracy"), 2, ("did you mean val_acc?",)),
    "pruner": (("run", "--pruner", "medain"), 2, ("did you mean median?",)),
    "numbers": (
        ("run", "--trials", "many", "--epochs", "-1", "--seed", "1.5"), 2,
        ("--trials", "--epochs", "--seed"),
    ),
    "module": ((*RUN_INLINE, "--module", "no_such:Model", "--vary", "a=1,2"), 2, ("no_such",)),
    "config": (("run", "--config", "none.yaml"), 2, ("none.yaml",)),
    "config keys": (
        ("run", "--config", "wrong.yaml"), 2, ("did you mean sampler?", "did you mean trials?"),
    ),
    "config text": (("run", "--config", "text.yaml"), 2, ("text.yaml",)),
    "storage": (("run", "--storage", "nosuch://x"), 4, ("--storage",)),
    "storage list": (("list", "--storage", "sqlite:///text.yaml"), 4, ("text.yaml",)),
    "tracking": ((*RUN_INLINE, "--tracking-uri", "http://127.0.0.1:1"), 4, ("--tracking-uri",)),
    "tracking file": ((*RUN_INLINE, "--tracking-uri", "sqlite:///text.yaml/x.db"), 4, ("text",)),
    "work dir": (("run", "--work-dir", "text.yaml/x"), 4, ("--work-dir",)),
    "no data": (("run", "--data", "mnist", "--data-dir", "."), 3, ("--data-dir",)),
    "data name": (("data", "mnits"), 2, ("mnits",)),
    "no study": (("best",), 2, ("sweep run",)),
    "no studies": (("trials",), 2, ("sweep run",)),
    "show": (("show", "nosuch"), 2, ("sweep run",)),
    "train": (("train",), 2, ("--config", )),
    "recipe": (("train", "--config", "recipe.yaml"), 2, ("did you mean Adam?", "lr", "epochs")),
    "recipe file": (("train", "--config", "none.yaml"), 2, ("none.yaml",)),
    "validate": (("validate", "space.yaml"), 2, ("space.yaml:3", "space.yaml:4", "space.yaml:5")),
    "format": (("spaces", "--format", "xml"), 2, ("json",)),
    "shell": (("completion", "tcsh"), 2, ("bash",)),
    "port": (("ui", "--port", "x"), 2, ("--port",)),
}  # fmt: skip
FILES = {
    "wrong.yaml": "samler: tpe\ntrails: 3\n",
    "text.yaml": "just a few words\n",
    "recipe.yaml": "model: {optimizer: Adma, lr: fast}\nepochs: 0\n",
    "space.yaml": (
        "# Three faults.\nparameters:\n  lr: {flaot: [1e-4, 0.3]}\n"
        "  optimizer: {choices: [SGD, Adma]}\n  dropout: {float: [0.5, 0.1]}\n"
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_a_fault(call: Call, tmp_path: Path, mistake: str) -> None:
    """The exit code of its class, a line for each fault, what would be right, no traceback."""
    arguments, expected, parts = MISTAKES[mistake]
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    code, out, errors = call(*arguments)
    assert code == expected, errors
    assert all(line.startswith("sweep: ") for line in errors), errors
    assert len(errors) == (len(parts) if len(parts) > 1 else 1), errors
    for part in parts:
        assert any(part in line for line in errors), (part, errors)
    assert "Traceback" not in out + "".join(errors)


def test_a_bare_command_is_a_question_for_help(call: Call) -> None:
    """`sweep` alone prints its help; a command that lacks its argument, too, as an error."""
    assert call() == call("--help")
    assert call("--debug")[0] == 0
    code, out, errors = call("completion")
    assert (code, out) == (2, "")
    assert errors == call("completion", "--help")[1].splitlines()
    assert errors[0].startswith("Usage: ")


def test_the_options_of_a_search_are_in_groups(call: Call) -> None:
    """Five headings; every setting stands below one that is meant for it."""
    _, out, _ = call("run", "--help")
    titles = [line[:-1] for line in out.splitlines() if line.endswith(":") and line[0] != " "]
    assert titles == ["Search", "Budget", "Machine", "Stores", "Output"]
    assert {title.lower() for title in titles} == {*GROUPS.values(), "output"}


def test_an_unknown_variable_is_one_line(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt variable is said, and nothing else changes."""
    monkeypatch.setenv("SWEEP_DISK_LIMT", "3")
    code, _, errors = call("spaces")
    assert code == 0
    assert errors == [
        "sweep: SWEEP_DISK_LIMT is not a setting (did you mean SWEEP_DISK_LIMIT?): it is ignored"
    ]


def test_a_metric_of_unknown_direction_is_one_line(call: Call) -> None:
    """No search begins before the direction is said."""
    code, _, errors = call("run", "--module", "mine:Model", "--metric", "val_distance",
                           "--vary", "a=1,2")  # fmt: skip
    assert (code, errors) == (
        2, ["sweep: --direction must be said for --metric val_distance: maximize or minimize"]
    )  # fmt: skip


@pytest.mark.parametrize("space", ["nix", "nix.yaml"])
def test_faults_of_settings_and_space_are_told_together(call: Call, space: str) -> None:
    """One line each; none of them has to wait for another to be mended."""
    code, _, errors = call("run", "--sampler", "bayes", "--pruner", "foo", "--space", space)
    assert (code, len(errors)) == (2, 3)
    for line, part in zip(errors, ("--sampler", "--pruner", "nix"), strict=True):
        assert part in line


def test_debug_shows_the_traceback(call: Call) -> None:
    """--debug, anywhere on the line, adds what a bug report needs."""
    code, _, errors = call("run", "--data", "mnits", "--debug")
    assert code == 2
    assert "Traceback (most recent call last):" in errors
    assert errors[-1].startswith("sweep: --data must be one of")


def test_a_search_that_could_not_begin_binds_nobody(call: Call) -> None:
    """A wrong tracking address is not remembered: the next command has its own settings."""
    wrong = ("--epochs", "3", "--tracking-uri", "http://127.0.0.1:1")
    assert call(*RUN_INLINE, *wrong)[0] == 4
    code, out, errors = call("run", "--print-config")
    assert code == 0, errors
    assert "http://127.0.0.1:1" not in out


# settings


def test_print_config_says_where_each_value_came_from(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flag before environment before file before default, and nothing is written."""
    (tmp_path / "search.yaml").write_text("epochs: 3\ntrials: 7\nseed: 5\n")
    monkeypatch.setenv("SWEEP_EPOCHS", "4")
    monkeypatch.setenv("SWEEP_TRIALS", "8")
    code, out, _ = call("run", "--config", "search.yaml", "--trials", "9", "--print-config")
    assert code == 0
    rows = {line.split(":")[0]: line for line in out.splitlines()}
    for name, value, origin in (
        ("trials", 9, "flag"), ("epochs", 4, "environment SWEEP_EPOCHS"),
        ("seed", 5, "file search.yaml"), ("sampler", "tpe", "default"),
    ):  # fmt: skip
        assert rows[name].split() == [f"{name}:", str(value), "#", *origin.split()]
    assert yaml.safe_load(out)["baseline"] is True
    assert [p.name for p in tmp_path.iterdir()] == ["search.yaml"]


def test_passwords_are_not_shown(call: Call) -> None:
    """Neither in the configuration nor in an error."""
    url = "postgresql://me:secret@127.0.0.1:1/optuna"
    code, out, errors = call("run", "--storage", url, "--print-config")
    assert "secret" not in out + "".join(errors)
    assert code in (0, 4)


def test_a_dry_run_leaves_no_trace(call: Call, tmp_path: Path) -> None:
    """It shows the reference network, what comes first and samples; it writes nothing."""
    code, out, _ = call("run", "--dry-run", "--trials", "7")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("study digits-mlp: 7 trials of at most 10 epochs on digits")
    assert "data: ready" in out
    assert "  t000 SGD lr=0.01 128-64" in lines
    assert list(tmp_path.iterdir()) == []


def test_spaces_and_validate(call: Call) -> None:
    """The shipped spaces are listed, and each is valid."""
    code, out, _ = call("spaces", "--format", "json")
    assert code == 0
    names = [row["space"] for row in json.loads(out)]
    assert {"mlp", "mlp_small", "mlp_regularized"} <= set(names)
    for name in names:
        code, out, _ = call("validate", name, "--samples", "3")
        assert (code, len(out.splitlines())) == (0, 4)
    assert "sweep validate mlp\n" in call("validate", "--help")[1], "works in any folder"


def test_samples_have_the_words_of_the_file(call: Call, tmp_path: Path) -> None:
    """null and true, as YAML has them."""
    text = "# N.\nparameters:\n  clip_norm: {choices: [null]}\n  deep: {choices: [true]}\n"
    (tmp_path / "n.yaml").write_text(text)
    code, out, errors = call("validate", "n.yaml", "--module", "user_code:TakesAny")
    assert (code, errors) == (0, [])
    assert "t000 clip_norm=null deep=true: clip_norm=null deep=true\n" in out


def test_data_says_what_is_here(call: Call) -> None:
    """digits is always ready."""
    code, out, _ = call("data", "--format", "csv")
    assert code == 0
    rows = {row["data"]: row for row in csv.DictReader(io.StringIO(out))}
    assert rows["digits"]["ready"].lower() == "true"
    assert set(rows) == {"digits", "mnist", "fashion_mnist"}
