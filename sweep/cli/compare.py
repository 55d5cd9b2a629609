"""`sweep compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sweep.cli.options import expanded, print_rows, where, where_options


@click.command(short_help="Studies or trials side by side.")
@click.argument("what", metavar="STUDY[:TRIAL]...", nargs=-1, required=True)
@click.option("--format", "fmt", type=click.Choice(("table", "json", "csv", "html")),
              default="table", help="How it is printed; html writes a page with curves. "
                                    "[default: table]")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), callback=expanded, metavar="FILE",
              help="The page of --format html. [default: comparison.html]")  # fmt: skip
@where_options
def compare(what: tuple[str, ...], fmt: Any, output: Path | None, **flags: Any) -> None:
    """Compare studies, or trials as STUDY:N: what differs in them, and what came out.

    \b
    Examples:
      sweep compare digits-mlp digits-wide
      sweep compare digits-mlp:17 digits-mlp:40
      sweep compare digits-mlp digits-wide --format html -o both.html
    """
    from sweep.api import compared
    from sweep.reporting.report.comparison import comparison, rows_of, sentences
    from sweep.reporting.report.writing import write

    if output is not None and fmt != "html":
        raise click.UsageError("-o is for --format html")
    given = compared(what, where(flags))
    if fmt == "html":
        made = write(comparison(given), "html", output or Path("comparison.html"))
        click.echo(made.text if made.path is None else str(made.path))
        return
    if fmt == "table":
        click.echo("\n".join([line.replace("`", "") for line in sentences(given)]) + "\n")
    print_rows(rows_of(given), ["what", *(one.name for one in given)], fmt)
