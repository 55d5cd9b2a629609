"""`sweep report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sweep.cli.options import expanded, study_argument, where, where_options

FORMATS = ("html", "md", "png")


@click.command(short_help="One page that says what came out.")
@study_argument
@click.option("-o", "--output", type=click.Path(path_type=Path), callback=expanded, metavar="FILE",
              help="Where it goes; - prints it. [default: STUDY-report.html]")  # fmt: skip
@click.option("--format", "fmt", type=click.Choice(FORMATS), default=None,
              help="html is one file without a network; png needs a browser. [default: by FILE, "
                   "else html]")  # fmt: skip
@click.option(
    "--samples/--no-samples",
    default=True,
    help="What the winner gets wrong; takes its checkpoint and data. [default: on]",
)
@click.option("--log", is_flag=True, help="Store it in MLflow, too, with the study's own run.")
@where_options
def report(
    study: str | None, output: Path | None, fmt: str | None, samples: bool, log: bool,
    **flags: Any,
) -> None:  # fmt: skip
    """Write one page about STUDY (the only one, where it is left out).

    It says what came out and how sure that is, which parameters matter, what to widen, when to
    stop, what failed and why, and how to repeat it. Only the study's own records are read.

    \b
    Examples:
      sweep report digits-mlp
      sweep report digits-mlp -o out.html --no-samples
      sweep report digits-mlp --format md -o -
    """
    from sweep.reuse.page import write_page

    made = write_page(
        study, where(flags), output=output, fmt=fmt, has_samples=samples, is_stored=log
    )
    click.echo(made.text if made.path is None else str(made.path), nl=made.path is not None)
