"""`sweep export`."""

from __future__ import annotations

from typing import Any

import click

from sweep.cli.options import study_and_trial, where, where_options

FORMATS = ("pt2", "onnx", "state-dict")


@click.command(short_help="A trained model as a file, checked against its checkpoint.")
@click.argument("what", metavar="[STUDY] [TRIAL] DIR", nargs=-1, required=True)
@click.option("--to", type=click.Choice(FORMATS), default="pt2",
              help="pt2 is torch.export's, for any number of rows. [default: pt2]")  # fmt: skip
@where_options
def export(what: tuple[str, ...], to: str, **flags: Any) -> None:
    """Write the model of STUDY's best trial, or of TRIAL, into the folder DIR.

    It is compared with the checkpoint first, for 1, 7 and 1,000 rows. README.md beside it says
    how to load it; export.json has the input's shape, the score and where it comes from.

    \b
    Examples:
      sweep export digits-mlp exported
      sweep export digits-mlp 12 exported --to onnx
      sweep export digits-mlp exported --to state-dict
    """
    from sweep.reuse import find_trial
    from sweep.reuse.export import in_words

    *words, folder = what
    study, trial = study_and_trial(words)
    found = find_trial(study, trial, where(flags))
    done = found.export(folder, to)
    click.echo(f"{done.file}: trial {found.trial} of {found.study}, score {found.score:.6g}")
    click.echo(f"largest difference from its checkpoint: {in_words(done.differences)}")
