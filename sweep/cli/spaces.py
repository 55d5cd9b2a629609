"""`sweep spaces` and `sweep validate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sweep.cli.options import config_options, format_option, print_rows
from sweep.reporting.tables import Format


@click.command(short_help="Search spaces that come with sweep.")
@format_option
def spaces(fmt: Format) -> None:
    """List the search spaces that --space knows by name, and when to use each.

    \b
    Example:
      sweep spaces
    """
    from sweep.space import shipped_spaces, when_to_use

    rows = [
        {"space": name, "when_to_use": when_to_use(path)}
        for name, path in shipped_spaces().items()
    ]
    print_rows(rows, ["space", "when_to_use"], fmt)


@click.command(short_help="Check a search-space file; print samples.")
@click.argument("file", metavar="FILE|NAME")
@click.option("--samples", type=click.IntRange(0, 1000), default=5, metavar="N",
              help="Configurations to print. [default: 5]")  # fmt: skip
@config_options(("module", "seed"))
def validate(file: str, samples: int, **flags: Any) -> None:
    """Check a search-space file: every fault at once, or a few samples of what it holds.

    With --module, also that its constructor takes these names.

    \b
    Examples:
      sweep validate mlp
      sweep validate my_space.yaml --module my_package.models:MyModule
    """
    from sweep.config.resolving import resolve
    from sweep.space import load_space, run_name, sample, short

    config = resolve(flags).config
    space = load_space(Path(file) if Path(file).exists() else file, is_mlp=config.is_mlp)
    if not config.is_mlp:  # else its names were checked with the space
        _check_module(config.module, space)
    n = space.n_configurations()
    size = "endless" if n is None else f"{n:,}"
    click.echo(f"{file}: valid, {len(space.parameters)} parameters, {size} configurations")
    for number, configuration in enumerate(sample(space, samples, config.seed)):
        values = " ".join(f"{k}={short(v)}" for k, v in configuration.items())
        click.echo(f"  {run_name(number, configuration)}: {values}")


def _check_module(module: str, space: Any) -> None:
    from sweep.errors import ConfigError
    from sweep.loading import import_object

    import_object(module, "--module")
    from sweep.training.project.project import module_faults

    if faults := module_faults(module, space.names):
        raise ConfigError(faults)
