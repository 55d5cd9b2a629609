"""The verdict: with a corrected score, without one, with none at all."""

from __future__ import annotations

import dataclasses

import pytest
from report_studies import write_study

from sweep.appraisal import Appraisal, Confirmation, Finalist, Interval
from sweep.ledger.confirmation import tags_of
from sweep.ledger.study import open_study
from sweep.reporting.report.facts import StudyFacts, facts_of
from sweep.reporting.report.verdict import tiles, verdict

HELPED = Appraisal(
    0.98, 3, corrected=Interval(0.971, 0.962, 0.978), reference=Interval(0.95, 0.94, 0.96),
    gain=Interval(0.021, 0.012, 0.031), p_better=0.9999, n_samples=270, more=(50, 0.0012),
)  # fmt: skip


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> StudyFacts:
    """A study of 16 trials, with a baseline."""
    config = write_study(tmp_path_factory.mktemp("verdict"), 16)
    ledger = open_study(config.storage, config.study_name)
    try:
        return facts_of(ledger, config)
    finally:
        ledger.close()


def said(facts: StudyFacts, appraisal: Appraisal | None) -> str:
    return "\n".join(verdict(dataclasses.replace(facts, appraisal=appraisal)))


def test_a_corrected_score_is_said_with_its_interval(facts: StudyFacts) -> None:
    """And the gain with its probability, which is never certainty; and what more would give."""
    text = said(facts, HELPED)
    assert "chosen: 0.971 (95 % interval 0.962 to 0.978), from 270 validation samples." in text
    assert "better than the baseline, corrected" in text
    assert "probability that it is better: above 99.9 %." in text
    assert "50 more trials like these would gain about 0.12 points." in text
    shown = {what: value for what, value, _ in tiles(dataclasses.replace(facts, appraisal=HELPED))}
    assert shown["corrected for luck"] == "0.9710"


def test_a_gain_that_may_be_none_is_no_evidence(facts: StudyFacts) -> None:
    """An interval that reaches 0."""
    doubtful = dataclasses.replace(HELPED, gain=Interval(0.004, -0.003, 0.01), p_better=0.81)
    text = said(facts, doubtful)
    assert "No evidence that the search helped" in text
    assert "probability that it is better: 81.0 %" in text


def test_why_there_is_no_corrected_score_is_said(facts: StudyFacts) -> None:
    """In the appraisal's own words, or that nobody kept anything."""
    none = Appraisal(0.98, 3, why_not="The metric is no mean of samples.")
    assert "Not corrected for having been chosen: The metric is no mean" in said(facts, none)
    assert "better than trial 0, the baseline" in said(facts, None)


def test_a_study_without_a_completed_trial_has_no_best(facts: StudyFacts) -> None:
    """Its cost is said all the same."""
    text = "\n".join(verdict(dataclasses.replace(facts, best_first=[], trials=facts.trials[8:9])))
    assert text.startswith("No trial completed, so there is no best one.")
    assert "1 trial, 3 epochs" in text
    assert len(tiles(dataclasses.replace(facts, best_first=[]))) == 2


def test_a_confirmed_study_says_what_its_winner_is_worth(facts: StudyFacts) -> None:
    """Before the corrected score, with the test split."""
    found = Confirmation(
        "s", "val_acc", "maximize", 5, (Finalist(3, "t003 Adam", 0.98, (0.97, 0.96)),), 3,
        Interval(0.965, 0.95, 0.98), n_trained=14, test={"test_acc": Interval(0.96, 0.95, 0.97)},
    )  # fmt: skip
    confirmed = dataclasses.replace(facts, tags={**facts.tags, **tags_of(found)})
    text = said(confirmed, HELPED)
    assert text.index("Confirmed on 5 fresh seeds (14 trainings)") < text.index("Corrected for")
    assert "0.965 (95 % interval 0.95 to 0.98) on a new seed and split, by t003 Adam." in text
    assert "Test split, test_acc 0.96 (95 % interval 0.95 to 0.97)." in text
