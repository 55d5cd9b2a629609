"""`sweep doctor` and `sweep retry`."""

from __future__ import annotations

from typing import Any

import click

from sweep.cli.options import config_options, study_argument, where, where_options
from sweep.trial import FAILURES


@click.command(short_help="Do Optuna, MLflow and the files agree?")
@study_argument
@click.option("--fix", is_flag=True, help="Repair what disagrees. No metric is ever deleted.")
@where_options
def doctor(study: str | None, fix: bool, **flags: Any) -> int:
    """Compare what Optuna, MLflow and the checkpoint files say of STUDY.

    Every disagreement is one sentence; the exit code is 1 where some are left. `sweep run`
    brings MLflow to agree with Optuna by itself as it starts.

    \b
    Example:
      sweep doctor digits-mlp --fix
    """
    from sweep.repair.doctor import examine
    from sweep.reuse.best import owned

    with owned(study, where(flags)) as (ledger, config):
        findings = examine(config, ledger, fix=fix)
    for finding in findings:
        click.echo(f"{'repaired' if finding.is_fixed else 'found'}: {finding.sentence}")
    n_left = sum(not finding.is_fixed for finding in findings)
    click.echo(f"{config.study_name}: {len(findings)} disagreements, {n_left} left")
    return 1 if n_left else 0


@click.command(short_help="Try failed trials again.")
@study_argument
@click.option("--failed", type=click.Choice(tuple(FAILURES)), metavar="CLASS",
              help=f"Only failures of this class: {', '.join(FAILURES)}.")  # fmt: skip
@config_options(("storage", "tracking_uri", "work_dir", "trial_timeout_s", "population",
                 "accelerator", "devices", "threads"))  # fmt: skip
def retry(study: str | None, failed: str | None, **flags: Any) -> int:
    """Train each failed configuration of STUDY once more, as a new trial.

    A configuration counts once, however many of its trials failed; one that another trial got
    through is left alone. A study that is not finished goes on, too.

    \b
    Examples:
      sweep retry digits-mlp
      sweep retry digits-mlp --failed oom --population 4
    """
    from sweep import api
    from sweep.cli.run import announce, finish, search
    from sweep.reuse.best import only_study

    name = study or only_study(where(flags))
    config, space, extras = api.retry({**flags, "study": name}, failed)
    if not extras.again:
        click.echo(f"{name}: no failed trials{f' of class {failed}' if failed else ''}")
        return 0
    announce(name)
    return finish(config, search(config, space, extras))
