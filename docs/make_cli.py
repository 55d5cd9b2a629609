"""Writes docs/cli.md, the reference of all commands, from the commands' own help.

python docs/make_cli.py
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import click

from sweep.cli.main import COMMANDS
from sweep.cli.options import GROUPS, GroupedCommand

PAGE = Path(__file__).with_name("cli.md")
HEAD = """# Commands

Made by `make docs` from the commands' own help. Every command takes `--help`, and `--debug` shows
tracebacks; `sweep --version` prints the version. Each setting of a search may also come from the
environment (`--trials` is `SWEEP_TRIALS`) or from `--config FILE`."""


def reference() -> str:
    """The whole page, in Markdown."""
    index = [f"- [`sweep {name}`](#sweep-{name}): {command(name).short_help}" for name in COMMANDS]
    pages = [section(name, command(name)) for name in COMMANDS]
    return "\n\n".join([HEAD, "\n".join(index), *pages]) + "\n"


def command(name: str) -> click.Command:
    """The command of a name."""
    module, _, function = COMMANDS[name].partition(":")
    found: click.Command = getattr(importlib.import_module(module), function)
    return found


def section(name: str, of: click.Command) -> str:
    """Usage, help and options of one command."""
    context = click.Context(of, info_name=f"sweep {name}", color=False)
    usage = " ".join(of.collect_usage_pieces(context))
    parts = [f"## sweep {name}", f"```\nsweep {name} {usage}\n```", *paragraphs(of.help or "")]
    return "\n\n".join([*parts, *tables(context)])


def paragraphs(text: str) -> Iterator[str]:
    """A command's help; what click leaves as it is, examples above all, becomes code."""
    for part in inspect.cleandoc(text).split("\n\n"):
        first, _, rest = part.partition("\n")
        if first != "\b":
            yield part
            continue
        title, _, examples = rest.partition("\n")
        yield f"{title}\n\n```\n{inspect.cleandoc(examples)}\n```"


def tables(context: click.Context) -> Iterator[str]:
    """The options of a command, under their headings if it has some."""
    rows: dict[str, list[str]] = {}
    for parameter in context.command.get_params(context):
        record = parameter.get_help_record(context)
        if record is None or "--help" in parameter.opts:
            continue
        is_grouped = isinstance(context.command, GroupedCommand)
        group = GROUPS.get(parameter.name or "", "output") if is_grouped else "options"
        names, text = (" ".join(cell.split()).replace("|", "\\|") for cell in record)
        rows.setdefault(group, []).append(f"| `{names}` | {text} |")
    for group, lines in rows.items():
        yield "\n".join([f"| {group} | |", "| --- | --- |", *lines])


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
