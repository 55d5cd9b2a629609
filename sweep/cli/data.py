"""`sweep data`."""

from __future__ import annotations

from typing import Any

import click

from sweep.cli.options import config_options, format_option, print_rows
from sweep.reporting.tables import Format


@click.command(short_help="Data sets: what is cached, fetch now.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--fetch", is_flag=True, help="Fetch what is missing (of NAME, or of all).")
@config_options(("data_dir",))
@format_option
def data(names: tuple[str, ...], fetch: bool, fmt: Format, **flags: Any) -> None:
    """Show which data sets are on this machine, and fetch them.

    \b
    Examples:
      sweep data
      sweep data mnist --fetch
    """
    from sweep.config.resolving import resolve
    from sweep.data import catalog as datasets

    folder = resolve(flags).config.data_dir
    chosen = names or datasets.dataset_names()
    for name in chosen:
        datasets.spec_of(name)
        if fetch:
            datasets.prepare(name, folder)
    rows = []
    for name in chosen:
        status = datasets.status(name, folder)
        rows.append(
            {
                "data": name, "ready": status.is_ready, "bytes": status.n_bytes,
                "location": status.location, "title": status.title,
            }
        )  # fmt: skip
    print_rows(rows, ["data", "ready", "bytes", "location", "title"], fmt)
