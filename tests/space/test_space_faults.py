"""Faults in a file of a search space: each is one message with its line."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweep.errors import NotFoundError, SpaceError
from sweep.space import load_space, parse_space, sample

BASE = """\
parameters:
  optimizer: {choices: [SGD, Adam]}
  lr: {float: [1e-4, 0.1], log: true}
"""
PIECES = [
    *("[", "]", "{", "}", ":", ",", "-", "#", "\n", "\n  ", "\t", "'", "&a ", "*a", "!x ", "? "),
    *("null", "true", "-1", "0", "1e-3", "9e99", ".nan", "[]", "{}", "when: ", "choices: ", "log"),
    *("float: [1, 2]", "int: [1, 4]", "widths: [1, 2], layers: 1", "momentum", "SGD", "step: 1"),
]


def faults_of(text, **kwargs):
    with pytest.raises(SpaceError) as caught:
        parse_space(text, "s", **kwargs)
    return list(caught.value.faults)


def test_three_faults_three_messages():
    """Three faults in one file are three messages, each with its line."""
    faults = faults_of(
        "parameters:\n"
        "  optimizer: {choices: [SGD, Adma]}\n"
        "  lr: {float: [0.1, 1e-4], log: true}\n"
        "  hiden: {widths: [32, 512], layers: [1, 3]}\n"
    )
    assert faults[0] == (
        "s.yaml:2: optimizer must be one of SGD, Adam, AdamW, NAdam, RMSprop, but got 'Adma' "
        "(did you mean Adam?)"
    )
    assert faults[1] == "s.yaml:3: lr: low must be below high, but got [0.1, 0.0001]"
    assert faults[2].startswith("s.yaml:4: a hyperparameter of MLPClassifier must be one of")
    assert faults[2].endswith("but got 'hiden' (did you mean hidden?)")
    assert len(faults) == 3


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        ("", 1, "the file is empty"),
        ("# only a comment\n", 1, "the file is empty"),
        ("- a\n- b\n", 1, "must be a mapping with 'parameters', but got ['a', 'b']"),
        ("just words\n", 1, "must be a mapping"),
        ("fixed: {lr: 0.1}\n", 1, "must have a section 'parameters'"),
        ("parameters: {}\n", 1, "at least one"),
        ("parameters: [lr]\n", 1, "parameters must be a mapping"),
        (
            "parameters:\n",
            1,
            "parameters must be a mapping of names to what they may be, but got null",
        ),
        (BASE + "frist: []\n", 4, "did you mean first?"),
        ("parameters:\n  lr: {float: [1, 2]\n", 3, "must be valid YAML"),
        ("parameters:\n\tlr: 1\n", 2, "must be valid YAML"),
        (BASE + "---\na: 1\n", 4, "must be valid YAML"),
        (BASE + "fixed: {activation: \x00}\n", 4, "got the character"),
        (BASE + "fixed: &a {activation: relu}\nfirst: *a\n", 5, "an alias (*name)"),
        (BASE + "fixed: {activation: !!python/name:os.system x}\n", 4, "got the tag"),
        (BASE + "fixed: {activation: !mine x}\n", 4, "got the tag !mine"),
        (BASE + "fixed: {eps: !!int x}\n", 4, "number that can be read"),
        (BASE + "fixed: {nesterov: !!bool x}\n", 4, "must be true or false, but got 'x'"),
        (BASE + "fixed: {eps: " + "9" * 5000 + "}\n", 4, "number that can be read"),
        (BASE + "fixed: {3: x}\n", 4, "a name must be text, but got 3"),
        (BASE + "fixed: {[a]: x}\n", 4, "a name must be text"),
        (BASE + "fixed: {hidden: " + "[" * 25 + "]" * 25 + "}\n", 4, "nested at most"),
        ("[" * 5000, 1, "nested at most"),
        (BASE + "  lr: {float: [1, 2]}\n", 4, "'lr' is given twice, first in line 3"),
        (BASE + "  momentum: 0.9\n", 4, "momentum must say what may vary"),
        (BASE + "  momentum: {log: true}\n", 4, "must have one of choices, float, int, widths"),
        (BASE + "  dropout: {float: [0, 0.5], int: [0, 1]}\n", 4, "but got float and int"),
        (BASE + "  dropout: {flaot: [0, 0.5]}\n", 4, "did you mean float?"),
        (BASE + "  dropout: {float: [0, 0.5], setp: 0.1}\n", 4, "did you mean step?"),
        (
            BASE + "  dropout: {choices: [0, 0.5], log: true}\n",
            4,
            "a key of dropout must be one of",
        ),
        (BASE + "  dropout: {float: 0.5}\n", 4, "float must be [low, high], two numbers"),
        (BASE + "  dropout: {float: [0, high]}\n", 4, "but got [0, 'high']"),
        (BASE + "  dropout: {float: [false, 0.5]}\n", 4, "two numbers, but got [false, 0.5]"),
        (BASE + "  dropout: {float: [0, 0.1, 0.2]}\n", 4, "two numbers"),
        (BASE + "  dropout: {float: [0.5, 0.5]}\n", 4, "goes under 'fixed'"),
        (BASE + "  dropout: {float: [0, .nan]}\n", 4, "must be a finite number, but got .nan"),
        (BASE + "  dropout: {float: [-.inf, 0]}\n", 4, "must be a finite number"),
        (BASE + "  dropout: {float: [0, 1e999]}\n", 4, "must be a finite number"),
        (BASE + "  dropout: {float: [0, 0.5], log: true}\n", 4, "low must be > 0 with log: true"),
        (
            BASE + "  dropout: {float: [0.1, 0.5], log: yes}\n",
            4,
            "log must be true or false, but got 'yes'",
        ),
        (
            BASE + "  dropout: {float: [0.1, 0.5], log: true, step: 0.1}\n",
            4,
            "log and step cannot both",
        ),
        (
            BASE + "  dropout: {float: [0.1, 0.5], step: 0}\n",
            4,
            "step must be a number > 0, but got 0",
        ),
        (
            BASE + "  dropout: {float: [0, 0.5], step: 0.2}\n",
            4,
            "plus a multiple of step (0.4 or 0.6)",
        ),
        (
            BASE + "  batch_size: {int: [1, 9], log: true, step: 2}\n",
            4,
            "log and step cannot both",
        ),
        (BASE + "  batch_size: {int: [1, 10], step: 2}\n", 4, "plus a multiple of step (9 or 11)"),
        (BASE + "  batch_size: {int: [1, 9], step: 1.5}\n", 4, "step must be a whole number > 0"),
        (BASE + "  batch_size: {int: [1.5, 9]}\n", 4, "two whole numbers"),
        (BASE + "  batch_size: {int: [1, 1e300]}\n", 4, "two whole numbers"),
        (
            BASE + "  batch_size: {int: [0, 9]}\n",
            4,
            "batch_size must be a whole number >= 1, but got 0",
        ),
        (BASE + "  batch_size: {int: [0, 9], log: true}\n", 4, "low must be > 0 with log: true"),
        (BASE + "  hidden: {widths: [8, 64]}\n", 4, "layers must be a whole number or [min, max]"),
        (BASE + "  hidden: {widths: [8, 64], layers: [3, 1]}\n", 4, "but got [3, 1]"),
        (BASE + "  hidden: {widths: [8, 64], layers: 0}\n", 4, "but got 0"),
        (BASE + "  hidden: {widths: [8, 64], layers: 1000000000}\n", 4, "from 0 to 100"),
        (BASE + "  hidden: {widths: [0, 64], layers: 1}\n", 4, "a width must be >= 1"),
        (BASE + "  hidden: {widths: [64, 8], layers: 1}\n", 4, "low must be below high"),
        (BASE + "  hidden: {int: [8, 64]}\n", 4, "hidden must vary as choices or widths, not int"),
        (
            BASE + "  hidden: {choices: [[64], [0]]}\n",
            4,
            "list of whole numbers >= 1, but got [0]",
        ),
        (BASE + "  activation: {choices: []}\n", 4, "choices must be a list of values"),
        (
            BASE + "  activation: {choices: relu}\n",
            4,
            "choices must be a list of values, but got 'relu'",
        ),
        (BASE + "  activation: {choices:\n    [relu,\n     reul]}\n", 6, "did you mean relu?"),
        (BASE + "  activation: {choices: [relu, relu]}\n", 4, "'relu' is among the choices twice"),
        (BASE + "  weight_decay: {choices: [0, 0.0]}\n", 4, "0.0 is among the choices twice"),
        (BASE + "  activation: {choices: [{a: 1}]}\n", 4, "a choice must be a value"),
        (BASE + "  activation: {choices: [relu], when: SGD}\n", 4, "when must be a mapping"),
        (
            BASE + "  activation: {choices: [relu], when: {optimizer: []}}\n",
            4,
            "a value or a list",
        ),
        (
            BASE + "  dropout: {float: [0, 1]}\n",
            4,
            "dropout must be a number in [0, 1), but got 1",
        ),
        (BASE + "fixed: {schedule: cosin}\n", 4, "did you mean cosine?"),
        (BASE + "fixed: {lr: 0.1}\n", 4, "lr is fixed, but also varies (line 3)"),
        (BASE + "fixed: {learning_rate: 0.1}\n", 4, "a hyperparameter of MLPClassifier"),
        (BASE + "fixed: {activation: {a: 1}}\n", 4, "activation must be a value"),
        (BASE + "fixed: {batch_size: 0}\n", 4, "batch_size must be a whole number >= 1"),
        (BASE + "fixed: {nesterov: 1}\n", 4, "nesterov must be true or false, but got 1"),
        (BASE + "  batch_size: {int: [1, 1" + "0" * 400 + "]}\n", 4, "two whole numbers"),
        ("parameters:\n  lr: {float: [0, 1]}\n", 2, "lr must be a number > 0, but got 0"),
        (
            BASE + "  dropout: {float: [0, 0.5], when: {optimiser: SGD}}\n",
            4,
            "did you mean optimizer?",
        ),
        (BASE + "  dropout: {float: [0, 0.5], when: {optimizer: SDG}}\n", 4, "did you mean SGD?"),
        (BASE + "  dropout: {float: [0, 0.5], when: {lr: 0.1}}\n", 4, "but lr is continuous"),
        (BASE + "  dropout: {choices: [0, 0.5], when: {dropout: 0}}\n", 4, "dropout -> dropout"),
        (
            BASE + "  dropout: {choices: [0, 0.5], when: {activation: relu}}\n"
            "  activation: {choices: [relu, elu], when: {dropout: 0}}\n",
            4,
            "circle, but got dropout -> activation -> dropout",
        ),
        (
            BASE + "  activation: {choices: [relu, elu], when: {optimizer: SGD}}\n"
            "  dropout: {float: [0, 0.5], when: {activation: relu, optimizer: Adam}}\n",
            5,
            "dropout can never be active",
        ),
        (
            BASE + "  momentum: {float: [0, 0.9]}\n",
            4,
            "but could be with Adam: add 'when: {optimizer: [SGD]}'",
        ),
        (BASE + "  alpha: {float: [0, 0.9]}\n", 4, "SGD, Adam (only RMSprop takes alpha)"),
        (BASE + "fixed: {momentum: 0.9}\n", 4, "{choices: [0.9], when: {optimizer: [SGD]}}"),
        ("parameters:\n  beta1: {float: [0, 0.9]}\n", 2, "but could be with SGD"),
        (
            BASE + "  nesterov: {choices: [true, false], when: {optimizer: SGD}}\n",
            4,
            "momentum above 0",
        ),
        (BASE + "first: {lr: 1}\n", 4, "first must be a list of configurations"),
        (BASE + "first: [SGD]\n", 4, "a configuration must be a mapping, but got 'SGD'"),
        (BASE + "first:\n- {optimizer: SGD}\n", 5, "lr is missing: a number from 0.0001 to 0.1"),
        (
            BASE + "first:\n- {optimizer: SGD, lr: 1}\n",
            5,
            "lr must be a number from 0.0001 to 0.1",
        ),
        (BASE + "first:\n- {optimizer: Sgd, lr: 0.1}\n", 5, "did you mean SGD?"),
        (BASE + "first:\n- {optimizer: SGD,\n   lr: 0.1,\n   rl: 1}\n", 7, "did you mean lr?"),
        (BASE + "first:\n- {optimizer: SGD, lr: .1}\n- {lr: 0.1, optimizer: SGD}\n", 6, "twice"),
        (
            BASE
            + "fixed: {activation: relu}\nfirst:\n- {optimizer: SGD, lr: 0.1, activation: elu}\n",
            6,
            "activation must be 'relu' (fixed), but got 'elu'",
        ),
        (
            BASE + "  momentum: {float: [0, 0.9], when: {optimizer: SGD}}\n"
            "first:\n- {optimizer: Adam, lr: 0.1, momentum: 0.5}\n",
            6,
            "momentum must be left out unless optimizer is 'SGD', but got 0.5",
        ),
    ],
)
def test_fault(text, line, part):
    """Each kind of fault is one message that names the line and what is wrong."""
    faults = faults_of(text)
    assert len(faults) == 1, faults
    assert faults[0].startswith(f"s.yaml:{line}: ")
    assert part in faults[0]


def test_faults_do_not_cascade():
    """A faulty parameter causes no further faults in what depends on it."""
    faults = faults_of(
        "parameters:\n"
        "  optimizer: {choices: [SGD, Adma]}\n"
        "  lr: {float: [x, 1]}\n"
        "  momentum: {float: [0, .inf], when: {optimizer: SGD}}\n"
        "first:\n"
        "- {optimizer: SGD, lr: 0.1, momentum: 0.5}\n"
    )
    assert len(faults) == 3, faults


def test_any_name_without_a_vocabulary():
    """A module of the user's has hyperparameters of its own, but they are Python names."""
    space = parse_space("parameters:\n  kernel: {choices: [rbf]}\n", is_mlp=False)
    assert sample(space, 1) == [{"kernel": "rbf"}]
    (fault,) = faults_of("parameters:\n  my-lr: {float: [0, 1]}\n", is_mlp=False)
    assert "must be a Python name" in fault


