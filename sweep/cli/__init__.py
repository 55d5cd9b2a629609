"""The command line. The only room that imports click, prints or exits."""

from sweep.cli.main import main

__all__ = ["main"]
