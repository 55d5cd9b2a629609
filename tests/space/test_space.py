"""Search spaces: what is sampled, what is read from YAML, what a configuration is called."""

import math
import pickle
import subprocess
import sys

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweep import hyperparameters as options
from sweep.config.file import Faults, plain, read_document
from sweep.errors import SpaceError
from sweep.space import (
    canonical_key,
    load_space,
    parse_space,
    run_name,
    sample,
    shipped_spaces,
    when_to_use,
)

SHIPPED = shipped_spaces()
BASE = """\
parameters:
  optimizer: {choices: [SGD, Adam]}
  lr: {float: [1e-4, 0.1], log: true}
"""


def round_trip(space, hyperparameters):
    params = space.params_for(hyperparameters)
    assert params is not None
    assert set(params) <= set(space.distributions())
    return space.suggest(optuna.trial.FixedTrial(params))


# ---------------------------------------------------------------- shipped spaces


def test_shipped_names():
    """The three spaces that the README promises are there."""
    assert {"mlp", "mlp_small", "mlp_regularized"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_spaces_round_trip(name):
    """100 samples of each shipped space come back from Optuna's parameters unchanged."""
    space = load_space(name)
    for hyperparameters in sample(space, 100, seed=1):
        assert round_trip(space, hyperparameters) == hyperparameters


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_spaces_in_a_study(name):
    """Optuna's own trials sample each shipped space, and what they stored gives the same."""
    space = load_space(name)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for configuration in space.first:
        study.enqueue_trial(space.params_for(configuration))
    for number in range(20):
        trial = study.ask()
        hyperparameters = space.suggest(trial)
        assert space.resolve(trial.params) == hyperparameters
        assert {d: trial.distributions[d] for d in trial.params}.items() <= (
            space.distributions().items()
        )
        if number < len(space.first):
            assert hyperparameters == space.first[number]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_spaces_hold_the_reference_network(name):
    """The reference network can be trial 0 of every shipped space."""
    space = load_space(name)
    params = space.params_for(options.REFERENCE, {"batch_size": 64})
    hyperparameters = space.suggest(optuna.trial.FixedTrial(params))
    assert options.REFERENCE.items() <= hyperparameters.items()
    assert hyperparameters["momentum"] == 0.0


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_spaces_say_when_to_use_them(name):
    """Line 1 of every shipped file says when to use it."""
    assert when_to_use(SHIPPED[name]).startswith("Use this")


def test_momentum_only_where_the_optimizer_has_it():
    """In `mlp`, Adam has no momentum and SGD and RMSprop always have one."""
    for hyperparameters in sample(load_space("mlp"), 100):
        assert ("momentum" in hyperparameters) == (hyperparameters["optimizer"] != "Adam")


def test_no_heavy_import():
    """Loading, listing and sampling load neither Optuna nor torch."""
    code = (
        "import sys, sweep.space as s; s.shipped_spaces(); s.sample(s.load_space('mlp'), 3);"
        "print({'optuna', 'torch', 'click', 'mlflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# ---------------------------------------------------------------- what a space can say

EVERYTHING = """\
parameters:
  kernel: {choices: [rbf, 3, 0.5, true, null, [1, 2], [a]]}
  depth: {int: [1, 9], step: 2}
  width: {int: [4, 64], log: true, when: {depth: [1, 3]}}
  rate: {float: [1e-5, 1], log: true}
  drop: {float: [0, 0.5], step: 0.1}
  nested: {float: [-1, 1], when: {width: 4, kernel: [rbf, null]}}
  layers: {widths: [8, 64], step: 8, layers: [0, 3]}
  two: {widths: [8, 9], layers: 2, when: {kernel: [[1, 2]]}}
fixed: {act: relu, shape: [3, 4]}
"""


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_round_trip(seed):
    """For every kind of parameter, suggest undoes params_for."""
    space = parse_space(EVERYTHING, is_mlp=False)
    (hyperparameters,) = sample(space, 1, seed)
    assert round_trip(space, hyperparameters) == hyperparameters
    free = {k: v for k, v in hyperparameters.items() if k not in space.fixed}
    assert round_trip(space, free) == hyperparameters
    assert not space.problems_of(hyperparameters)


def test_values_are_what_the_file_says():
    """Fixed values are included, lists are tuples, inactive parameters are absent."""
    for hyperparameters in sample(parse_space(EVERYTHING, is_mlp=False), 200):
        assert hyperparameters["act"] == "relu"
        assert hyperparameters["shape"] == (3, 4)
        assert len(hyperparameters["layers"]) <= 3
        assert all(width % 8 == 0 for width in hyperparameters["layers"])
        assert ("width" in hyperparameters) == (hyperparameters["depth"] in (1, 3))
        assert ("two" in hyperparameters) == (hyperparameters["kernel"] == (1, 2))
        assert ("nested" in hyperparameters) == (
            hyperparameters.get("width") == 4 and hyperparameters["kernel"] in ("rbf", None)
        )


def test_samples_reach_every_value():
    """Random sampling reaches both ends of a range and every choice."""
    seen = sample(parse_space(EVERYTHING, is_mlp=False), 400)
    assert {h["depth"] for h in seen} == {1, 3, 5, 7, 9}
    assert {round(h["drop"], 9) for h in seen} == {0, 0.1, 0.2, 0.3, 0.4, 0.5}
    assert len({canonical_key({"k": h["kernel"]}) for h in seen}) == 7
    assert {len(h["layers"]) for h in seen} == {0, 1, 2, 3}
    logs = [math.log10(h["rate"]) for h in seen]
    assert abs(sum(logs) / len(logs) + 2.5) < 0.3  # std of the mean is 1.44 / sqrt(400) = 0.07


def test_log_integers_are_drawn_as_optuna_draws_them():
    """An end of a logarithmic integer range has the whole of its interval, as in Optuna."""
    space = parse_space("parameters:\n  n: {int: [4, 64], log: true}\n", is_mlp=False)
    share = sum(h["n"] == 4 for h in sample(space, 4000)) / 4000
    assert abs(share - math.log(4.5 / 3.5) / math.log(64.5 / 3.5)) < 0.015  # 3.4 std of 0.0044


def test_sampling_is_seeded():
    """Equal seeds give equal samples, other seeds others."""
    space = load_space("mlp")
    assert sample(space, 5, seed=3) == sample(space, 5, seed=3) != sample(space, 5, seed=4)


def test_a_parent_may_come_later_in_the_file():
    """A condition may name a parameter that is written below it."""
    space = parse_space(
        "parameters:\n  b: {int: [0, 5], when: {a: x}}\n  a: {choices: [x, y]}\n", is_mlp=False
    )
    assert [p.name for p in space.parameters] == ["a", "b"]
    assert space.n_configurations() == 7


def test_a_condition_on_a_fixed_value_may_hold():
    """Fixing the optimizer leaves `when: {optimizer: ...}` lines in order."""
    space = parse_space(
        "parameters:\n  momentum: {float: [0, 0.9], when: {optimizer: [SGD, RMSprop]}}\n"
        "fixed: {optimizer: SGD}\n"
    )
    assert all("momentum" in h for h in sample(space, 5))


def test_first_configurations_are_resolved():
    """`first` holds complete configurations with fixed values and proper types."""
    text = BASE + "  hidden: {widths: [8, 64], layers: [1, 2]}\nfixed: {activation: tanh}\n"
    space = parse_space(text + "first:\n- {optimizer: SGD, lr: 1e-2, hidden: [32.0, 8]}\n")
    assert space.first == (
        {"activation": "tanh", "optimizer": "SGD", "lr": 0.01, "hidden": (32, 8)},
    )
    assert all(isinstance(width, int) for width in space.first[0]["hidden"])


def test_spaces_pickle():
    """A space can be sent to another process."""
    space = load_space("mlp")
    assert pickle.loads(pickle.dumps(space)) == space


def test_text_is_kept():
    """A space can be made again from the text that a study stores."""
    space = load_space("mlp")
    again = parse_space(space.text, "mlp")
    assert (again.parameters, again.first) == (space.parameters, space.first)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E3", 1000.0),
        ("-2.5e+4", -2.5e4),
        (".5", 0.5),
        ("1.", 1.0),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("+7", 7),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("no", "no"),
        ("on", "on"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("e3", "e3"),
        ("1e", "1e"),
        ("-", "-"),
        ("2020-01-01", "2020-01-01"),
        ("'1e-3'", "1e-3"),
    ],
)
def test_scalars_follow_yaml_1_2(text, value):
    """Scalars are what YAML 1.2's core schema says, not what YAML 1.1 did."""
    read = plain(read_document(f"[{text}]" if text != "-" else "['-']", Faults("s")))
    assert read == (value,)
    assert type(read[0]) is type(value)


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**60), 2**60))
def test_numbers_survive_yaml(number):
    """Whatever Python writes for a number is read as that number."""
    (read,) = plain(read_document(f"- {number!r}", Faults("s")))
    assert (read, type(read)) == (number, type(number))


