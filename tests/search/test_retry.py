"""`sweep retry`: failed configurations once more, as new trials, in real stores."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import user_code
from searches import INLINE, Call, Finished, mlflow_client

import sweep
from sweep import api
from sweep.config.settings import RunConfig
from sweep.ledger.study import open_study
from sweep.ledger.trials import LedgerTrial
from sweep.trial import EpochReport, Record, StudyInfo

SPACE = """# Two kinds of failure.
parameters:
  mode: {choices: [fine, raise, nan]}
  width: {choices: [4, 8]}
"""
MENDED = Path("mended")


class Curable(user_code.Model):
    """Misbehaves until somebody mends it."""

    def __init__(self, mode: str = "fine", width: int = 8) -> None:
        super().__init__("fine" if MENDED.exists() else mode, width)


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Finished:
    """A search of six configurations: two completed, two raised, two were NaN."""
    folder = tmp_path_factory.mktemp("bad")
    shutil.copyfile(empty_store, folder / "mlflow.db")
    with contextlib.chdir(folder):
        Path("six.yaml").write_text(SPACE)
        sweep.run(
            study="bad", module="test_retry:Curable", space="six.yaml", metric="val_f1",
            sampler="grid", trials=6, epochs=3, max_failures=9,
            tracking_uri="sqlite:///mlflow.db", **INLINE,
        )  # fmt: skip
    return Finished(folder)


@pytest.fixture
def failed(bad: Finished, call: Call, tmp_path: Path) -> Path:
    """A copy of it, which is the current folder."""
    bad.copy(tmp_path)
    kinds = Counter((t.result["failure"] or {}).get("kind") for t in trials())
    assert kinds == {None: 2, "exception": 2, "nan": 2}
    return tmp_path


def trials() -> list[LedgerTrial]:
    ledger = open_study(RunConfig().storage, "bad")
    found = ledger.trials()
    ledger.close()
    return found


def new_modes() -> list[str]:
    """What the trials after the first six tried."""
    return sorted(t.hyperparameters["mode"] for t in trials()[6:])


def new_states() -> list[str]:
    return [str(t.state) for t in trials()[6:]]


def as_told(known: Sequence[LedgerTrial]) -> list[Any]:
    return [(t.number, str(t.state), t.value, t.curve) for t in known]


def test_one_class_is_tried_again(failed: Path, call: Call) -> None:
    """Its two configurations become trials 6 and 7; old ones stay as they are; stores agree."""
    before = as_told(trials())
    code, out, errors = call("retry", "bad", "--failed", "exception")
    assert (code, errors) == (0, [])
    assert "bad: 8 of 8 trials" in out
    assert as_told(trials()[:6]) == before
    assert new_modes() == ["raise", "raise"]
    assert sorted(t.hyperparameters["width"] for t in trials()[6:]) == [4, 8]
    assert call("doctor", "bad")[0] == 0
    runs = mlflow_client(failed).search_runs(["1"])
    assert len([r for r in runs if r.data.tags["sweep.role"] == "trial"]) == 8


@pytest.mark.usefixtures("failed")
def test_a_configuration_is_tried_once_however_often_it_failed(call: Call) -> None:
    """Without --failed all four; a second time those four, not what failed twice twice."""
    assert call("retry", "bad")[0] == 0
    assert new_modes() == ["nan", "nan", "raise", "raise"]
    code, out, errors = call("retry", "bad", "--failed", "nan")
    assert (code, errors) == (0, [])
    assert "try 4 failed configurations again" in out, "ten trials failed"
    assert new_modes() == ["nan"] * 4 + ["raise"] * 2


@pytest.mark.usefixtures("failed")
def test_what_succeeded_since_is_left_alone(call: Call) -> None:
    """After the bug is mended retry trains what it broke; then there is nothing to do."""
    MENDED.touch()
    assert call("retry", "bad", "--failed", "exception")[0] == 0
    assert new_states() == ["COMPLETE"] * 2
    code, out, errors = call("retry", "bad", "--failed", "exception")
    assert (code, out, errors) == (0, "bad: no failed trials of class exception\n", [])
    assert call("retry", "bad")[0] == 0
    assert new_modes() == ["nan", "nan", "raise", "raise"]
    assert call("doctor", "bad")[0] == 0
    assert "try " not in call("run", "--study", "bad")[1], "all succeeded since"


class CtrlC:
    """A listener that presses Ctrl-C at the first epoch's end."""

    def __init__(self) -> None:
        self.is_pressed = False

    def open(self, study: StudyInfo) -> None:
        pass

    def write(self, records: Sequence[Record]) -> None:
        if not self.is_pressed and any(isinstance(record, EpochReport) for record in records):
            self.is_pressed = True  # a second one would end this process
            os.kill(os.getpid(), signal.SIGINT)

    def close(self) -> None:
        pass


