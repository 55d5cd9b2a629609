"""`sweep check`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sweep.cli.options import GroupedCommand, config_options, expanded


@click.command(cls=GroupedCommand, short_help="Try a module and its data on one minibatch.")
@config_options()
@click.option("--config", "config_file", type=click.Path(dir_okay=False, path_type=Path),
              callback=expanded,
              help="YAML file with these settings, under the flags' names.")  # fmt: skip
@click.option("--write", type=click.Path(dir_okay=False, path_type=Path), callback=expanded,
              help="Write a first search space from the constructors' signatures.")  # fmt: skip
def check(config_file: Path | None, write: Path | None, **flags: Any) -> None:
    """Say what a search over a module of your own would run into, before it begins.

    The settings are those of `sweep run`. One minibatch is trained and validated, and again with
    another value of each parameter. All faults are told at once.

    \b
    Examples:
      sweep check --module net.py:Net --data net.py:Photos --vary model.lr=1e-4..1e-1:log
      sweep check --module net.py:Net --write space.yaml
    """
    from sweep import api

    for line in api.check(flags, config_file, write):
        click.echo(line)
