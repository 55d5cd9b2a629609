"""Finding space files: shipped ones by name, others by path."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from sweep.config.document import read_text
from sweep.errors import NotFoundError, SpaceError, must_be_one_of
from sweep.space.definition import Space
from sweep.space.parser import parse_space
from sweep.space.rules import VOCABULARY


@dataclass(frozen=True, slots=True)
class SpaceInfo:
    """A shipped search space."""

    name: str
    """For `--space`."""
    when_to_use: str
    """Its file's first line."""
    path: Path


def spaces_dir() -> Path:
    """The folder of the shipped spaces: inside the installed package, or beside it in a clone."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "_search_spaces"
    return installed if installed.is_dir() else package.parent / "search_spaces"


def list_spaces() -> list[SpaceInfo]:
    """Every shipped space, sorted by name."""
    return [
        SpaceInfo(path.stem, _when_to_use(path), path)
        for path in sorted(spaces_dir().glob("*.yaml"))
    ]


def load_space(name_or_path: str | Path, vocabulary: Collection[str] | None = VOCABULARY) -> Space:
    """The shipped space of that name, or the space in a file (a path or *.yaml).

    `vocabulary` is `parse_space`'s.

    Raises:
        NotFoundError: No shipped space has the name.
        SpaceError: The file cannot be read, or is faulty; with every fault and its line.
    """
    asked = str(name_or_path)
    if (
        isinstance(name_or_path, Path)
        or "/" in asked
        or Path(asked).name != asked
        or (asked.endswith((".yaml", ".yml")))
    ):
        path = Path(asked)
        return parse_space(read_text(path, SpaceError), path.stem, path, vocabulary)
    paths = {info.name: info.path for info in list_spaces()}
    if asked not in paths:
        text = must_be_one_of("space", asked, paths)
        raise NotFoundError(f"{text}; a file of yours is named with its ending, such as my.yaml")
    return parse_space(read_text(paths[asked], SpaceError), asked, paths[asked], vocabulary)


def _when_to_use(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        line = file.readline().strip()
    return line.lstrip("# ") if line.startswith("#") else ""
