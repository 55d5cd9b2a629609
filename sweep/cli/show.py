"""`sweep list`, `sweep trials`, `sweep show`: read from the Optuna storage."""

from __future__ import annotations

import sys
from typing import Any

import click

from sweep.cli.options import format_option, print_rows, study_argument, where, where_options
from sweep.reporting.tables import Format


@click.command("list", short_help="Studies, one a line.")
@click.option("--columns", metavar="A,B", help="Columns to print, in this order.")
@format_option
@where_options
def list_command(columns: str | None, fmt: Format, **flags: Any) -> None:
    """List the studies of this folder's Optuna storage.

    \b
    Examples:
      sweep list --format json
      sweep list --columns study,best
    """
    from sweep.ledger.study import list_studies
    from sweep.reporting.filters import chosen
    from sweep.reporting.rows import LEAST_OF_A_STUDY, STUDY_COLUMNS, study_row

    rows = [study_row(s) for s in list_studies(where(flags).storage)]
    if not rows and fmt == "table":
        click.echo("no studies here yet: try `sweep run`")
        return
    shown = [*STUDY_COLUMNS] if columns is None else chosen([*STUDY_COLUMNS], columns)
    print_rows(rows, shown, fmt, LEAST_OF_A_STUDY)


@click.command(short_help="A study's trials, one a line.")
@study_argument
@click.option("--sort", default="value", metavar="COLUMN",
              help="Column to sort by; best first for value. [default: value]")  # fmt: skip
@click.option("--reverse", is_flag=True, help="The other way round.")
@click.option("--state", metavar="STATE",
              help="Only these states, with commas: complete, pruned, fail ...")  # fmt: skip
@click.option("--where", "condition", metavar="COND",
              help="Only where conditions hold, as 'lr<0.01 and optimizer=Adam'.")  # fmt: skip
@click.option("--columns", metavar="A,B", help="Columns to print, in this order.")
@click.option("--limit", type=click.IntRange(1), help="Print the first N only.", metavar="N")
@format_option
@where_options
def trials(
    study: str | None, sort: str, reverse: bool, state: str | None, condition: str | None,
    columns: str | None, limit: int | None, fmt: Format, **flags: Any,
) -> None:  # fmt: skip
    """List the trials of STUDY (of the only one, where it is left out).

    A condition is NAME OP VALUE with one of = != < <= > >=, and `and` joins conditions. A terminal
    shows as many columns as fit.

    \b
    Examples:
      sweep trials digits-mlp --sort number
      sweep trials digits-mlp --where 'lr<0.01 and optimizer=Adam' --columns number,value,lr
      sweep trials digits-mlp --state fail
      sweep trials digits-mlp --sort lr --format csv > trials.csv
    """
    from sweep.reporting.filters import chosen, in_states, matching
    from sweep.reporting.rows import FAILURE_COLUMNS, shown_columns, trial_columns, trial_row
    from sweep.reporting.tables import sort_rows
    from sweep.reuse.best import opened

    with opened(study, where(flags)) as (ledger, _):
        name, rows = ledger.name, [trial_row(t) for t in ledger.trials()]
        is_descending = (sort == "value" and ledger.direction == "maximize") != reverse
    known = [*trial_columns(rows), *FAILURE_COLUMNS]
    asked = None if columns is None else chosen(known, columns)
    found = sort_rows(rows, sort, is_descending=is_descending)
    if condition is not None:
        found = matching(found, known, condition)
    if state is not None:
        found = in_states(found, state)
    if not found and rows and fmt == "table":
        click.echo(f"{name}: none of its {len(rows)} trials matches")
        return
    shown, least_first = shown_columns(trial_columns(rows), found if fmt == "table" else ())
    print_rows(found[:limit], asked or shown, fmt, () if asked else least_first)


@click.command(short_help="All about a study, or one of its trials.")
@click.argument("what", metavar="[STUDY|TRIAL]", required=False)
@click.argument("trial", required=False, type=click.IntRange(0))
@format_option
@where_options
def show(what: str | None, trial: int | None, fmt: Format, **flags: Any) -> None:
    """Show a study, or one trial of it: STUDY, STUDY TRIAL, or TRIAL of the only study.

    The only study needs no name.

    A table draws the curve; json and csv list its points.

    \b
    Examples:
      sweep show
      sweep show digits-mlp
      sweep show digits-mlp 17
      sweep show 17
    """
    from sweep.errors import NotFoundError
    from sweep.reporting.display import width_and_color
    from sweep.reporting.rows import in_words, study_fields, trial_fields
    from sweep.reporting.tables import render_fields
    from sweep.reuse.best import opened

    is_number = what is not None and what.isdigit()
    number = int(what) if what is not None and is_number else trial
    with opened(None if is_number else what, where(flags)) as (ledger, config):
        study, trials, summary = ledger.name, ledger.trials(), ledger.summary()
    traceback = ""
    if number is None:
        fields = study_fields(summary, trials)
    else:
        found = [t for t in trials if t.number == number]
        if not found:
            held = f"trials 0 to {len(trials) - 1}" if trials else "no trials yet"
            raise NotFoundError(f"study {study!r} has {held}, but not {number}")
        fields = trial_fields(found[0], study, _checkpoint(found[0], config))
        if fmt != "json" and (failure := fields.get("failure")):
            fields["failure"] = {k: v for k, v in failure.items() if k != "traceback"}
            traceback = str(failure.get("traceback", ""))
        fields = in_words(fields) if fmt == "table" else fields
    text = render_fields(fields, fmt, is_colored=width_and_color(sys.stdout)[1])
    if traceback and fmt == "table":
        text += f"\n{traceback.rstrip()}\n"
    click.echo(text, nl=False, file=sys.stdout)


def _checkpoint(trial: Any, config: Any) -> str | None:
    """The place of the trial's checkpoint; None, with a line, if MLflow cannot be asked."""
    from sweep.errors import StoreError
    from sweep.reuse.best import checkpoint_place

    try:
        return checkpoint_place(trial, config)
    except StoreError as error:
        click.echo(f"sweep: the checkpoint may be in MLflow: {error}", err=True)
        return None
