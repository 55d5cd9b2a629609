"""`sweep status`."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from sweep.cli.options import study_argument, where, where_options

if TYPE_CHECKING:
    from sweep.reporting.status import Watcher


@click.command(short_help="How far a search is, whoever runs it.")
@study_argument
@click.option("--watch", is_flag=True, help="Go on until the search ends or Ctrl-C.")
@click.option("--format", "fmt", type=click.Choice(("table", "json")), default="table",
              help="How it is printed. [default: table]")  # fmt: skip
@where_options
def status(study: str | None, watch: bool, fmt: str, **flags: Any) -> None:
    """Show the trials of STUDY as its own search shows them, from another terminal or machine.

    Only the storage is read. In a pipe the study is one `key=value` line, and so is each running
    trial; with --watch a line comes whenever it has changed.

    \b
    Examples:
      sweep status digits-mlp
      sweep status digits-mlp --watch
      sweep status digits-mlp --format json
    """
    from sweep.reporting.status import Watcher
    from sweep.reporting.tables import render_fields
    from sweep.reuse.best import opened

    if watch and fmt == "json":
        raise click.UsageError("--watch is for people: leave out --format json")
    with opened(study, where(flags)) as (ledger, config):
        watcher = Watcher(ledger, config)
        if fmt == "json":
            click.echo(render_fields(watcher.look().fields(), "json"), nl=False, file=sys.stdout)
        else:
            _show(watcher, is_watched=watch)


def _show(watcher: Watcher, *, is_watched: bool) -> None:
    """Show the study, once or until nobody runs it."""
    from sweep.reporting.display import live_console
    from sweep.reporting.watching import StatusLines, StatusTable

    console = live_console(sys.stdout)
    screen = StatusLines(sys.stdout) if console is None else StatusTable(console)
    with contextlib.closing(screen), contextlib.suppress(KeyboardInterrupt):
        while True:
            seen = watcher.look()
            is_last = not (is_watched and seen.is_running)
            if not screen.show(seen, is_last=is_last) or is_last:
                return
            time.sleep(screen.PERIOD_S)
