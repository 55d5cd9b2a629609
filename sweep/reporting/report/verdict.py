"""What came out of a study: the sentences and figures at the top of its page."""

from __future__ import annotations

from sweep.appraisal import Interval
from sweep.ledger.confirmation import confirmation_in
from sweep.reporting.formats import format_duration, format_metric
from sweep.reporting.report.facts import StudyFacts, epochs_of
from sweep.reporting.report.findings import best_epoch_of, listed, quoted, values_of
from sweep.reporting.summary import gain
from sweep.space import run_name
from sweep.trial import StudyInfo, TrialState
from sweep.trust.words import (
    amount,
    appraisal_lines,
    confirmation_lines,
    format_probability,
    is_share,
)


def verdict(facts: StudyFacts) -> list[str]:
    """Best score, corrected score, gain over the reference, what more trials would give, cost."""
    if not facts.best_first:
        return ["No trial completed, so there is no best one.", cost(facts)]
    best = facts.best_first[0]
    name = best.result.get("name") or run_name(best.number, best.hyperparameters)
    epoch = best_epoch_of(best)
    at = f" in epoch {epoch} of {epochs_of(best)}" if epoch else ""
    objective = facts.objective
    first = (
        f"Best {quoted(objective.metric)}: {format_metric(best.value)} ({objective.extreme}) by "
        f"trial {best.number}, {quoted(name)}{at}."
    )
    return [first, *_ties(facts), *_worth(facts), cost(facts)]


def _ties(facts: StudyFacts) -> list[str]:
    """Trials with the same score as the best one, which is the first of them."""
    best = facts.best_first[0]
    same = [str(t.number) for t in facts.best_first[1:] if t.value == best.value]
    if not same:
        return []
    verb = "have" if len(same) > 1 else "has"
    noun = "Trials" if len(same) > 1 else "Trial"
    return [f"{noun} {listed(same)} {verb} the same score; trial {best.number} was the first."]


def configuration(facts: StudyFacts) -> list[str]:
    """The best trial's configuration."""
    if not facts.best_first or not facts.best_first[0].hyperparameters:
        return []
    model = f"import sweep; model = sweep.best({facts.name!r}).load()"
    said = [f"Its configuration: {quoted(values_of(facts.best_first[0]))}."]
    if facts.config.kind != "objective":
        of = (
            f" with the weights of epoch {epoch}"
            if (epoch := best_epoch_of(facts.best_first[0]))
            else ""
        )
        said.append(f"Its model{of}, in Python, from the folder of the search: {quoted(model)}.")
    return said


def tiles(facts: StudyFacts) -> list[tuple[str, str, str]]:
    """The same as figures: (what, value, more about it)."""
    said, direction = facts.appraisal, facts.objective.direction
    n_done = sum(trial.state is TrialState.COMPLETE for trial in facts.trials)
    figures = []
    if facts.best_first:
        best = facts.best_first[0]
        figures = [(f"best {facts.objective.metric}", format_metric(best.value),
                    f"trial {best.number}")]  # fmt: skip
    if said and said.corrected:
        value = said.corrected
        figures.append(("corrected for luck", format_metric(value.value), _between(value)))
    if said and said.gain and said.p_better is not None:
        figures.append(
            ("gain over the baseline", amount(said.gain.value, is_share(said.best, direction)),
             f"probability {format_probability(said.p_better)}")
        )  # fmt: skip
    elif facts.end.baseline_value is not None and facts.best_first:
        figures.append(("baseline, trial 0", format_metric(facts.end.baseline_value),
                        "as trained, one seed"))  # fmt: skip
    figures.append(("trials", str(len(facts.trials)), f"{n_done} completed"))
    n_epochs = sum(map(epochs_of, facts.trials))
    figures.append(("time", format_duration(facts.wall_s), f"{n_epochs:,} epochs"))
    return figures


def cost(facts: StudyFacts) -> str:
    """Time, trials and epochs in a sentence."""
    n_trials, n_epochs = len(facts.trials), sum(map(epochs_of, facts.trials))
    trained_s = sum(trial.result.get("seconds") or 0.0 for trial in facts.trials)
    return (
        f"It took {format_duration(facts.wall_s)} from the first trial's start to the last one's "
        f"end: {counted(n_trials, 'trial')}, {counted(n_epochs, 'epoch')}, "
        f"{format_duration(trained_s)} of training."
    )


def counted(number: int, noun: str) -> str:
    """`1 trial`, `1,000 trials`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _worth(facts: StudyFacts) -> list[str]:
    """What the best score is worth, and whether the search helped."""
    direction, said = facts.objective.direction, facts.appraisal
    confirmed = confirmation_lines(confirmation_in(facts.tags), direction)
    lines = [*confirmed, *appraisal_lines(said, direction)]
    if said is None or said.gain is None:
        lines.append(_as_trained(facts))
    return [f"{line.rstrip('.')}." for line in lines]


def _as_trained(facts: StudyFacts) -> str:
    baseline, best = facts.end.baseline_value, facts.best_first[0]
    if baseline is None and not facts.stored:
        return "The study has no baseline, so it does not say what the search gained"
    if baseline is None:
        how = "`first: defaults` in a space file" if not facts.config.is_mlp else "`--baseline`"
        return (
            "The study has no baseline, so it does not say what the search gained "
            f"({how} makes trial 0 one)"
        )
    if best.number == 0:
        return "Nothing was better than trial 0, the baseline: the search did not help"
    study = StudyInfo(
        facts.name, 0, facts.objective.metric, facts.objective.direction, 0, {}, "", "", 0
    )
    return f"As trained it is {gain(study, best.value or 0.0, baseline)}"


def _between(value: Interval) -> str:
    return f"{format_metric(value.low)} to {format_metric(value.high)}"
