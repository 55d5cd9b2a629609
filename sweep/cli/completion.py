"""`sweep completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


@click.command(short_help="Shell completion, to source.", no_args_is_help=True)
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the completion script of SHELL.

    \b
    Example:
      sweep completion bash >> ~/.bashrc
    """
    from sweep.cli.main import cli

    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"click has no completion for {shell}")
    click.echo(found(cli, {}, "sweep", "_SWEEP_COMPLETE").source())
