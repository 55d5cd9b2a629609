"""Samplers, pruners and duplicates: what the driver asks Optuna."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from searches import FREE_SPACE, SIX_SPACE, TESTS

from sweep.config.settings import RunConfig
from sweep.errors import ConfigError, SpaceError
from sweep.ledger.study import Ledger, create_study, open_study
from sweep.ledger.trials import HYPERPARAMETERS
from sweep.search.proposals import Proposals
from sweep.search.pruners import PRUNERS, make_pruner
from sweep.search.samplers import SAMPLERS, find_sampler
from sweep.space import Space, canonical_key, load_space, parse_space
from sweep.trial import EpochReport, TrialFinished, TrialState, derive_seed

HISTORY = 100


def proposals(
    space: Space, sampler: str = "random", pruner: str = "none", seed: int = 0
) -> Proposals:
    """Proposals of a maximizing study of five epochs."""
    return Proposals(space, RunConfig(sampler=sampler, pruner=pruner, seed=seed, epochs=5))


def proposed(space: Space, sampler: str, n: int, seed: int = 0) -> list[dict[str, object]]:
    """The first `n` configurations of a search whose scores depend on the learning rate."""
    made, found = proposals(space, sampler, seed=seed), []
    for number in range(n):
        proposal = made.ask(number)
        assert proposal is not None
        found.append(dict(proposal.hyperparameters))
        made.tell(number, TrialState.COMPLETE, 1 / (1 + proposal.hyperparameters["lr"]))
    return found


@pytest.mark.parametrize(
    ("sampler", "space_name"),
    [(s, "mlp") for s in SAMPLERS if s != "grid"]
    + [(s, "mlp_regularized") for s in SAMPLERS if s not in ("grid", "gp")],  # gp is slow
)
def test_every_sampler_proposes_what_the_space_holds(sampler: str, space_name: str) -> None:
    """Proposals are inside the space with its conditions, differ, and warn of nothing."""
    space = load_space(space_name)
    found = proposed(space, sampler, 15)
    assert [space.problems_of(configuration) for configuration in found] == [{}] * 15
    assert len({canonical_key(configuration) for configuration in found}) == 15
    for configuration in found:
        assert ("momentum" in configuration) == (configuration["optimizer"] in ("SGD", "RMSprop"))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_finds_all_of_a_small_space(sampler: str) -> None:
    """Six of six configurations are proposed once each, and then there are no more."""
    space = parse_space(SIX_SPACE, "six")
    made, seen = proposals(space, sampler), set()
    for number in range(6):
        proposal = made.ask(number)
        assert proposal is not None
        seen.add(canonical_key(proposal.hyperparameters))
        made.tell(number, TrialState.COMPLETE, 0.5)
    assert len(seen) == 6
    assert made.ask(6) is None


def test_grid_refuses_an_endless_space() -> None:
    """A grid of a continuous parameter is refused before anything is trained."""
    with pytest.raises(SpaceError, match="a grid needs a step or choices for lr"):
        proposals(load_space("mlp"), "grid")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_population_of_running_trials_has_no_two_alike(sampler: str) -> None:
    """Many proposals without a single result are all different."""
    space = parse_space(FREE_SPACE, "free") if sampler != "grid" else parse_space(SIX_SPACE, "six")
    made = proposals(space, sampler)
    found = [made.ask(number) for number in range(6)]
    assert len({canonical_key(p.hyperparameters) for p in found if p is not None}) == 6


def test_proposals_depend_on_seed_and_number() -> None:
    """The same study seed gives the same proposals, another seed others."""
    space = load_space("mlp")
    assert proposed(space, "tpe", 12) == proposed(space, "tpe", 12)
    assert proposed(space, "tpe", 12) != proposed(space, "tpe", 12, seed=1)


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if s != "grid"])
def test_a_resumed_search_does_not_repeat_itself(sampler: str) -> None:
    """What is proposed after a restart differs from everything before it."""
    space = load_space("mlp")
    before = proposals(space, sampler)
    trials = []
    for number in range(8):
        proposal = before.ask(number)
        assert proposal is not None
        frozen = proposal.frozen
        before.tell(number, TrialState.COMPLETE, number / 8)
        frozen.state, frozen.values = TrialState.COMPLETE, [number / 8]
        trials.append(frozen)
    import optuna

    finished = [
        optuna.trial.create_trial(
            state=optuna.trial.TrialState.COMPLETE, value=t.values[0], params=t.params,
            distributions=t.distributions, user_attrs=t.user_attrs,
        )
        for t in trials
    ]  # fmt: skip
    after = proposals(space, sampler)
    after.remember(finished)
    seen = {canonical_key(t.user_attrs["sweep:hyperparameters"]) for t in finished}
    for number in range(8, 14):
        proposal = after.ask(number)
        assert proposal is not None
        assert canonical_key(proposal.hyperparameters) not in seen
        after.tell(number, TrialState.COMPLETE, 0.5)


USER_SAMPLER = """
from optuna.samplers import RandomSampler

