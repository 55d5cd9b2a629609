"""A page as plain data: sections of words, figures, tables, code and charts.

Words may hold names in backticks. Each form of the page (HTML, Markdown) draws the same sections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class Words:
    """Sentences: one paragraph, or a list with an item each."""

    sentences: Sequence[str]
    is_list: bool = False
    is_lead: bool = False
    """The sentence of the page that is read first."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """A few figures that are seen at a glance: (what, value, more about it)."""

    figures: Sequence[tuple[str, str, str]]


@dataclass(frozen=True, slots=True)
class Grid:
    """A table. A cell is a text or a number; numbers are sorted as such."""

    key: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    is_sortable: bool = False
    row_ids: Sequence[int] = field(default=())
    """The trial of each row, if the rows are trials."""


@dataclass(frozen=True, slots=True)
class Code:
    """Lines to copy; `caption` says what they do."""

    text: str
    caption: str = ""
    is_folded: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart that the page's script draws from its data; `label` says it in words."""

    key: str
    title: str
    label: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Image:
    """An image within the page."""

    address: str
    """A data: address."""
    text: str
    """What it shows."""


@dataclass(frozen=True, slots=True)
class Gallery:
    """Images, each with its caption."""

    images: Sequence[Image]


Block: TypeAlias = Words | Tiles | Grid | Code | Chart | Gallery


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands below it."""

    key: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True, slots=True)
class Document:
    """A page."""

    title: str
    subtitle: str
    sections: Sequence[Section]
    data: Any = field(default=None, repr=False)
    """What the charts draw (see `chart_data`); None: there is nothing to draw."""
