"""A study on MLflow's pages: its description, the view of its trials, files of its own run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import tracking_records as records
from mlflow import MlflowClient
from mlflow.entities import Experiment, Run

from sweep.appraisal import Appraisal, Interval
from sweep.errors import NotFoundError
from sweep.tracking import MlflowTracker, mirror
from sweep.tracking.artifacts import artifact_of
from sweep.tracking.description import describe, verdict
from sweep.tracking.pages import VIEW_TAG, page_of, view_of
from sweep.trial import Ranked, TrialState

RANKING = [Ranked(n, f"t{n:03d} Adam", 0.9 - n / 100) for n in range(7)]
APPRAISAL = Appraisal(
    0.9, 0, corrected=Interval(0.88, 0.87, 0.89), gain=Interval(0.1, 0.05, 0.15), p_better=0.998,
    more=(50, 0.001),
)  # fmt: skip


def study_in(uri: str) -> tuple[Experiment, Run]:
    """The study's experiment and its own run."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("toy-study")
    assert experiment is not None
    (parent,) = client.search_runs([experiment.experiment_id], "tags.`sweep.role` = 'study'")
    return experiment, parent


def searched(uri: str) -> None:
    """A search of four trials."""
    tracker = MlflowTracker(uri)
    tracker.open(records.study_info())
    *trials, _ = records.search(None)
    tracker.write(trials)
    end = records.study_finished(ranking=RANKING, appraisal=APPRAISAL)
    tracker.write([end])
    tracker.close()


def test_a_running_search_says_what_leads_and_how_to_watch_it() -> None:
    """Before the first trial's end it says what wins."""
    study = records.study_info("my study")
    first, *rest = describe(study, None, ()).split("\n\n")
    assert first == "No trial is complete yet: the highest val_acc wins."
    assert rest == [
        "The search runs: 4 trials of at most 3 epochs.",
        "```\nsweep status 'my study' --watch\nsweep trials 'my study'\n```",
    ]
    first, *_ = describe(study, None, RANKING).split("\n\n")
    assert first == "Highest val_acc 0.9 by t000 Adam"


def test_a_finished_search_says_its_verdict_its_best_five_and_the_next_commands() -> None:
    """The first line is plain, the best five are a list, a link leads to all."""
    end = records.study_finished(reason="timeout")
    text = describe(records.study_info(), end, RANKING, page="#/here")
    assert text.split("\n\n") == [
        "Highest val_acc 0.9 by t000 Adam, 0.1 better than trial 0, the baseline (0.8)",
        "4 trials: 2 complete, 1 pruned, 1 fail. The search ended early (timeout).",
        "1. 0.9: t000 Adam\n2. 0.89: t001 Adam\n3. 0.88: t002 Adam\n4. 0.87: t003 Adam\n"
        "5. 0.86: t004 Adam",
        "**[All trials, best first](#/here)**",
        "```\nsweep best toy-study > best.yaml\nsweep train --config best.yaml\n"
        "sweep confirm toy-study\n"
        "sweep trials toy-study\n```",
    ]


def test_a_baseline_that_nothing_beats_is_said() -> None:
    """In the objective's direction."""
    study = records.study_info(direction="minimize")
    first, *_ = verdict(study, records.study_finished(), RANKING)
    assert first.startswith("Lowest val_acc 0.9 by t000 Adam, no better than trial 0")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "Corrected for having been chosen: 0.88 (95 % interval 0.87 to 0.89), from 0 "
             "validation samples. 10.00 points better than the baseline, corrected (95 % interval "
             "5.00 to 15.00); probability that it is better: 99.8 %. 50 more trials like these "
             "would gain about 0.10 points."),
        ({"corrected": None, "why_not": "f1 is no mean of samples", "more": None, "gain": None},
         "Not corrected for having been chosen: f1 is no mean of samples."),
    ],
)  # fmt: skip
def test_a_corrected_score_is_part_of_the_verdict(changes: dict[str, Any], said: str) -> None:
    """What is known of the score is a paragraph of its own, behind the score."""
    values = {name: getattr(APPRAISAL, name) for name in APPRAISAL.__slots__}
    appraisal = Appraisal(**{**values, **changes})
    end = dataclasses.replace(records.study_finished(), appraisal=appraisal)
    parts = verdict(records.study_info(), end, RANKING)
    assert parts[1] == said