def test_true_is_not_one():
    """A condition on 1 does not fit a parameter that is true or false."""
    text = "parameters:\n  a: {choices: [true]}\n  b: {choices: [x], when: {a: 1}}\n"
    (fault,) = faults_of(text, is_mlp=False)
    assert fault == "s.yaml:3: b: when: a must be one of true, but got 1"


def test_nesterov_with_momentum():
    """nesterov beside a momentum above 0 is in order, but not with a wider condition."""
    text = BASE + "  momentum: {float: [0.1, 0.9], when: {optimizer: SGD}}\n"
    parse_space(text + "  nesterov: {choices: [true, false], when: {optimizer: SGD}}\n")
    text = BASE + (
        "  schedule: {choices: [constant, cosine]}\n"
        "  momentum: {float: [0.1, 0.9], when: {optimizer: SGD, schedule: cosine}}\n"
        "  nesterov: {choices: [true], when: {optimizer: SGD}}\n"
    )
    assert "momentum's 'when' too" in faults_of(text)[0]


# ---------------------------------------------------------------- files


def test_unknown_name():
    """An unknown name lists the known ones and the nearest."""
    with pytest.raises(NotFoundError, match=r"mlp_small.*did you mean mlp_small\?.*my\.yaml"):
        load_space("mlp_smal")


