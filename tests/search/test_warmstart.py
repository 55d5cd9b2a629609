"""`sweep run --fork NEW`: which old trials fit, how many, and why the others do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from searches import INLINE, Call

import sweep
from sweep.config.settings import RunConfig
from sweep.ledger.study import open_study
from sweep.ledger.trials import LedgerTrial
from sweep.objective import Objective
from sweep.search.warmstart import MAX_CARRIED, as_history, carry, differences, incomparable
from sweep.space import parse_space

NARROW = """# Half of it.
parameters:
  optimizer: {choices: [Adam]}
  lr: {float: [1e-3, 0.02], log: true}
  hidden: {widths: [16, 128], step: 16, layers: [1, 2]}
fixed: {schedule: cosine}
"""
FORK = ("run", "--study", "six", "--executor", "inline", "--threads", "1", "--sampler", "random")


def study(name: str) -> tuple[list[LedgerTrial], list[dict[str, Any]], dict[str, Any]]:
    """Trials, carried trials and configuration."""
    ledger = open_study(RunConfig().storage, name)
    found = ledger.trials(), ledger.carried(), ledger.config
    ledger.close()
    return found


def fits(trial: LedgerTrial) -> bool:
    values = trial.hyperparameters
    return values["optimizer"] == "Adam" and 1e-3 <= values["lr"] <= 0.02


@pytest.fixture
def narrow(six: Path) -> Path:
    (six / "narrow.yaml").write_text(NARROW)
    return six


def told(n: int, new: str, n_old: int = 6, old: str = "six") -> str:
    """The first line of a fork."""
    verb = "informs" if n == 1 else "inform"
    of_old = f"{n} of the {n_old} trials of {old} {verb}"
    return f"{of_old} the sampler of {new}, which has none of them itself"


def test_a_fork_says_how_many_fit_and_why_the_others_do_not(narrow: Path, call: Call) -> None:
    """Numbers and reasons on standard error; the new study has those trials beside its own; the
    old one is as it was; both are in agreement."""
    old, _, _ = study("six")
    good = [t for t in old if fits(t)]
    other_optimizer = sum(t.hyperparameters["optimizer"] != "Adam" for t in old)
    other_lr = len(old) - len(good) - other_optimizer
    assert good
    assert other_optimizer
    code, out, errors = call(
        *FORK, "--space", "narrow.yaml", "--fork", "narrowed", "--trials", "3", "--population", "1"
    )
    assert code == 0, errors
    assert errors[0] == told(len(good), "narrowed")
    reasons = {line.partition(": ")[2]: line.split()[0] for line in errors[1:]}
    assert reasons.pop("optimizer must be one of Adam") == str(other_optimizer)
    assert sum(map(int, reasons.values())) == other_lr
    new, carried, config = study("narrowed")
    assert "narrowed: 3 of 3 trials" in out
    assert len(new) == 3
    assert sorted(c["number"] for c in carried) == sorted(t.number for t in good)
    assert {c["number"]: c["value"] for c in carried} == {t.number: t.value for t in good}
    assert (config["epochs"], config["space"]) == (3, "narrow.yaml")
    kept = [dict(t.hyperparameters) for t in good]
    assert not [t for t in new if dict(t.hyperparameters) in kept], "they are known: not again"
    assert [(t.number, t.value) for t in study("six")[0]] == [(t.number, t.value) for t in old]
    assert call("doctor", "narrowed")[0] == 0
    assert call("doctor", "six")[0] == 0


def test_the_same_fork_again_continues(narrow: Path, call: Call) -> None:
    """Nothing is carried twice; more trials are added to the new study."""
    fork = (*FORK, "--space", "narrow.yaml", "--fork", "narrowed", "--population", "1")
    assert call(*fork, "--trials", "1")[0] == 0
    before = study("narrowed")[1]
    assert call(*fork, "--trials", "2")[0] == 0
    new, carried, _ = study("narrowed")
    assert (len(new), carried) == (2, before)


@pytest.mark.usefixtures("six")
def test_a_fork_of_a_wider_space_takes_all(call: Call) -> None:
    """One line, no reasons."""
    sweep.run(study="few", trials=2, epochs=1, space="mlp_small", baseline=False, **INLINE)
    Path("wide.yaml").write_text(
        "# More.\nparameters:\n  optimizer: {choices: [SGD, Adam, RMSprop]}\n"
        "  lr: {float: [1e-5, 0.5], log: true}\n"
        "  hidden: {widths: [8, 256], step: 8, layers: [1, 3]}\n"
        "  momentum: {float: [0.0, 0.95], when: {optimizer: [SGD, RMSprop]}}\n"
        "  schedule: {choices: [constant, cosine]}\n"
    )
    fork = ("run", "--study", "few", "--space", "wide.yaml", "--fork", "wide", "--dry-run")
    code, _, errors = call(*fork)
    assert (code, errors) == (0, [told(2, "wide", 2, "few")])
    assert not Path("mlruns/.sweep/wide").exists()


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (
            ("--metric", "val_loss"),
            "their scores are for --metric val_acc, but now it",
        ),
        (("--data", "mnist"), "their scores are for --data digits, but now it is mnist"),
        (("--direction", "minimize"), "their scores are for --direction maximize, but now it"),
    ],
)
def test_scores_of_something_else_are_not_carried(
    six: Path, call: Call, more: tuple[str, ...], reason: str
) -> None:
    """Another metric, direction or data set: nothing that the sampler could learn from."""
    code, _, errors = call(*FORK, *more, "--fork", "other", "--dry-run")
    assert code == 0
    assert errors[0] == told(0, "other")
    assert errors[1].startswith(f"  6 do not: {reason}")


@pytest.mark.usefixtures("six")
def test_a_fork_needs_a_name_of_its_own(call: Call) -> None:
    """Neither its parent's nor that of a study that has trials; nor can nothing be forked."""
    code, _, errors = call(*FORK, "--fork", "six")
    assert (code, errors) == (
        2, ["sweep: --fork NEW must be another name than that of the study, 'six'"]
    )  # fmt: skip
    sweep.run(study="taken", trials=1, epochs=3, space="mlp_small", sampler="random", **INLINE)
    code, _, errors = call(*FORK, "--fork", "taken", "--trials", "2", "--population", "1")
    assert code == 2
    assert errors[-1] == "sweep: study 'taken' has trials of its own: --fork NEW makes a new study"
    assert study("taken")[1] == []
    code, _, errors = call("run", "--study", "sxi", "--fork", "new")
    assert (code, len(errors)) == (2, 1)
    assert "did you mean six?" in errors[0]


