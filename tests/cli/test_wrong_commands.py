"""Wrong command lines over a project of one's own: one line a fault, before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from searches import Call

NET = """
class Net:
    def __init__(self, lr=0.1):
        pass


def build(t):
    return Net()
"""
OWN = ("--module", "net.py:Net", "--metric", "val_loss")
LR = ("--vary", "lr=1e-4..1e-1:log")
WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "nothing varies": (OWN, "nothing varies: say --vary NAME=LOW..HIGH"),
    "one choice": ((*OWN, "--vary", "lr=0.1"), "--vary lr must be a range such as 1e-4..1e-1:log"),
    "reversed range": ((*OWN, "--vary", "lr=0.1..0.01"), "lr"),
    "unknown option": ((*OWN, "--vary", "lr=1e-4..1e-1:lgo"), "after a range goes :log or :step"),
    "log from zero": ((*OWN, "--vary", "lr=0.0..1.0:log"), "lr"),
    "no value": ((*OWN, *LR, "--set", "width"), "--set must be NAME=VALUE, but got 'width'"),
    "fixed and varied": ((*OWN, *LR, "--set", "lr=0.1"), "--set lr fixes what --vary lr varies"),
    "no name": ((*OWN, "--vary", "model..lr=1..2"), "a hyperparameter must be a Python name"),
    "flag's argument": ((*OWN, *LR, "--set", "trainer.max_epochs=5"), "max_epochs is --epochs"),
    "own argument": ((*OWN, *LR, "--set", "trainer.num_nodes=2"), "num_nodes is sweep's own"),
    "callbacks": ((*OWN, *LR, "--set", "trainer.callbacks=[a]"), "callbacks is --callback"),
    "direction": (("--module", "net.py:Net", "--metric", "distance", *LR), "--direction must be"),
    "misspelt flag": ((*OWN, *LR, "--pruners", "median"), "--pruner"),
    "misspelt word": ((*OWN, *LR, "--pruner", "medain"), "did you mean median?"),
    "no colon": (("--module", "net.Net", *LR), "--module must name"),
    "no such file": (("--module", "nets.py:Net", "--metric", "val_loss", *LR),
                     "--module 'nets.py:Net' cannot be imported: there is no file nets.py"),
    "misspelt class": (("--module", "net.py:Nett", "--metric", "val_loss", *LR),
                       "net.py has no 'Nett' (did you mean Net?)"),
    "misspelt data": ((*OWN, "--data", "net.py:Photos", *LR),
                      "--data 'net.py:Photos': module net.py has no 'Photos'"),
    "unknown data": ((*OWN, "--data", "mnits", *LR), "did you mean mnist?"),
    "callback": ((*OWN, *LR, "--callback", "EarlyStopping"), "--callback must be"),
    "no lightning file": (("--lightning", "none.yaml", *LR), "none.yaml"),
    "no space file": ((*OWN, "--space", "none.yaml"), "none.yaml"),
    "kind without function": (("--kind", "objective", *LR), "--kind objective needs a function"),
    "build and data": (("--module", "net.py:build", "--kind", "build", "--data", "digits",
                        "--metric", "val_loss", *LR), "leave out --data"),
    "epochs": ((*OWN, *LR, "--epochs", "0"), "--epochs must be"),
    "study": ((*OWN, *LR, "--study", "a b"), "--study must be"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("command", ["run", "check"])
def test_a_wrong_command_line_is_one_line(
    call: Call, tmp_path: Path, case: str, command: str
) -> None:
    """Exit code 2, and no worker was started for it."""
    (tmp_path / "net.py").write_text(NET)
    arguments, expected = WRONG[case]
    if command == "check" and case in ("misspelt flag", "misspelt word", "epochs"):
        pytest.skip("a flag of `run` alone")
    code, _, errors = call(command, *arguments)
    assert code == 2, errors
    assert not (tmp_path / "mlruns").exists()
    assert all(line.startswith("sweep: ") for line in errors)
    assert expected in "\n".join(errors)