@given(st.floats(1e-12, 1e12), st.sampled_from(["{:.3e}", "{:.0e}", "{:.6E}"]))
def test_scientific_notation_is_a_number(number, form):
    """Every way of writing an exponent gives a float."""
    text = form.format(number)
    assert plain(read_document(f"- {text}", Faults("s"))) == (float(text),)


# ---------------------------------------------------------------- params_for


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 1.0},
        {"lr": "0.1"},
        {"lr": True},
        {"optimizer": "AdamW"},
        {"hidden": (1024,)},
        {"hidden": (64, 64, 64, 64)},
        {"hidden": (64.5,)},
        {"hidden": 64},
        {"colour": "red"},
        {"momentum": 0.5},
    ],
)
def test_params_for_refuses_what_is_outside(change):
    """A configuration outside the space has no parameters."""
    space = load_space("mlp")
    inside = {"optimizer": "Adam", "lr": 0.01, "hidden": [64]}
    assert space.params_for(inside) == {
        "optimizer": "Adam",
        "lr": 0.01,
        "hidden.n_layers": 1,
        "hidden.0": 64,
    }
    assert space.params_for({**inside, **change}) is None


def test_params_for_fills_in_what_absence_means():
    """No momentum is momentum 0 where the space can say so; else the configuration is outside."""
    sgd = {"optimizer": "SGD", "lr": 0.01}
    text = BASE + "  momentum: {float: [LOW, 0.9], when: {optimizer: SGD}}\n"
    from_0 = parse_space(text.replace("LOW", "0"))
    assert from_0.params_for(sgd) == {**sgd, "momentum": 0.0}
    assert parse_space(text.replace("LOW", "0.1")).params_for(sgd) is None
    sized = parse_space(BASE + "  batch_size: {choices: [32, 64]}\n")
    assert sized.params_for(sgd) is None
    assert sized.params_for(sgd, {"batch_size": 64}) == {**sgd, "batch_size": 64}
    assert sized.params_for(sgd, {"batch_size": 65}) is None