@pytest.mark.usefixtures("six")
def test_a_changed_space_without_fork_is_refused_with_what_changed(call: Call) -> None:
    """Line by line, and --fork is named."""
    Path("narrow.yaml").write_text(NARROW)
    code, _, errors = call(*FORK, "--space", "narrow.yaml", "--trials", "9", "--population", "1")
    assert (code, len(errors)) == (2, 1)
    assert "in the search space, lr: was " in errors[0]
    assert "in the search space, momentum: was " in errors[0]
    assert "--fork NEW" in errors[0]


@pytest.mark.usefixtures("six")
def test_a_fork_trains_nothing_that_it_knows(call: Call) -> None:
    """Of four configurations the old study trained two: the new one trains the other two."""
    Path("four.yaml").write_text(
        "# Four.\nparameters:\n  lr: {choices: [0.1, 0.01]}\n  optimizer: {choices: [SGD, Adam]}\n"
        "fixed:\n  hidden: [16]\n"
    )
    settings = {"space": "four.yaml", "epochs": 1, "baseline": False, "sampler": "random"}
    sweep.run(study="few", trials=2, **settings, **INLINE)
    known = [t.hyperparameters for t in study("few")[0]]
    code, out, errors = call("run", "--study", "few", "--fork", "rest", "--trials", "4")
    assert (code, errors) == (0, [told(2, "rest", 2, "few")])
    new = [t.hyperparameters for t in study("rest")[0]]
    assert len(new) == 2
    assert len({str(sorted(values.items())) for values in [*known, *new]}) == 4
    assert "rest: 2 of 4 trials" in out


# without a search


def test_differences_are_told_by_name() -> None:
    """Gone, new, changed and changed conditions; comments and layout are no difference."""
    old = parse_space(
        "# A.\nparameters:\n  lr: {float: [0.1, 0.2]}\n  dropout: {float: [0.0, 0.5]}\n", "a"
    )
    same = parse_space(
        "# B.\nparameters:\n  lr:\n    float: [0.1, 0.2]\n  dropout: {float: [0, 0.5]}\n", "a"
    )
    new = parse_space(
        "# C.\nparameters:\n  lr: {float: [0.1, 0.3]}\n  optimizer: {choices: [SGD]}\n", "a"
    )
    assert differences(old, same) == []
    told = differences(old, new)
    assert [line.split(":")[0] for line in told] == ["lr", "dropout", "optimizer"]
    assert "was" in told[0]
    assert told[1].endswith("is gone")
    assert told[2].startswith("optimizer: is new")


@pytest.mark.usefixtures("six")
def test_the_best_are_carried_first_and_not_too_many() -> None:
    """Best first by the direction; what is beyond the bound is counted."""
    trials, _, config = study("six")
    space = parse_space(NARROW.replace("[Adam]", "[SGD, Adam]").replace("0.02", "0.5"), "s")
    for direction in ("maximize", "minimize"):
        kept, _ = carry(space, trials, Objective("", direction))
        values = [t["value"] for t in kept]
        assert values == sorted(values, reverse=direction == "maximize")
    best = [t for t in trials if fits(t)][:1]
    many, reasons = carry(space, best * 1001, Objective("", "maximize"))
    assert len(many) == MAX_CARRIED
    assert reasons == {f"the best {MAX_CARRIED} are enough": 1}
    history = as_history(space, many[:2])
    assert [t.value for t in history] == [many[0]["value"]] * 2
    assert history[0].params["lr"] == many[0]["hyperparameters"]["lr"]
    assert incomparable(RunConfig(), config, "maximize") == ""
    assert incomparable(RunConfig(direction="maximize"), config, "maximize") == ""
