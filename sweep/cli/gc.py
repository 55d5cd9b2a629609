"""`sweep gc`."""

from __future__ import annotations

from typing import Any

import click

from sweep.cli.options import study_argument, where, where_options


@click.command(short_help="Free the room that poor trials' checkpoints take.")
@study_argument
@click.option("--keep", type=click.IntRange(1), default=5, metavar="K",
              help="Best trials that keep checkpoint and model. [default: 5]")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Show what would go, then leave.")
@where_options
def gc(study: str | None, keep: int, dry_run: bool, **flags: Any) -> None:
    """Remove checkpoints and models of STUDY's trials outside the best K.

    Parameters and metrics are never deleted, nor what an interrupted trial needs to go on. A trial
    stays that a registered model, a tag of your own or another run refers to.

    \b
    Example:
      sweep gc digits-mlp --keep 10 --dry-run
    """
    from sweep.keeping import gc as housekeeping
    from sweep.reuse.best import owned
    from sweep.search.upkeep import bring_up
    from sweep.tracking import artifacts

    with owned(study, where(flags)) as (ledger, config):
        if not dry_run and not ledger.is_settled:  # MLflow may still need the files
            bring_up(config, ledger)
        trials = ledger.trials()
        stored = artifacts.stored_files(config.tracking_uri, config.study_name)
        removals = housekeeping.to_remove(config, trials, stored, keep, orphans=True)
        for removal in removals:
            if removal.kept_by:
                click.echo(f"trial {removal.number} stays: {removal.kept_by}")
            else:
                click.echo(f"{removal.n_bytes / 1e6:8.2f} MB  {removal.where}")
        if not dry_run:
            housekeeping.remove(removals)
    removals = [removal for removal in removals if not removal.kept_by]
    total = sum(removal.n_bytes for removal in removals) / 1e6
    click.echo(f"{total:8.2f} MB {'would be freed' if dry_run else 'freed'}")
