"""A page as Markdown: the same words and tables; charts are the sentences that describe them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from sweep.reporting.report.document import (
    Block,
    Chart,
    Code,
    Document,
    Gallery,
    Grid,
    Tiles,
    Words,
)
from sweep.reporting.report.html import format_cell

MAX_ROWS = 50
"""Of the table of trials."""


def to_markdown(document: Document) -> str:
    """The whole text."""
    parts = [f"# {_plain(document.title)}", _plain(document.subtitle)]
    for section in document.sections:
        if said := [part for block in section.blocks for part in _block(block)]:
            parts += [f"## {section.title}", *said]
    return "\n\n".join(parts) + "\n"


def _block(block: Block) -> Iterator[str]:
    if isinstance(block, Words) and block.is_list:
        yield "\n".join(f"- {_marked(sentence)}" for sentence in block.sentences)
    elif isinstance(block, Words):
        said = _marked(" ".join(block.sentences))
        yield f"**{said}**" if block.is_lead and "`" not in said else said
    elif isinstance(block, Tiles):
        yield _table(["", "", ""], block.figures)
    elif isinstance(block, Grid):
        if block.caption:
            yield f"{_plain(block.caption)}:"
        yield _table(block.columns, block.rows[:MAX_ROWS])
        if len(block.rows) > MAX_ROWS:
            yield f"... and {len(block.rows) - MAX_ROWS} more."
    elif isinstance(block, Code):
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", block.text)), default=0))
        yield f"{_plain(block.caption)}:"
        yield f"{fence}\n{block.text.rstrip()}\n{fence}"
    elif isinstance(block, Chart):
        return
    elif isinstance(block, Gallery):
        yield "\n".join(f"- {_plain(image.text)}" for image in block.images)


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: Any) -> str:
    return _marked(format_cell(value)).replace("|", "\\|")


def _marked(sentence: str) -> str:
    """Text with code in backticks as it is, the rest without HTML."""
    parts = sentence.split("`")
    is_paired = len(parts) % 2 == 1
    return "`".join(
        " ".join(part.split("\n")) if at % 2 and is_paired else _plain(part)
        for at, part in enumerate(parts)
    )


def _plain(text: str) -> str:
    return re.sub(r"([<>&])", lambda found: _ENTITIES[found[1]], " ".join(text.split("\n")))


_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
