"""`sweep plan`."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import click

from sweep.cli.options import GroupedCommand, config_options, expanded, format_option
from sweep.config.resolving import resolve
from sweep.errors import ConfigError
from sweep.reporting.tables import Format


@click.command(cls=GroupedCommand, short_help="Estimate time, memory, disk and money of a search.")
@config_options()
@click.option("--config", "config_file", type=click.Path(dir_okay=False, path_type=Path),
              callback=expanded,
              help="YAML file with these settings, under the flags' names.")  # fmt: skip
@click.option("--for", "for_time", metavar="TIME", default="25s",
              help="Train so long once a worker is ready. [default: 25s]")  # fmt: skip
@click.option("--max-devices", metavar="K", default="1",
              help="Estimate for one device (or all in use), twice as many, ... K.")  # fmt: skip
@click.option("--price-per-hour", metavar="AMOUNT", help="Price of one device, in any currency.")
@format_option
def plan(
    config_file: Path | None, for_time: str, max_devices: str, price_per_hour: str | None,
    fmt: Format, **flags: Any,
) -> None:  # fmt: skip
    """Train a few trials of a search for a short time; say what all of them would take.

    The settings are those of `sweep run`. Everything is kept in a temporary folder that is removed
    at the end: no study begins. Estimates for several devices take them to be as fast as this one.

    \b
    Examples:
      sweep plan --trials 500 --epochs 30
      sweep plan --trials 200 --data mnist --max-devices 4 --price-per-hour 2.50
      sweep plan --module net.py:Net --vary model.lr=1e-4..1e-1:log --metric val_loss --for 2m
    """
    from sweep import api
    from sweep.reporting.display import announce, width_and_color
    from sweep.reporting.plans import plan_text

    if fmt == "table":
        with contextlib.suppress(ConfigError):  # said below, with the faults of the space
            name = resolve(flags, file=config_file).config.study_name
            announce(sys.stdout, f"{name}: training for {for_time} once a worker is ready ...")
    found = api.plan_with(
        flags, config_file, for_time=for_time, max_devices=max_devices,
        price_per_hour=price_per_hour,
    )  # fmt: skip
    width, is_colored = width_and_color(sys.stdout)
    click.echo(plan_text(found, fmt, width, is_colored=is_colored), nl=False, file=sys.stdout)