def test_names_with_marks_of_markdown_are_shown_as_they_are() -> None:
    """Nothing of a name becomes emphasis, a link or a line of its own."""
    ranking = [Ranked(0, "t0 _a_ *b* [c](d)\n`e`", 0.5)]
    first, *_ = verdict(records.study_info(), None, ranking)
    assert first == r"Highest val_acc 0.5 by t0 \_a\_ \*b\* \[c\](d) \`e\`"


def test_experiment_and_parent_run_have_the_description(uri: str) -> None:
    """With the address of the experiment's own page, and the corrected score."""
    searched(uri)
    experiment, parent = study_in(uri)
    text = experiment.tags["mlflow.note.content"]
    assert parent.data.tags["mlflow.note.content"] == text
    assert f"]({page_of(experiment.experiment_id)})" in text
    assert "Corrected for having been chosen: 0.88" in text


def test_files_for_the_parent_run_are_its_artifacts(uri: str) -> None:
    """A later one takes the place of the first."""
    texts = {"report.html": "<p>first</p>"}
    searched(uri)
    _, parent = study_in(uri)
    assert mirror.store_texts(uri, "toy-study", texts)
    file = artifact_of(uri, parent.info.run_id, "report.html", Path("none"))
    assert file.read_text() == "<p>first</p>"
    assert mirror.store_texts(uri, "toy-study", {"report.html": "<p>second</p>"})
    assert file.read_text() == "<p>second</p>"
    assert not mirror.store_texts(uri, "another", texts)


def test_the_view_has_few_columns_worth_comparing() -> None:
    """The score, what varies, rank, state and failure; the best trial comes first."""
    names = [f"p{n}" for n in range(9)]
    space = "parameters:\n" + "".join(f"  {n}: {{float: [0, 1]}}\n" for n in ["a.b", *names])
    study = records.study_info(space_text=space, metric="val_loss", direction="minimize")
    view = json.loads(view_of(study))
    state = json.loads(view["state"])
    assert view["name"] == "Trials, best first"
    assert state["orderByAsc"] is True
    assert state["orderByKey"] == "metrics.`best_val_loss`"
    assert state["selectedColumns"] == [
        "metrics.`best_val_loss`", "params.`a.b`", *(f"params.`{n}`" for n in names[:7]),
        "tags.`sweep.rank`", "tags.`sweep.state`", "tags.`sweep.failure`",
        "attributes.`Duration`",
    ]  # fmt: skip
    assert json.loads(json.loads(view_of(records.study_info()))["state"])["orderByAsc"] is False


def test_the_view_is_saved_once(uri: str) -> None:
    """A user who changes it keeps the change."""
    searched(uri)
    experiment, _ = study_in(uri)
    assert experiment.tags[VIEW_TAG] == view_of(records.study_info())
    MlflowClient(uri).set_experiment_tag(experiment.experiment_id, VIEW_TAG, "mine")
    searched(uri)
    assert study_in(uri)[0].tags[VIEW_TAG] == "mine"


def test_the_page_of_a_study_is_found_by_its_name(uri: str) -> None:
    """One of an older sweep has no view; an unknown or deleted one is an error of one line."""
    searched(uri)
    experiment, _ = study_in(uri)
    assert mirror.page_of_study(uri, "toy-study") == page_of(experiment.experiment_id)
    client = MlflowClient(uri)
    older = client.create_experiment("older")
    assert mirror.page_of_study(uri, "older") == page_of(older, has_view=False)
    client.delete_experiment(older)
    for name in ("older", "toy-studies"):
        with pytest.raises(NotFoundError, match="study must be one of toy-study"):
            mirror.page_of_study(uri, name)


def test_a_failed_trial_has_its_kind_and_message_as_tags(uri: str) -> None:
    """Beside the state; the whole of it is a file."""
    searched(uri)
    experiment, _ = study_in(uri)
    state = TrialState.FAIL
    (run,) = MlflowClient(uri).search_runs(
        [experiment.experiment_id], f"tags.`sweep.state` = '{state}'"
    )
    assert run.data.tags["sweep.failure"] == "nan"
    assert run.data.tags["sweep.failure_message"] == "train_loss is nan"
