"""What came out of a study: the sentences and figures at the top of its page."""

from __future__ import annotations

from sweep.appraisal import Interval
from sweep.reporting.formats import format_duration, format_metric
from sweep.reporting.report.facts import StudyFacts, epochs_of
from sweep.reporting.report.findings import quoted, values_of
from sweep.reporting.summary import gain
from sweep.space import run_name
from sweep.trial import StudyInfo, TrialState


def verdict(facts: StudyFacts) -> list[str]:
    """Best score, corrected score, gain over the reference, what more trials would give, cost."""
    if not facts.best_first:
        return ["No trial completed, so there is no best one.", cost(facts)]
    best = facts.best_first[0]
    name = best.result.get("name") or run_name(best.number, best.hyperparameters)
    epoch = best.result.get("best_epoch")
    at = f" in epoch {epoch} of {epochs_of(best)}" if epoch else ""
    objective = facts.objective
    first = (
        f"Best {quoted(objective.metric)}: {format_metric(best.value)} ({objective.extreme}) by "
        f"trial {best.number}, {quoted(name)}{at}."
    )
    return [first, *_corrected(facts), _gain(facts), *_more(facts), cost(facts)]


def configuration(facts: StudyFacts) -> list[str]:
    """The best trial's configuration."""
    if not facts.best_first or not facts.best_first[0].hyperparameters:
        return []
    return [f"Its configuration: {quoted(values_of(facts.best_first[0]))}."]


def tiles(facts: StudyFacts) -> list[tuple[str, str, str]]:
    """The same as figures: (what, value, more about it)."""
    said = facts.appraisal
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
            ("gain over the reference", f"{said.gain.value:+.4g}",
             f"better with probability {_percent(said.p_better)}")
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


def _corrected(facts: StudyFacts) -> list[str]:
    said, n_scored = facts.appraisal, len(facts.best_first)
    if said is None or said.corrected is None:
        why = said.why_not.rstrip(".") if said else "the study holds nothing to correct it with"
        if n_scored < 2:
            return []
        return [
            f"That is the best of {n_scored} scores, so part of it is luck: a new sample of data "
            f"will show less. How much cannot be said, because {_lowered(why)}."
        ]
    return [
        f"Corrected for having been chosen among {n_scored} trials: "
        f"{format_metric(said.corrected.value)}, 95 % interval {_between(said.corrected)}"
        + (f" (from {said.n_samples:,} validation samples)." if said.n_samples else ".")
    ]


def _lowered(sentence: str) -> str:
    """A sentence to go on with; a word of capitals or a name stays."""
    first, _, rest = sentence.partition(" ")
    is_plain = first.isalpha() and first[1:].islower()
    return f"{first.lower() if is_plain else first} {rest}".strip()


def _gain(facts: StudyFacts) -> str:
    said, baseline, best = facts.appraisal, facts.end.baseline_value, facts.best_first[0]
    if said is not None and said.gain is not None:
        value, odds = said.gain, f"with probability {_percent(said.p_better)}"
        reached = f" ({format_metric(said.reference.value)})" if said.reference else ""
        if value.low > 0:
            return (
                f"The search helped: the choice is {format_metric(value.value)} better than the "
                f"reference{reached}, 95 % interval {_between(value)}, {odds}."
            )
        return (
            f"No evidence that the search helped: the choice differs from the reference{reached} "
            f"by {value.value:+.4g}, 95 % interval {_between(value)}; it is better {odds}."
        )
    if baseline is None:
        return "The study has no baseline, so it does not say what the search gained."
    if best.number == 0:
        return "Nothing was better than trial 0, the baseline: the search did not help."
    study = StudyInfo(
        facts.name, 0, facts.objective.metric, facts.objective.direction, 0, {}, "", "", 0
    )
    return f"As trained it is {gain(study, best.value or 0.0, baseline)}."


def _more(facts: StudyFacts) -> list[str]:
    if facts.appraisal is None or facts.appraisal.more is None:
        return []
    n_more, amount = facts.appraisal.more
    return [f"{n_more} more trials of the same kind would gain about {format_metric(amount)}."]


def _between(value: Interval) -> str:
    return f"{format_metric(value.low)} to {format_metric(value.high)}"


def _percent(share: float | None) -> str:
    """A probability, never rounded to certainty."""
    if share is None:
        return "unknown"
    return "above 99 %" if share > 0.99 else "below 1 %" if share < 0.01 else f"{share:.0%}"
