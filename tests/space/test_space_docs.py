"""The search spaces of the documentation are what it says of them."""

import re
from pathlib import Path

import optuna
import pytest

from sweep.errors import SpaceError
from sweep.space import parse_space, sample

DOCS = Path(__file__).parents[2] / "docs" / "search-spaces.md"


def doc_blocks():
    text = DOCS.read_text(encoding="utf-8")
    return re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("block", doc_blocks())
def test_documented_blocks_load(block):
    """Every YAML block of docs/search-spaces.md is a space that loads and round-trips."""
    settings = {"is_mlp": False} if "module of your own" in block else {}
    space = parse_space(block, **settings)
    for hyperparameters in sample(space, 20):
        params = space.params_for(hyperparameters)
        assert space.suggest(optuna.trial.FixedTrial(params)) == hyperparameters


def test_documented_fault_is_what_is_said():
    """The faulty file that the documentation shows gives the messages that it shows."""
    text = DOCS.read_text(encoding="utf-8")
    (bad,) = re.findall(r"```yml\n(.*?)```", text, flags=re.DOTALL)
    (told,) = re.findall(r"```text\n(sweep: bad\.yaml.*?)```", text, flags=re.DOTALL)
    with pytest.raises(SpaceError) as caught:
        parse_space(bad, "bad")
    said = [f"sweep: {line}" for line in str(caught.value).splitlines()]
    assert said == told.splitlines()
