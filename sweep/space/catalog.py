"""Finding space files: shipped ones by name, others by path."""

from __future__ import annotations

from pathlib import Path

from sweep.config.file import read_text
from sweep.errors import NotFoundError, SpaceError, must_be_one_of
from sweep.space.definition import Space
from sweep.space.parser import parse_space


def spaces_dir() -> Path:
    """The folder of the shipped spaces: inside the installed package, or beside it in a clone."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "_search_spaces"
    return installed if installed.is_dir() else package.parent / "search_spaces"


def shipped_spaces() -> dict[str, Path]:
    """Name, for `--space`, -> file of every shipped space, sorted by name."""
    return {path.stem: path for path in sorted(spaces_dir().glob("*.yaml"))}


def when_to_use(path: Path) -> str:
    """The comment in the first line of a space file."""
    with path.open(encoding="utf-8") as file:
        line = file.readline().strip()
    return line.lstrip("# ") if line.startswith("#") else ""


def load_space(name_or_path: str | Path, *, is_mlp: bool = True) -> Space:
    """The shipped space of that name, or the space in a file (a path or *.yaml).

    `is_mlp` is `parse_space`'s.

    Raises:
        NotFoundError: No shipped space has the name.
        SpaceError: The file cannot be read, or is faulty; with every fault and its line.
    """
    path, shipped = Path(name_or_path), shipped_spaces()
    is_name = isinstance(name_or_path, str) and path.name == name_or_path
    if is_name and path.suffix not in (".yaml", ".yml"):
        if path.name not in shipped:
            text = must_be_one_of("space", path.name, shipped)
            hint = "a file of yours is named with its ending, such as my.yaml"
            raise NotFoundError(f"{text}; {hint}")
        path = shipped[path.name]
    return parse_space(read_text(path, SpaceError), path.stem, path, is_mlp=is_mlp)