@pytest.mark.usefixtures("failed")
def test_an_interrupted_retry_goes_on(call: Call) -> None:
    """Stopped in its first trial: the same command ends with exactly the two it was to try."""
    MENDED.touch()
    config, space, extras = api.retry({"study": "bad"}, "exception")
    assert api.search_with(config, space, [CtrlC()], extras).end.reason == "interrupted"
    assert new_states() == ["WAITING"]
    code, out, errors = call("retry", "bad", "--failed", "exception")
    assert (code, errors) == (0, [])
    assert "bad: 8 of 8 trials" in out
    assert new_modes() == ["raise", "raise"]
    assert sorted(t.hyperparameters["width"] for t in trials()[6:]) == [4, 8]
    assert new_states() == ["COMPLETE", "COMPLETE"]
    assert call("doctor", "bad")[0] == 0


@pytest.mark.usefixtures("failed")
def test_a_study_that_is_not_full_has_room() -> None:
    """A study of nine trials that has six: two tries fit into its total."""
    ledger = open_study(RunConfig().storage, "bad")
    ledger.describe(ledger.config | {"trials": 9}, ledger.space_text)
    ledger.close()
    config, _, extras = api.retry({"study": "bad"}, "nan")
    assert (config.trials, len(extras.again)) == (9, 2)


@pytest.mark.usefixtures("six")
def test_nothing_failed(call: Call) -> None:
    """One line, exit code 0, and no trial more."""
    assert call("retry", "six") == (0, "six: no failed trials\n", [])


@pytest.mark.usefixtures("six")
def test_wrong_words(call: Call) -> None:
    """A class that there is not, and a study that there is not, are one line each."""
    code, _, errors = call("retry", "six", "--failed", "oops")
    assert (code, len(errors)) == (2, 1)
    assert "'oom', 'nan', 'exception', 'killed', 'timeout'" in errors[0]
    code, _, errors = call("retry", "sixx")
    assert (code, len(errors)) == (2, 1)
    assert "did you mean six?" in errors[0]


def test_show_prints_the_traceback_of_a_failed_trial(failed: Path, call: Call) -> None:
    """With MLflow away, too: below the fields, and as a field of the JSON."""
    (failed / "mlflow.db").unlink()
    number = next(t.number for t in trials() if (t.result["failure"] or {})["kind"] == "exception")
    code, text, _ = call("show", "bad", number)
    assert code == 0
    fields, _, traceback = text.partition("\n\nTraceback (most recent call last):\n")
    assert "width must not be 8" in fields
    assert traceback.splitlines()[-1] == "ZeroDivisionError: width must not be 8"
    assert "user_code.py" in traceback
    failure = json.loads(call("show", "bad", number, "--format", "json")[1])["failure"]
    assert failure["traceback"].endswith(traceback)


def test_a_done_study_with_failed_trials_names_retry(failed: Path, call: Call) -> None:
    """Nothing is left to do, and two lines say how failed trials are tried again."""
    code, text, _ = call("run", "--study", "bad", "--trials", "6")
    assert code == 0
    assert "Try failed trials again with `sweep retry bad`." in text
    assert "sweep retry bad" in text.partition("Next:")[2]
    assert "# try 4 failed configurations again" in text
