"""Trials as rows and fields."""

from __future__ import annotations

import optuna
from reporting_records import curve

from sweep.ledger.trials import LedgerTrial
from sweep.reporting.rows import in_words, shown_columns, trial_columns, trial_fields, trial_row
from sweep.reporting.tables import render_fields, render_rows
from sweep.trial import TrialState

FAILURE = {
    "kind": "exception",
    "message": "ValueError: no",
    "traceback": "Traceback ...\n  File own.py\nValueError: no\n",
}


def a_trial(state=TrialState.COMPLETE, **changes):
    frozen = optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL)
    values = {
        "number": 3, "state": state, "value": 0.98, "params": {},
        "hyperparameters": {"lr": 0.1, "hidden": (256, 64)},
        "result": {"best_epoch": 2, "n_epochs": 3, "seconds": 1.5, "metrics": {"epoch_s": 0.5}},
        "curve": {r.epoch: r.metrics["val_acc"] for r in curve(3, 3)[1:]},
        "start_epoch": 0, "frozen": frozen,
    }  # fmt: skip
    return LedgerTrial(**{**values, **changes})


def test_a_hyperparameter_never_hides_a_column():
    """One that is named like a column gets `hp.` before its name."""
    row = trial_row(a_trial(hyperparameters={"state": "solid", "seconds": 9, "message": "m"}))
    assert (row["state"], row["hp.state"]) == ("COMPLETE", "solid")
    assert (row["seconds"], row["hp.seconds"]) == (1.5, 9)
    assert (row["message"], row["hp.message"]) == (None, "m")


def test_failures_are_the_last_columns_and_only_where_there_are_some():
    """Class and message of failures come last."""
    rows = [trial_row(a_trial())]
    assert "failure" not in trial_columns(rows)
    rows.append(trial_row(a_trial(TrialState.FAIL, result={"failure": FAILURE})))
    assert trial_columns(rows)[-2:] == ["failure", "message"]
    assert rows[1]["message"] == "ValueError: no"


def test_where_all_failed_the_reasons_are_what_is_seen():
    """On 60 cells the message of a failed trial is whole, its hyperparameters give way."""
    lr = {f"parameter_{n}": 0.1 for n in range(9)}
    failed = [a_trial(TrialState.FAIL, result={"failure": FAILURE}, hyperparameters=lr)]
    rows = [trial_row(trial) for trial in failed]
    columns, least_first = shown_columns(trial_columns(rows), rows)
    lines = render_rows(rows, columns, "table", width=60, least_first=least_first).splitlines()
    assert lines[0].split()[:3] == ["number", "failure", "message"]
    assert lines[1].split()[:4] == ["3", "exception", "ValueError:", "no"]
    assert max(map(len, lines)) <= 60
    some = [*rows, trial_row(a_trial())]
    assert shown_columns(trial_columns(some), some)[0][-2:] == ["failure", "message"]


def test_a_traceback_is_shown_line_by_line():
    """A failed trial is shown with the traceback that was kept, each line on its own."""
    trial = a_trial(TrialState.FAIL, result={"failure": FAILURE}, curve={})
    fields = trial_fields(trial, "s", None)
    lines = render_fields(in_words(fields), "table").splitlines()
    at = lines.index("  traceback:")
    assert lines[at + 1 : at + 4] == [
        "    Traceback ...",
        "      File own.py",
        "    ValueError: no",
    ]


def test_best_epoch_and_last_epoch_are_both_shown():
    """The kept epoch with its metrics, without bookkeeping, and the number of epochs."""
    fields = in_words(trial_fields(a_trial(), "s", "runs:/x/checkpoint/best.ckpt"))
    assert (fields["best_epoch"], fields["n_epochs"], fields["best_metrics"]) == (2, 3, {})
    assert fields["checkpoint"] == "runs:/x/checkpoint/best.ckpt"
    assert fields["curve"].endswith("0.9083 to 0.9243")


def test_the_end_of_a_trial_is_shown_as_a_time():
    """Its end is local time for people."""
    trial = a_trial(result={"time_ms": 1_700_000_000_000})
    lines = render_fields(in_words(trial_fields(trial, "s", None)), "table").splitlines()
    (shown,) = [line for line in lines if line.startswith("time:")]
    assert shown.split()[1].startswith("2023-11-1")