class Mine(RandomSampler):
    pass

class Seedless(RandomSampler):
    def __init__(self):
        super().__init__(seed=3)

class NotASampler:
    pass
"""


@pytest.fixture
def user_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of the user's own, in the current folder."""
    tmp_path.joinpath("my_samplers.py").write_text(textwrap.dedent(USER_SAMPLER))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("user_package")
def test_a_sampler_of_the_users_own() -> None:
    """Any class derived from BaseSampler proposes, whether it takes a seed or not."""
    space = load_space("mlp")
    assert len(proposed(space, "my_samplers:Mine", 5)) == 5
    assert len(proposed(space, "my_samplers:Seedless", 5)) == 5
    with pytest.raises(ConfigError, match="derived from Optuna's BaseSampler"):
        find_sampler("my_samplers:NotASampler")
    with pytest.raises(ConfigError, match="has no 'Mien'"):
        find_sampler("my_samplers:Mien")
    with pytest.raises(ConfigError, match="cannot be imported"):
        find_sampler("no_such_module:Mine")


@pytest.mark.parametrize("pruner", PRUNERS)
def test_every_pruner_lets_good_trials_live(pruner: str) -> None:
    """A trial that gets better each epoch and leads is never ended; others may be."""
    made = proposals(parse_space(FREE_SPACE, "free"), pruner=pruner)
    for number in range(12):
        assert made.ask(number) is not None
        for epoch in range(1, 6):
            made.report(number, epoch, 0.1 * epoch)
        made.tell(number, TrialState.COMPLETE, 0.5)
    assert made.ask(12) is not None
    assert not any(made.report(12, epoch, 0.2 * epoch) for epoch in range(1, 6))


@pytest.mark.parametrize("pruner", [p for p in PRUNERS if p != "none"])
def test_every_pruner_ends_poor_trials(pruner: str) -> None:
    """A trial that falls from epoch to epoch and is last of all is ended."""
    made = proposals(parse_space(FREE_SPACE, "free"), pruner=pruner)
    was_ended = []
    for number in range(24):
        assert made.ask(number) is not None
        is_poor = number >= 12
        scores = [-e if is_poor else 1.0 for e in range(1, 6)]
        ended = any(made.report(number, e, value) for e, value in enumerate(scores, start=1))
        made.tell(number, TrialState.PRUNED if ended else TrialState.COMPLETE, 0.5)
        if is_poor:
            was_ended.append(ended)
    assert any(was_ended)


def test_no_pruner_ends_nothing() -> None:
    """none is Optuna's null pruner."""
    assert type(make_pruner("none", 5)).__name__ == "NopPruner"


def test_a_trial_outlives_the_history_it_was_proposed_from() -> None:
    """A trial that runs while older ones are forgotten ends as usual, and is known afterwards."""
    space = load_space("mlp")
    source = proposals(space, "random")
    made = Proposals(space, RunConfig(epochs=5, history=HISTORY))
    running = made.ask(0)
    assert running is not None
    finished = []
    for number in range(1, 2 * HISTORY):
        proposal = source.ask(number)
        assert proposal is not None
        template = proposal.frozen
        finished.append(
            optuna.trial.create_trial(
                value=number / 1000, params=template.params,
                distributions=template.distributions, user_attrs=template.user_attrs,
            )
        )  # fmt: skip
    made.remember(finished)
    later = made.ask(2 * HISTORY)  # history is cut here
    assert later is not None
    assert not made.report(0, 1, 0.5)
    made.tell(0, TrialState.COMPLETE, 0.5)
    made.tell(2 * HISTORY, TrialState.COMPLETE, 0.6)
    assert made.is_known(running.hyperparameters)
    assert all(made.is_known(t.user_attrs[HYPERPARAMETERS]) for t in finished)


def test_a_bounded_history_is_the_best_and_the_latest() -> None:
    """TPE proposes otherwise from ten trials than from sixty; a wider bound changes nothing."""
    space, source = load_space("mlp"), proposals(load_space("mlp"), "random")
    finished = []
    for number in range(60):
        proposal = source.ask(number)
        assert proposal is not None
        finished.append(
            optuna.trial.create_trial(
                value=number % 7 / 7, params=proposal.frozen.params,
                distributions=proposal.frozen.distributions,
                user_attrs=proposal.frozen.user_attrs,
            )
        )  # fmt: skip
        finished[-1].number = number
    asked = []
    for history in (None, 100, 10):
        made = Proposals(space, RunConfig(epochs=5, history=history))
        made.remember(finished)
        found = made.ask(60)
        assert found is not None
        asked.append(found.params)
    assert asked[0] == asked[1] != asked[2]


# --- a search in two parts is a search in one


def scores(configuration: Mapping[str, Any], n_epochs: int = 9) -> list[float]:
    """A made-up curve, upwards, that depends on the configuration alone."""
    seed = derive_seed(0, canonical_key(configuration))
    return [1 - (0.2 + seed % 1000 / 1000) / epoch**0.5 for epoch in range(1, n_epochs + 1)]


