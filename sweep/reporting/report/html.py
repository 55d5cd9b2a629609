"""A page as one HTML file, with its style, data and script inside: no network, no server.

Whatever comes from a study (names, values, messages) is escaped: as text of an element, or as JSON
in which `<`, `>` and `&` are written as escapes, so that nothing ends the script element.
"""

from __future__ import annotations

import html
import json
import re
from importlib.resources import files
from string import Template
from typing import Any

from sweep.reporting.formats import format_value
from sweep.reporting.report.document import (
    Block,
    Chart,
    Code,
    Document,
    Gallery,
    Grid,
    Section,
    Tiles,
    Words,
)

_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028",
            "\u2029": "\\u2029"}  # fmt: skip


def to_html(document: Document) -> str:
    """The whole file."""
    folder = files("sweep.reporting.report")
    template = Template(folder.joinpath("page.html").read_text(encoding="utf-8"))
    links = (
        f'<a href="#{section.key}">{text(section.title)}</a>' for section in document.sections
    )
    return template.substitute(
        title=text(document.title),
        heading=text(document.title),
        subtitle=text(document.subtitle),
        links="".join(links),
        body="\n".join(map(_section, document.sections)),
        data=json_text(document.data),
        style=folder.joinpath("page.css").read_text(encoding="utf-8").strip(),
        script=folder.joinpath("page.js").read_text(encoding="utf-8").strip(),
    )


def json_text(value: Any) -> str:
    """JSON that is safe within a script element."""
    dense = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return re.sub("[<>&\u2028\u2029]", lambda found: _ESCAPES[found[0]], dense)


def text(value: str) -> str:
    """`value` as text of an element or an attribute."""
    clean = "".join(" " if ord(c) < 32 and c not in "\n\t" else c for c in value)
    return html.escape(clean.encode("utf-8", "replace").decode("utf-8"))


def _marked(sentence: str) -> str:
    """A sentence whose names in backticks are code."""
    return re.sub("`([^`]*)`", r"<code>\1</code>", text(sentence))


def _section(section: Section) -> str:
    parts = [f'<section id="{section.key}">', f"<h2>{text(section.title)}</h2>"]
    if section.key == "charts":
        parts.append(_CHOICE)
    return "\n".join([*parts, *map(_block, section.blocks), "</section>"])


_CHOICE = """<div class="bar-of-choice" id="choice" hidden>
<span id="chosen" role="status" aria-live="polite"></span>
<button type="button" id="choose-best">Best ten</button>
<button type="button" id="choose-all">All trials</button>
</div>"""


def _block(block: Block) -> str:
    if isinstance(block, Words):
        return _words(block)
    if isinstance(block, Tiles):
        cells = (
            f'<div><dt>{text(what)}</dt><dd><span class="value">{text(value)}</span><br>'
            f'<span class="more">{text(more)}</span></dd></div>'
            for what, value, more in block.figures
        )
        return f'<dl class="tiles">{"".join(cells)}</dl>'
    if isinstance(block, Chart):
        hint = f'<span class="hint">{text(block.hint)}</span>' if block.hint else ""
        return (
            f'<figure id="c-{block.key}"><figcaption><h3>{text(block.title)}</h3>{hint}'
            f'</figcaption><div class="plot" data-label="{text(block.label)}">'
            f"<noscript><p>{text(block.label)}</p></noscript></div></figure>"
        )
    if isinstance(block, Code):
        return _code(block)
    if isinstance(block, Gallery):
        items = (
            f'<li><img src="{text(image.address)}" alt="{text(image.text)}">{text(image.text)}'
            "</li>"
            for image in block.images
        )
        return f'<ul class="gallery">{"".join(items)}</ul>'
    return _grid(block)


def _words(block: Words) -> str:
    if block.is_list:
        return f"<ul>{''.join(f'<li>{_marked(s)}</li>' for s in block.sentences)}</ul>"
    kind = ' class="lead"' if block.is_lead else ""
    return f"<p{kind}>{_marked(' '.join(block.sentences))}</p>"


def _code(block: Code) -> str:
    body = f'<pre tabindex="0"><code>{text(block.text.rstrip())}</code></pre>'
    if block.is_folded:
        return f"<details><summary>{text(block.caption)}</summary>{body}</details>"
    caption = f"<p>{text(block.caption)}</p>" if block.caption else ""
    return f'<div class="code">{caption}{body}</div>'


def _grid(grid: Grid) -> str:
    """A table; columns of numbers stand to the right."""
    numeric = [
        any(_is_number(row[at]) for row in grid.rows)
        and all(row[at] is None or _is_number(row[at]) for row in grid.rows)
        for at in range(len(grid.columns))
    ]
    kinds = [' class="n"' if is_numeric else "" for is_numeric in numeric]
    caption = f"<caption>{text(grid.caption)}</caption>" if grid.caption else ""
    heads = "".join(
        f'<th scope="col"{kind}>{text(name)}</th>'
        for name, kind in zip(grid.columns, kinds, strict=True)
    )
    ids = [f' data-n="{number}"' for number in grid.row_ids] or [""] * len(grid.rows)
    rows = "\n".join(
        f"<tr{name}>{_cells(row, kinds)}</tr>" for name, row in zip(ids, grid.rows, strict=True)
    )
    sortable = " data-sortable" if grid.is_sortable else ""
    return (
        f'<div class="scroll"><table id="g-{grid.key}"{sortable}>{caption}<thead><tr>{heads}</tr>'
        f"</thead><tbody>\n{rows}\n</tbody></table></div>"
    )


def _cells(row: Any, kinds: list[str]) -> str:
    return "".join(
        f"<td{kind}>{_marked(format_cell(value))}</td>"
        for value, kind in zip(row, kinds, strict=True)
    )


def format_cell(value: Any) -> str:
    """A cell as text; nothing for None."""
    return "" if value is None else format_value(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
