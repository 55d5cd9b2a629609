"""`sweep`: the group of commands; errors become one line and an exit code."""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import stat
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import click

from sweep import __version__
from sweep.environment.launchers import fill_standard_streams, foreign_set_aside, import_path
from sweep.environment.signals import interrupting
from sweep.errors import DiskError, SweepError, must_be_one_of, os_error_text
from sweep.redact import redacted
from sweep.reporting.formats import ENCODING_ERRORS

COMMANDS = {
    "run": "sweep.cli.run:run",
    "check": "sweep.cli.check:check",
    "status": "sweep.cli.status:status",
    "stop": "sweep.cli.steer:stop",
    "prune": "sweep.cli.steer:prune",
    "enqueue": "sweep.cli.steer:enqueue",
    "extend": "sweep.cli.steer:extend",
    "plan": "sweep.cli.plan:plan",
    "list": "sweep.cli.show:list_command",
    "show": "sweep.cli.show:show",
    "trials": "sweep.cli.show:trials",
    "report": "sweep.cli.report:report",
    "compare": "sweep.cli.compare:compare",
    "best": "sweep.cli.best:best",
    "confirm": "sweep.cli.confirm:confirm",
    "train": "sweep.cli.train:train",
    "export": "sweep.cli.export:export",
    "register": "sweep.cli.register:register",
    "reproduce": "sweep.cli.reproduce:reproduce",
    "doctor": "sweep.cli.doctor:doctor",
    "retry": "sweep.cli.doctor:retry",
    "gc": "sweep.cli.gc:gc",
    "ui": "sweep.cli.ui:ui",
    "spaces": "sweep.cli.spaces:spaces",
    "validate": "sweep.cli.spaces:validate",
    "data": "sweep.cli.data:data",
    "completion": "sweep.cli.completion:completion",
}


class LazyGroup(click.Group):
    """Commands are imported when they are named: `sweep --help` stays fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of COMMANDS."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As in click; for an unknown command the error names the nearest one."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(must_be_one_of("command", args[0], COMMANDS))
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", message="sweep %(version)s")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Search hyperparameters of Lightning models: Optuna proposes, MLflow remembers.

    \b
    Example:
      sweep run --trials 50          search, on data that needs no download
      sweep best digits-mlp          the best configuration, as YAML
      sweep ui                       compare the trials in the MLflow UI
    """
    ctx.obj = debug


def main() -> None:
    """Run the command line; every SweepError is one line and its own exit code."""
    is_debug = "--debug" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--debug"]  # wherever on the line it stands
    _open_streams()
    sys.path[:] = import_path()
    with _leaving_on_errors(is_debug), interrupting(), foreign_set_aside():
        _tell_unknown_variables()
        result: Any = cli.main(arguments or ["--help"], prog_name="sweep", standalone_mode=False)
        sys.exit(result if isinstance(result, int) else 0)


def _open_streams() -> None:
    """Make standard output and error writable.

    Closed ones (some daemons and job starters) become /dev/null.
    """
    fill_standard_streams()
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream: Any = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115
        elif _is_device(stream, number):
            terminal = io.BufferedWriter(_Terminal(number, "w", closefd=False))
            again = io.TextIOWrapper(terminal, stream.encoding, line_buffering=True)
            setattr(sys, name, again)
        with contextlib.suppress(AttributeError):  # a notebook's streams are of another kind
            getattr(sys, name).reconfigure(errors=ENCODING_ERRORS)


def _is_device(stream: Any, number: int) -> bool:
    """Whether `stream` writes to a terminal, also to a closed one."""
    try:
        return stream.fileno() == number and stat.S_ISCHR(os.fstat(number).st_mode)
    except (OSError, ValueError):  # a stream of another kind, as notebooks have
        return False


class _Terminal(io.FileIO):
    """A terminal; it may be closed (SIGHUP) while a search saves or, under nohup, goes on."""

    def write(self, data: Any) -> int:
        """Write `data`; for a closed terminal it counts as written."""
        try:
            return super().write(data) or 0
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return memoryview(data).nbytes


def _tell_unknown_variables() -> None:
    if any(name.startswith("SWEEP_") for name in os.environ):
        from sweep.config.notices import unknown_variables

        for line in unknown_variables(os.environ):
            click.echo(f"sweep: {line}", err=True)


@contextlib.contextmanager
def _leaving_on_errors(is_debug: bool) -> Iterator[None]:
    try:
        yield
    except SweepError as error:
        _leave(str(error) + _remedy(str(error)), error.exit_code, is_debug)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(2)
    except click.ClickException as error:
        _leave(_with_hint(error), 2, is_debug)
    except (KeyboardInterrupt, click.Abort):
        _leave("interrupted: the same command continues where it stopped", 130, is_debug)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        message = os_error_text(error)
        remedy = _remedy(message) or ": run the same command again"
        _leave(message + remedy, DiskError.exit_code, is_debug)
    except Exception as error:  # noqa: BLE001 - the last wall before the user
        message = f"{type(error).__name__}: {' '.join(str(error).split())}"
        _leave(f"{message} (a bug in sweep: run again with --debug)", 1, is_debug)


def _remedy(message: str) -> str:
    """What to do about a disk that is full or broken; "" if the message has it already."""
    again = "then run the same command again"
    if again in message:
        return ""
    if any(words in message for words in ("No space left", "disk is full")):
        return f": free some space, {again}"
    return f": see to that disk, {again}" if os.strerror(errno.EIO) in message else ""


def _leave(message: str, code: int, is_debug: bool) -> None:
    if is_debug:
        click.echo(redacted(traceback.format_exc()), err=True, nl=False)
    for line in redacted(message).splitlines() or [message]:
        click.echo(f"sweep: {line}", err=True)
    sys.exit(code)


def _with_hint(error: click.ClickException) -> str:
    context: click.Context | None = getattr(error, "ctx", None)
    path = context.command_path if context else "sweep"
    return f"{error.format_message().rstrip('.')}. Try `{path} --help`"
