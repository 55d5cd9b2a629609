"""The page's file: which form, where it goes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sweep.errors import ConfigError, must_be_one_of
from sweep.files.trial_files import replace_file
from sweep.reporting.report.document import Document
from sweep.reporting.report.html import to_html
from sweep.reporting.report.markdown import to_markdown
from sweep.reporting.report.picture import to_png

FORMS: Mapping[str, Callable[[Document], str]] = {"html": to_html, "md": to_markdown}
"""Forms of text; png is a picture of the first."""
ENDINGS = {".html": "html", ".htm": "html", ".md": "md", ".markdown": "md", ".png": "png"}
TO_OUTPUT = Path("-")


def form_of(fmt: str | None, output: Path | None) -> str:
    """The form by name, else by the file's ending, else html. Raises ConfigError."""
    if fmt is None:
        ending = output.suffix.lower() if output else ""
        if ending not in ("", *ENDINGS):
            raise ConfigError(must_be_one_of("the ending of -o FILE", ending, ENDINGS))
        return ENDINGS.get(ending, "html")
    if fmt not in (*FORMS, "png"):
        raise ConfigError(must_be_one_of("--format", fmt, (*FORMS, "png")))
    if fmt == "png" and output == TO_OUTPUT:
        raise ConfigError("a picture needs a file: name one with -o FILE")
    return fmt


@dataclass(frozen=True, slots=True)
class Written:
    """A page that was made."""

    path: Path | None
    """Its file; None: it is to be printed."""
    text: str = ""


def write(document: Document, form: str, output: Path | None) -> Written:
    """Write the page beside its place, then put it there. Raises DiskError, ConfigError."""
    if output == TO_OUTPUT:
        return Written(None, FORMS[form](document))
    path = (output or Path(f"{_file_name(document.title)}-report.{form}")).resolve()
    if path.exists() and not path.is_file():
        raise ConfigError(f"-o must name a file, but {str(path)!r} is none")
    if form == "png":
        replace_file(path, to_png(to_html(document)))
    else:
        replace_file(path, FORMS[form](document).encode())
    return Written(output or Path(path.name))


def _file_name(name: str) -> str:
    """A study's name as a file's."""
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "study"
