"""Each example runs as its first lines say."""

from __future__ import annotations

import ast
import shlex
import shutil
from pathlib import Path

import nbclient
import nbformat
import pytest
from searches import environment, inline, script, sweep
from waiting import PATIENCE_S

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
FILES = sorted(file for file in EXAMPLES.rglob("*.py") if "\n$ sweep " in file.read_text())
PROGRAMS = sorted(file for file in EXAMPLES.glob("*.py") if "\n$ python " in file.read_text())
WITH_WORKERS = "objective"
"""The example whose search is a process with workers."""
QUIET = ("--trainer.enable_progress_bar", "false")

pytestmark = pytest.mark.usefixtures("ready_store")


def copied(file: Path, folder: Path) -> list[list[str]]:
    """Copies an example with its neighbours; the words of each command in its docstring."""
    shutil.copytree(file.parent, folder, dirs_exist_ok=True)
    text = ast.get_docstring(ast.parse(file.read_text())) or ""
    commands = [shlex.split(line[2:]) for line in text.splitlines() if line.startswith("$ ")]
    assert commands
    return commands


def test_every_example_is_named_on_the_page() -> None:
    """And every name on the page is an example."""
    page = (EXAMPLES / "README.md").read_text()
    names = [f.name for f in EXAMPLES.iterdir() if not f.name.startswith(("README", "_"))]
    assert [name for name in names if f"]({name})" not in page] == []
    assert len(FILES) + len(PROGRAMS) + 1 == page.count("](")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_example_runs_from_the_command_line(tmp_path: Path, file: Path) -> None:
    """All its commands, in order."""
    for words in copied(file, tmp_path):
        if words[0] == "python":
            script(tmp_path, *words[1:], *QUIET)
            continue
        *words, target = words if words[-2] == ">" else [*words, ""]
        is_real = file.stem == WITH_WORKERS and words[1] == "run"
        command = sweep if is_real else inline
        done = command(tmp_path, *[word for word in words[1:] if word != ">"])
        assert done.returncode == 0, done.stderr
        if words[1] == "run":
            n_trials = words[words.index("--trials") + 1]
            assert f"{n_trials} of {n_trials} trials" in done.stdout
            assert " failed" not in done.stdout.replace("0 failed", "")
        if target:
            (tmp_path / target).write_text(done.stdout)


@pytest.mark.parametrize("file", PROGRAMS, ids=lambda file: file.stem)
def test_an_example_runs_as_a_program(tmp_path: Path, file: Path) -> None:
    """It prints its best trial."""
    (words,) = copied(file, tmp_path)
    assert "<Best " in script(tmp_path, *words[1:])


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a real kernel: its search draws a bar, its last cell shows the best model's output."""
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=PATIENCE_S, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    *_, search, last = notebook.cells
    texts = [str(output.get("text", output.get("data"))) for output in search.outputs]
    assert "4/4" in "".join(texts)
    assert "best val_acc" in "".join(texts)
    assert "tensor" in str(last.outputs[0]["data"])