def test_absent_weight_decay_of_adamw():
    """AdamW without a weight decay has torch's 0.01, the others have 0."""
    text = "parameters:\n  optimizer: {choices: [Adam, AdamW]}\n"
    space = parse_space(text + "  weight_decay: {choices: [0, 0.01]}\n")
    assert space.params_for({"optimizer": "AdamW"})["weight_decay"] == 0.01
    assert space.params_for({"optimizer": "Adam"})["weight_decay"] == 0


def test_params_for_null():
    """A null is a value where it is a choice, else the same as absence."""
    space = parse_space(BASE + "  clip_norm: {choices: [null, 1.0]}\n")
    sgd = {"optimizer": "SGD", "lr": 0.01}
    assert space.params_for(sgd) == space.params_for({**sgd, "clip_norm": None})
    assert load_space("mlp").params_for(
        {"optimizer": "Adam", "lr": 0.01, "hidden": (64,), "momentum": None}
    )


# ---------------------------------------------------------------- counting and grids

GRID = """\
parameters:
  a: {choices: [x, y, [1]]}
  b: {int: [1, 3], when: {a: x}}
  c: {float: [0, 0.3], step: 0.1, when: {b: [1, 2]}}
  d: {widths: [1, 2], layers: [1, 2]}
"""


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_n_configurations_counts_what_brute_force_visits():
    """Optuna's BruteForceSampler comes to as many configurations as are counted, all different."""
    space, seen = parse_space(GRID, is_mlp=False), set()

    def objective(trial):
        hyperparameters = space.suggest(trial)
        assert space.resolve(trial.params) == hyperparameters
        seen.add(canonical_key(hyperparameters))
        return 0.0

    study = optuna.create_study(sampler=optuna.samplers.BruteForceSampler(seed=0))
    study.optimize(objective, n_trials=100)
    assert space.n_configurations() == len(seen) == len(study.trials) == (2 * 4 + 1 + 2) * 6


def test_grid_refuses_what_is_continuous_or_too_large():
    """A grid names each parameter that is continuous, and says when it is too large."""
    text = "parameters:\n  a: {float: [0, 1]}\n  b: {float: [0, 1]}\n  c: {int: [0, 9]}\n"
    space = parse_space(text, is_mlp=False)
    with pytest.raises(SpaceError, match="needs a step or choices for a") as caught:
        space.check_grid()
    assert len(caught.value.faults) == 2
    assert space.n_configurations() is None
    with pytest.raises(SpaceError, match="at most 9 points, but got 10"):
        parse_space("parameters:\n  c: {int: [0, 9]}\n", is_mlp=False).check_grid(n_max=9)


# ---------------------------------------------------------------- names


def test_canonical_key():
    """Order, int or float, list or tuple make no difference; every real difference does."""
    key = canonical_key({"a": 1, "b": (64, 32), "c": 0.1 + 0.2})
    assert key == canonical_key({"c": 0.3, "b": [64.0, 32], "a": 1.0})
    others = [{"a": True}, {"a": "1"}, {"a": None}, {"a": (1,)}, {"a": 1.5}, {"b": 1}, {}]
    keys = {canonical_key(other) for other in [{"a": 1}, *others]}
    assert len(keys) == len(others) + 1


@given(st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False) | st.integers()))
def test_canonical_key_ignores_order(values):
    """A key does not depend on the order of the names."""
    assert canonical_key(values) == canonical_key(dict(reversed(values.items())))


def test_run_name():
    """A run's name holds optimizer, learning rate and widths, or the first few values."""
    shown = {"momentum": 0.9, "hidden": (256, 64), "lr": 0.0012, "optimizer": "Adam"}
    assert run_name(17, shown) == "t017 Adam lr=1.2e-3 256-64"
    assert run_name(0, {"optimizer": "SGD", "lr": 0.01, "hidden": ()}) == "t000 SGD lr=0.01 linear"
    assert run_name(1234, {"kernel": "rbf", "c": 1.0}) == "t1234 kernel=rbf c=1"
    assert run_name(3, {}) == "t003"
    assert len(run_name(3, {f"name{i}": "x" * 20 for i in range(9)})) <= 60
