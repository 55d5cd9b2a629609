"""`sweep confirm`."""

from __future__ import annotations

import shlex
import sys
from typing import Any

import click

from sweep.cli.options import study_argument, where_options


@click.command(short_help="Train the best trials again on fresh seeds; test the winner once.")
@study_argument
@click.option("--top", type=click.IntRange(2), default=5, show_default=True, metavar="N",
              help="Finalists; half of them drop out after each seed, down to two.")  # fmt: skip
@click.option("--seeds", type=click.IntRange(2), default=5, show_default=True, metavar="N",
              help="Fresh seeds of split, order and initial weights.")  # fmt: skip
@click.option("--test/--no-test", default=True,
              help="Open the test split once the winner is chosen. [default: on]")  # fmt: skip
@where_options
def confirm(study: str | None, top: int, seeds: int, test: bool, **flags: Any) -> None:
    """Train the best trials of STUDY again on fresh seeds, and say what the best of them is worth.

    The best score of a search is too good, since it was chosen for being good. Each seed is a
    study of its own, STUDY-confirm-N; the same command goes on after an interruption.

    \b
    Examples:
      sweep confirm digits-mlp
      sweep confirm digits-mlp --top 3 --seeds 10 --no-test
    """
    confirm_study(study, top=top, seeds=seeds, test=test, **flags)


def confirm_study(study: str | None, **settings: Any) -> None:
    """Confirm with a display on standard output; print the result."""
    from sweep import api
    from sweep.reporting.confirmations import race_lines
    from sweep.reporting.display import make_display
    from sweep.trust.words import confirmation_lines

    found = api.confirm(study, listeners=lambda: [make_display(sys.stdout, 0)], **settings)
    lines = confirmation_lines(found, found.direction)
    click.echo("\n".join(["", *race_lines(found), "", *lines]))
    click.echo(f"\nNext:\n  sweep best {shlex.quote(found.study)} > best.yaml  # keep the winner")