def test_a_file_of_the_user(tmp_path):
    """A path is read as a file, and named by its stem."""
    path = tmp_path / "mine.yaml"
    path.write_text("\ufeff" + BASE, encoding="utf-8")
    assert load_space(str(path)).name == "mine"
    assert load_space(str(path)).text == BASE
    assert load_space(path).path == path


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "must be a file, but there is none"),
        ("folder", "must be a file, but is a folder"),
        (b"parameters:\n  lr: \xff\n", "2: must be UTF-8 text, but got the byte 0xff"),
        (b"#" * 1_000_001, "at most 1000000 bytes"),
    ],
)
def test_unreadable_files(tmp_path, content, part):
    """A file that cannot be read is one line, not a traceback."""
    path = tmp_path / "mine.yaml"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(SpaceError, match=re.escape(part)) as caught:
        load_space(path)
    assert str(caught.value).startswith(str(path))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_text_breaks_the_parser(data):
    """Any damage to a shipped file gives a Space that samples, or a SpaceError with lines."""
    text = load_space("mlp_regularized").text
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        cut = data.draw(st.integers(0, 12))
        put = data.draw(st.sampled_from(PIECES) | st.text(max_size=3))
        text = text[:at] + put + text[at + cut :]
    try:
        space = parse_space(text, "s")
    except SpaceError as error:
        faults = error.faults
    else:
        faults = ()
        assert len(sample(space, 2)) == 2
        assert space.n_configurations() is None or space.n_configurations() > 0
        assert space.distributions()
    assert all(re.match(r"s\.yaml:\d+: \S", fault) for fault in faults)
