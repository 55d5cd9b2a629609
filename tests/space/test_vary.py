"""`--vary` and `--set`: a space from the command line is a space of a file."""

from __future__ import annotations

import pytest

import sweep
from sweep.errors import ConfigError
from sweep.space import parse_space, with_changes
from sweep.space.parameters import Choices, Range

FILE = """# Mine.
parameters:
  model.lr: {float: [0.1, 1.0]}
  depth: {choices: [1, 2], when: {kind: deep}}
fixed:
  kind: deep
"""


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("1e-4..1e-1:log", Range("x", 1e-4, 1e-1, log=True)),
        ("0..1", Range("x", 0, 1, step=1, is_whole=True)),
        ("0.0..1", Range("x", 0.0, 1.0)),
        ("8..64:step=8", Range("x", 8, 64, step=8, is_whole=True)),
        ("-1.5..1.5:step=0.5", Range("x", -1.5, 1.5, step=0.5)),
        ("32,64,128", Choices("x", (32, 64, 128))),
        ("adam,sgd", Choices("x", ("adam", "sgd"))),
        ("true,false", Choices("x", (True, False))),
        ("[a, 'b, c']", Choices("x", ("a", "b, c"))),
        ("{choices: [[1], [1, 2]]}", Choices("x", ((1,), (1, 2)))),
        (sweep.floats(1e-4, 0.1, log=True), Range("x", 1e-4, 1e-1, log=True)),
        (sweep.floats(0, 1, step=0.25), Range("x", 0.0, 1.0, step=0.25)),
        (sweep.ints(8, 64, step=8), Range("x", 8, 64, step=8, is_whole=True)),
    ],
)
def test_a_spec_is_what_a_file_says(spec: str, expected: object) -> None:
    """Whole numbers if both ends are; anything of a file in braces."""
    space = parse_space(with_changes("", [f"x={spec}"], []), is_mlp=False)
    assert space.parameters == (expected,)


@pytest.mark.parametrize(
    ("spec", "part"),
    [("3", "must be a range such as"), ("a..b", "must be a range such as"), ("[1", "valid YAML"),
     ("1..2:lgo", "goes :log or :step=N, not :lgo"), ("1..2:step=x", "not :step=x"),
     ("", "must be a range such as")],
)  # fmt: skip
def test_a_wrong_spec_is_one_line(spec: str, part: str) -> None:
    """It says what may be written."""
    with pytest.raises(ConfigError) as caught:
        with_changes("", [f"x={spec}"], [])
    assert part in str(caught.value)


def test_changes_come_on_top_of_a_file() -> None:
    """What varied is fixed and what was fixed varies, as asked; the rest stays."""
    text = with_changes(FILE, ["kind=deep,flat"], ["model.lr=0.3"])
    space = parse_space(text, is_mlp=False)
    assert [p.name for p in space.parameters] == ["kind", "depth"]
    assert space.fixed == {"model.lr": 0.3}
    assert with_changes(FILE, [], []) == FILE


def test_a_probe_changes_one_parameter() -> None:
    """One configuration, then one with another value of each parameter that it has."""
    space = parse_space(with_changes(FILE, ["kind=deep,flat", "n=1..1000"], []), is_mlp=False)
    (_, base), *others = space.probes(0)
    assert {name for name, _ in others} == set(base)
    for name, values in others:
        assert {key for key in base if values[key] != base[key]} == {name}