class Search:
    """Trials one after the other, kept in a study of an Optuna database."""

    def __init__(self, url: str, space: Space, sampler: str, pruner: str) -> None:
        self._url, self._space = url, space
        self._n_epochs = 1 if pruner == "none" else 9
        self._config = RunConfig(sampler=sampler, pruner=pruner, seed=3, epochs=9)

    def run(self, n_in_all: int) -> list[tuple[dict[str, Any], str, int]]:
        """Go on to `n_in_all` trials as a new process does; (configuration, state, epochs)."""
        made = Proposals(self._space, self._config)
        ledger, _ = create_study(self._url, "study", "maximize")
        made.remember([trial.frozen for trial in ledger.trials()])
        for number in range(len(ledger.trials()), n_in_all):
            self._train(made, ledger, number)
        trials = ledger.trials()
        ledger.close()
        return [(dict(t.hyperparameters), t.state.value, len(t.curve)) for t in trials]

    def _train(self, made: Proposals, ledger: Ledger, number: int) -> None:
        proposal = made.ask(number)
        assert proposal is not None
        ledger.open_trial(number, proposal.frozen)
        curve: dict[int, float] = {}
        for epoch, value in enumerate(scores(proposal.hyperparameters)[: self._n_epochs], start=1):
            curve[epoch] = value
            if made.report(number, epoch, value):
                break
        state = TrialState.PRUNED if len(curve) < self._n_epochs else TrialState.COMPLETE
        attrs = made.tell(number, state, max(curve.values()))
        reports = [EpochReport(number, epoch, {"m": v}, 0) for epoch, v in curve.items()]
        record = TrialFinished(number, state, 0, max(curve.values()), None, {}, len(curve))
        ledger.close_trial(record, reports, "m", system_attrs=attrs)


MIXED_SPACE = """
parameters:
  optimizer: {choices: [SGD, Adam]}
  lr: {float: [1e-4, 1e-1], log: true}
  momentum: {float: [0.0, 0.9], when: {optimizer: SGD}}
  hidden: {widths: [8, 64], layers: [1, 2]}
"""
SMALL_SPACE = """
parameters:
  optimizer: {choices: [SGD, Adam]}
  dropout: {float: [0.0, 0.5], step: 0.1}
  hidden: {widths: [8, 16], layers: 1, step: 8}
"""
"""24 configurations: samplers repeat themselves."""
IN_TWO_PARTS = [
    *((sampler, "none", MIXED_SPACE) for sampler in SAMPLERS if sampler != "grid"),
    *((sampler, "none", SMALL_SPACE) for sampler in SAMPLERS),
    *(("random", pruner, MIXED_SPACE) for pruner in PRUNERS),
    *(
        (sampler, "hyperband", MIXED_SPACE)
        for sampler in SAMPLERS
        if sampler not in ("grid", "gp")
    ),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("sampler", "pruner", "text"), IN_TWO_PARTS)
def test_eight_and_eight_trials_are_sixteen(
    tmp_path: Path, sampler: str, pruner: str, text: str
) -> None:
    """Configurations, prunings and their epochs are those of a search that was not interrupted."""
    space = parse_space(text, "space")
    names = ("whole", "parts")
    whole, parts = (
        Search(f"sqlite:///{tmp_path / name}.db", space, sampler, pruner) for name in names
    )
    parts.run(8)
    found = parts.run(16)
    assert found == whole.run(16)
    assert pruner in ("none", "patient") or "PRUNED" in [state for _, state, _ in found]


HYPERBAND = """
    import math, sys
    from pathlib import Path
    from searches import ScriptedStudy

    def curve(spec):
        for epoch in range(1, 10):
            yield {"val_acc": 1 - abs(math.log10(spec.hyperparameters["lr"]) + 2) / epoch}

    settings = {"epochs": 9, "sampler": "random", "pruner": "hyperband", "seed": 3}
    ScriptedStudy(Path(sys.argv[1])).run(curve, trials=int(sys.argv[2]), **settings)
"""


def test_hyperband_prunes_the_same_trials_in_two_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search of 8 + 8 trials in two processes is, trial by trial, one of 16 in this one."""
    found = []
    for name, totals in (("whole", [16]), ("parts", [8, 16])):
        folder = tmp_path / name
        folder.mkdir()
        for total in totals:
            if name == "whole":
                monkeypatch.setattr(sys, "argv", ["-c", folder, str(total)])
                exec(textwrap.dedent(HYPERBAND), {})
                continue
            command = [sys.executable, "-c", textwrap.dedent(HYPERBAND), folder, str(total)]
            subprocess.run(command, cwd=TESTS, check=True)
        ledger = open_study(f"sqlite:///{folder}/optuna.db", "scripted")
        found.append([(t.hyperparameters, t.state, t.curve) for t in ledger.trials()])
        ledger.close()
    assert found[0] == found[1]
    assert TrialState.PRUNED in [state for _, state, _ in found[0]]
