"""The page of odd studies: hostile names, no scores, one trial, many parameters."""

from __future__ import annotations

import dataclasses
import html
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from report_studies import accuracy, folder_config, write_study

from sweep.config.settings import RunConfig
from sweep.ledger.study import create_study, open_study
from sweep.reporting.report.axes import axes_of
from sweep.reporting.report.contents import document_of, search_command
from sweep.reporting.report.document import Document
from sweep.reporting.report.facts import facts_of
from sweep.reporting.report.html import json_text, to_html
from sweep.reporting.report.markdown import to_markdown

HOSTILE = "</script><script>alert(1)</script>"
HOSTILE_SPACE = f"""parameters:
  kind: {{choices: ["{HOSTILE}", "<img src=x onerror=alert(2)>", "{"long " * 60}"]}}
  lr: {{float: [1e-4, 0.3], log: true}}
"""


def page_of(config: RunConfig) -> Document:
    ledger = open_study(config.storage, config.study_name)
    try:
        return document_of(facts_of(ledger, config))
    finally:
        ledger.close()


def data_of(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def by_lr(values: dict[str, Any], rng: random.Random) -> float:
    return 1.0 - abs(values["lr"] - 0.01) + rng.gauss(0, 0.01)


def loss(values: dict[str, Any], rng: random.Random) -> float:
    return 2.0 - accuracy(values, rng)


def test_the_text_of_a_study_is_never_markup(tmp_path: Path) -> None:
    """Names, choices, the study's own name: escaped in HTML, in the data and in Markdown."""
    name = f"study {HOSTILE}"
    config = write_study(tmp_path, 20, space=HOSTILE_SPACE, score=by_lr, study=name)
    document = page_of(config)
    page = to_html(document)
    assert page.count("<script") == 2
    assert page.count("</script>") == 2
    assert "<img" not in page
    assert html.escape(name) in page
    choices = next(a for a in data_of(page)["axes"] if a["name"] == "kind")["choices"]
    assert HOSTILE in choices
    assert all(len(choice) <= 80 for choice in choices)
    outside_code = re.sub(r"```.*?```|`[^`]*`", "", to_markdown(document), flags=re.DOTALL)
    assert "<" not in outside_code


def test_json_in_a_script_ends_nothing() -> None:
    """No `<`, no line separators; it reads back as it was."""
    value = {"a": "</script><!--\u2028\u2029&", "b": [1, None, 0.5]}
    text = json_text(value)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == value


def test_the_same_study_has_the_same_bytes(tmp_path: Path) -> None:
    """Nothing of now, of this process or of a random state is in the page."""
    config = write_study(tmp_path, 24, epochs=4)
    assert to_html(page_of(config)) == to_html(page_of(config))


def test_the_page_needs_no_network(tmp_path: Path) -> None:
    """It names no other file, and forbids itself to ask for one."""
    page = to_html(page_of(write_study(tmp_path, 6)))
    assert "default-src 'none'" in page
    parts = re.sub(r"http://www\.w3\.org/2000/svg", "", page)
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", parts)
    assert "url(" not in parts


def test_a_study_to_be_minimised(tmp_path: Path) -> None:
    """The lowest is best, and the table begins with it."""
    config = write_study(tmp_path, 30, metric="val_loss", direction="minimize", score=loss)
    document = page_of(config)
    text = to_markdown(document)
    assert "(lowest) by trial" in text
    rows = next(s for s in document.sections if s.key == "trials").blocks[0].rows
    scores = [row[2] for row in rows if row[0] is not None]
    assert scores == sorted(scores)
    assert data_of(to_html(document))["direction"] == "minimize"


@pytest.mark.parametrize("letter", ["F", "P"])
def test_a_study_without_a_completed_trial(tmp_path: Path, letter: str) -> None:
    """Failures are named; nothing is best."""
    config = write_study(tmp_path, 5, states=letter, has_baseline=False)
    ledger = open_study(config.storage, config.study_name)
    trials = [t for t in ledger.trials() if t.number]
    facts = facts_of(ledger, config)
    ledger.close()
    text = to_markdown(document_of(dataclasses.replace(facts, trials=trials, best_first=[])))
    assert "No trial completed" in text
    if letter == "F":
        assert "4 trials of 4 failed, 3 with `nan` (the loss or the metric is not finite)" in text


def test_a_study_with_one_trial_or_none(tmp_path: Path) -> None:
    """What can be said is said."""
    text = to_markdown(page_of(write_study(tmp_path, 1)))
    assert "Nothing was better than trial 0, the baseline" in text
    assert "cannot be said from 1 score." in text
    config = folder_config(tmp_path, study="empty")
    ledger, _ = create_study(config.storage, "empty", "maximize")
    ledger.close()
    empty = page_of(config)
    assert "No trial completed" in to_markdown(empty)
    assert data_of(to_html(empty))["number"] == []


def test_scores_that_are_no_numbers(tmp_path: Path) -> None:
    """NaN and infinities are no scores; the page's JSON has null for them."""

    def odd(values: dict[str, Any], rng: random.Random) -> float:
        return rng.choice([float("inf"), 0.5 + values["lr"]])

    config = write_study(tmp_path, 20, score=odd, states="C")
    page = to_html(page_of(config))
    assert None in data_of(page)["score"]
    assert "Infinity" not in page
    assert "best val_acc</dt>" in page


def test_what_pruning_saved_and_who_ties(tmp_path: Path) -> None:
    """Against the epochs that the study gives a trial; the first of several best ones is named."""
    config = write_study(
        tmp_path, 4, score=lambda *_: 0.5, states="CPC", epochs=10, has_baseline=False
    )
    text = to_markdown(page_of(config))
    (row,) = re.findall(r"\| pruned \| 1 \| (\d+) ", text)
    saved = 10 - int(row)
    assert (
        f"1 trial of 4 ended early, pruned after {row} epochs: that saved {saved} epochs" in text
    )
    assert "Trials 2 and 3 have the same score; trial 0 was the first." in text
    assert "(`--baseline` makes trial 0 one)" in text


def test_thirty_parameters_stay_small(tmp_path: Path) -> None:
    """40 kB for the page itself and 2 kB a trial: a hundred of them in less than 400 kB."""
    names = "".join(f"  p{i:02d}: {{float: [0.0, 1.0]}}\n" for i in range(29))
    space = f"parameters:\n  lr: {{float: [1e-4, 0.3], log: true}}\n{names}"
    config = write_study(tmp_path, 30, space=space, score=by_lr, epochs=5)
    page = to_html(page_of(config))
    assert len(page) < 40_000 + 30 * 2000
    assert len(data_of(page)["axes"]) == 30


def test_another_programs_study_has_a_page(tmp_path: Path) -> None:
    """Its parameters have names of any kind; there are no settings and no curves."""
    import optuna

    url = f"sqlite:///{tmp_path}/other.db"
    study = optuna.create_study(study_name="theirs", storage=url)
    name = f"x {HOSTILE}"

    def objective(trial: optuna.Trial) -> float:
        value = trial.suggest_float(name, -1, 1) ** 2
        for step in range(100):  # of any kind, not of `--epochs`
            trial.report(value - step, step)
        return value

    study.optimize(objective, n_trials=15)
    config = RunConfig(study="theirs", storage=url, work_dir=str(tmp_path))
    document = page_of(config)
    assert "Best `value`" in to_markdown(document)
    assert "made by another program" in to_markdown(document)
    lessons = to_markdown(document).split("## What the trials teach")[1].split("\n## ")[0]
    assert "epochs" not in lessons.lower()
    assert data_of(to_html(document))["axes"][0]["name"] == name
    assert to_html(document).count("<script") == 2


def test_what_failed_is_counted_by_kind(tmp_path: Path) -> None:
    """With the message that most of them have; repeated configurations, too."""
    config = write_study(tmp_path, 26, states="CF", epochs=3)
    document = page_of(config)
    (grid,) = next(s for s in document.sections if s.key == "budget").blocks
    rows = {row[0]: row for row in grid.rows}
    n_failed = rows["failed: nan"][1] + rows["failed: oom"][1]
    assert n_failed == 13
    assert rows["failed: nan"][5] == "train_loss is nan"
    assert sum(row[1] for row in grid.rows) == 26


def test_the_command_searches_again(tmp_path: Path) -> None:
    """Settings that are not the default, and no password."""
    config = write_study(tmp_path, 3)
    ledger = open_study(config.storage, config.study_name)
    stored = {**ledger.config, "baseline": False, "patience": 3, "vary": ["lr=0.1,0.2"]}
    ledger.close()
    command = search_command(config, stored)
    assert command.startswith("sweep run --study digits-mlp-again --trials 3 ")
    assert "--no-baseline" in command
    assert "--patience 3" in command
    assert "--vary lr=0.1,0.2" in command
    secret = {**stored, "tracking_uri": "https://me:secret@host/"}
    assert "secret" not in search_command(config, secret)


def test_axes_of_a_real_study_have_the_spaces_bounds(tmp_path: Path) -> None:
    """Conditional parameters are None where they do not count."""
    config = write_study(tmp_path, 30)
    ledger = open_study(config.storage, config.study_name)
    axes = {axis.name: axis for axis in axes_of(ledger.trials())}
    ledger.close()
    assert (axes["lr"].low, axes["lr"].high, axes["lr"].is_log) == (1e-4, 0.3, True)
    assert axes["optimizer"].choices == ("SGD", "Adam", "RMSprop")
    of_adam = [v for v, o in zip(axes["momentum"].values, axes["optimizer"].values, strict=True)
               if o == 1.0]  # fmt: skip
    assert of_adam
    assert set(of_adam) == {None}
