"""What the documents say is true: links lead somewhere, commands exist, examples run."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from searches import environment, inline
from waiting import PATIENCE_S

from sweep.cli.main import COMMANDS
from sweep.errors import SweepError
from sweep.search.pruners import PRUNERS
from sweep.search.samplers import SAMPLERS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "README.zh-CN.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
README = (ROOT / "README.md").read_text(encoding="utf-8")
README_ZH = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
REFERENCE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
HOW_TO = (ROOT / "docs" / "how-to.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """Fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link of a page names a file of the project."""
    targets = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert not missing


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_line_in_the_readme(command: str) -> None:
    """The table of commands is complete, in both languages."""
    for text in (README, README_ZH):
        assert f"| `sweep {command}` |" in text


def test_the_command_reference_is_current() -> None:
    """docs/cli.md is what `make docs` writes."""
    found = importlib.util.spec_from_file_location("make_cli", ROOT / "docs" / "make_cli.py")
    assert found is not None
    assert found.loader is not None
    maker = importlib.util.module_from_spec(found)
    found.loader.exec_module(maker)
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == maker.reference()


def test_the_chinese_readme_is_in_step() -> None:
    """Each block of code is the English one's but for comments, in the same order; so are the
    commands of the table, and the sections are as many. It links to the same pages."""
    assert code_of(README_ZH) == code_of(README)
    for part in (r"^\| `sweep \w+`", r"^#+(?= )"):
        chinese, english = (re.findall(part, text, re.MULTILINE) for text in (README_ZH, README))
        assert chinese == english
    chinese, english = (set(re.findall(r"\]\(([^)]+)", text)) for text in (README_ZH, README))
    assert chinese - english == {"README.md"}
    assert english - chinese == {"README.zh-CN.md"}


def code_of(text: str) -> list[str]:
    """The lines of all blocks of code, without comments."""
    lines = [line for block in re.findall(r"^ *```.*?^ *```", text, re.M | re.S)
             for line in block.splitlines()]  # fmt: skip
    return [re.sub(r" *#.*", "", line) for line in lines]


def test_the_page_of_exit_codes_has_every_one() -> None:
    """Each code of the error tree is explained."""
    classes, codes = [SweepError], set()
    while classes:
        current = classes.pop()
        codes.add(current.exit_code)
        classes += current.__subclasses__()
    assert [code for code in sorted(codes) if f"\n| {code} |" not in REFERENCE] == []


@pytest.mark.parametrize(("label", "table"), [("Sampler", SAMPLERS), ("Pruner", PRUNERS)])
def test_every_sampler_and_pruner_is_listed(label: str, table: Mapping[str, object]) -> None:
    """In the order of the tables, as `--help` does."""
    assert f"**{label}**: {', '.join(table)}" in REFERENCE


def test_the_architecture_names_every_room() -> None:
    """Each module at the top of the package has its line in the table of rooms."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = [p for p in (ROOT / "sweep").iterdir() if not p.name.startswith("_")]
    names = [p.name + "/" * p.is_dir() for p in rooms if p.is_dir() or p.suffix == ".py"]
    assert [name for name in sorted(names) if f"`{name}`" not in text] == []


OWN_PROJECT = (ROOT / "docs" / "own-project.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("ready_store")
def test_the_page_for_a_project_of_ones_own_works(tmp_path: Path) -> None:
    """Its files are saved under the names they give, its commands and its program run, the
    program with a worker of its own."""
    for text in blocks(OWN_PROJECT, "python"):
        name = re.match(r"# (\w+\.py)\n", text)
        assert name
        (tmp_path / name[1]).write_text(text)
    commands = re.findall(r"^sweep .*$", OWN_PROJECT, re.MULTILINE)[:4]
    said = {}
    for command in commands:
        done = inline(tmp_path, *command.removeprefix("sweep ").split())
        assert done.returncode == 0, done.stderr
        said[command.split()[1]] = done.stdout
        if command == "sweep best photos":
            (tmp_path / "best.yaml").write_text(done.stdout)
    assert "resumed after a kill: yes" in said["check"]
    assert "exported: yes" in said["check"]
    assert "5 of 5 trials" in said["run"]
    assert "test_loss=" in said["train"]
    program = subprocess.run(
        [sys.executable, "search.py"], cwd=tmp_path, env=environment(), capture_output=True,
        text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert program.returncode == 0, program.stderr
    assert program.stdout.startswith("Net(")


@pytest.mark.usefixtures("ready_store")
def test_the_how_to_for_modules_and_data_of_ones_own_works(tmp_path: Path) -> None:
    """The examples are saved under the names they give, and their commands run as printed."""
    for text in blocks(HOW_TO, "python"):
        name = re.match(r"# (\w+\.py)\n", text)
        assert name
        (tmp_path / name[1]).write_text(text)
    (tmp_path / "cnn.yaml").write_text(blocks(HOW_TO, "yaml")[0])
    commands = re.findall(r"^sweep (run --(?:module|data) .*)$", HOW_TO, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        done = inline(tmp_path, *command.split())
        assert done.returncode == 0, done.stderr
        assert "5 of 5 trials" in done.stdout
