"""Versions in MLflow's registry: who is champion, and what a server answers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from searches import INLINE, Call, environment, mlflow_client
from waiting import PATIENCE_S

import sweep
from sweep.tracking.registry import alias_for

HOW_TO = Path(__file__).resolve().parents[2] / "docs" / "how-to.md"
TAGS = {
    "sweep.metric": "val_acc", "sweep.direction": "maximize", "sweep.score": "0.9",
    "sweep.score_kind": "best", "sweep.data_digest": "d1",
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "alias", "said"),
    [
        ({"sweep.score": "0.8"}, "champion", "0.9 beats the 0.8 of version 3"),
        ({}, "challenger", "0.9 does not beat the 0.9 of version 3"),
        ({"sweep.score": "0.95"}, "challenger", "0.9 does not beat the 0.95 of version 3"),
        ({"sweep.metric": "val_f1", "sweep.score": "0.1"}, "challenger", "another metric"),
        ({"sweep.score_kind": "confirmed", "sweep.score": "0.1"}, "challenger",
         r"another kind of score \(best, not confirmed\)"),
        ({"sweep.data_digest": "d2", "sweep.score": "0.1"}, "challenger", "other data"),
        ({"sweep.score": "nan"}, "champion", "beats the nan"),
    ],
)  # fmt: skip
def test_the_champion_is_the_better_of_two_that_compare(
    changes: dict[str, str], alias: str, said: str
) -> None:
    """Strictly better, and in the same metric, direction, kind of score and data."""
    found, why = alias_for(TAGS, TAGS | changes, "3")
    assert found == alias
    assert re.search(said, why)


def test_less_may_be_better_and_a_first_version_is_champion() -> None:
    """By the metric's direction; a champion without a score is left alone."""
    loss = TAGS | {"sweep.direction": "minimize"}
    assert alias_for(loss, loss | {"sweep.score": "0.8"}, "1")[0] == "challenger"
    assert alias_for(loss, loss | {"sweep.score": "1.8"}, "1")[0] == "champion"
    assert alias_for(TAGS, None)[0] == "champion"
    assert "has no score" in alias_for(TAGS, {}, "7")[1]


def ranked() -> Sequence[int]:
    """Trials of `six`, best first, those of other scores than their predecessor."""
    scores = {n: sweep.best("six", trial=n).score for n in range(6)}
    by_score = {score: n for n, score in sorted(scores.items(), reverse=True)}
    return [by_score[score] for score in sorted(by_score, reverse=True)]


def test_the_alias_moves_to_a_better_version_alone(six: Path, call: Call) -> None:
    """Third best, worst, second best, and that once more: two moves, three versions, a card.
    The best trial's score is corrected for having been chosen: it is not compared with them."""
    best, second, third, *_, worst = ranked()
    said = []
    for trial in (third, worst, second, second, best):
        code, out, errors = call("register", "six", "digits", trial)
        assert (code, errors) == (0, [])
        said.append(out.splitlines()[0])
    assert "is the champion: there was no champion yet" in said[0]
    assert re.search(r"is the challenger: 0\.\d+ does not beat the 0\.\d+ of version 1", said[1])
    assert re.search(r"is the champion: 0\.\d+ beats the 0\.\d+ of version 1", said[2])
    assert said[3].startswith("models:/digits/3:")
    assert said[3].endswith("it is the champion already")
    assert "is the challenger: another kind of score (corrected, not best) than of" in said[4]
    client = mlflow_client(six)
    assert client.get_registered_model("digits").aliases == {"champion": 3, "challenger": 4}
    assert len(client.search_model_versions("name = 'digits'")) == 4
    version, found = client.get_model_version("digits", "3"), sweep.best("six", trial=second)
    assert float(version.tags["sweep.score"]) == found.score
    assert version.tags["sweep.score_kind"] == "best"
    for part in (
        f"val_acc {found.score:.6g}", f"trial {second} of study `six`", "1347 samples to train",
        "chosen on validation data", "models:/digits@champion", "hidden",
    ):  # fmt: skip
        assert part in version.description
    assert str(six) not in version.description


def test_corrected_scores_of_two_studies_are_compared(six: Path, call: Call) -> None:
    """On the same data; the card has the interval, and the score as trained."""
    assert call("register", "six", "digits")[0] == 0
    sweep.run(study="poor", trials=2, epochs=1, space="mlp_small", sampler="random", **INLINE)
    out = call("register", "poor", "digits")[1]
    assert re.search(r"challenger: 0\.\d+ does not beat the 0\.\d+ of version 1", out)
    version, found = mlflow_client(six).get_model_version("digits", "1"), sweep.best("six")
    assert version.tags["sweep.score_kind"] == "corrected"
    said = re.search(r"\(95 %: (0\.\d+) to (0\.\d+)\)", version.description)
    assert said
    assert float(said[1]) < float(version.tags["sweep.score"]) < float(said[2])
    assert float(version.tags["sweep.score"]) < found.score + 1e-6  # float32's
    assert f"As trained: {found.score:.6g}." in version.description


def test_a_wrong_name_is_one_line(six: Path, call: Call) -> None:
    """Before anything is written."""
    for name in ("a/b", "a:b", "it's", " "):
        code, out, errors = call("register", "six", name)
        assert (code, out, len(errors)) == (2, "", 1)
        assert "must have none of" in errors[0]
    assert mlflow_client(six).search_registered_models() == []


@pytest.fixture
def served(six: Path, call: Call) -> Iterator[str]:
    """The address of the best model of `six`, served as the how-to says."""
    assert call("register", "six", "digits")[0] == 0
    command = re.search(r"^mlflow (models serve .*) --port 5001$", HOW_TO.read_text(), re.M)
    assert command
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    scripts = Path(sys.executable).parent  # MLflow starts uvicorn by its name
    path = os.pathsep.join([str(scripts), os.environ["PATH"]])
    env = environment(MLFLOW_DISABLE_TELEMETRY="true", PATH=path)
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *command[1].split(), "--port", str(port)], cwd=six,
        env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        address, until = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE_S
        while time.monotonic() < until and server.poll() is None:
            try:
                with urllib.request.urlopen(f"{address}/ping"):
                    break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def asked(address: str, body: str) -> Any:
    """The predictions that the server gives."""
    request = urllib.request.Request(
        f"{address}/invocations", body.encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return np.array(json.load(answer)["predictions"])


def test_a_served_champion_gives_the_checkpoints_numbers(served: str) -> None:
    """To 1, 7 and 1,000 rows, and to the documented curl."""
    module = sweep.best("six").load()
    for n in (1, 7, 1000):
        x = torch.rand(n, 64)
        with torch.no_grad():
            expected = module(x.reshape(-1, 1, 8, 8)).numpy()
        given = asked(served, json.dumps({"inputs": x.tolist()}))
        np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-5)
    curl = re.search(r"^curl \S+/invocations .*? -d '(.*?)'$", HOW_TO.read_text(), re.M | re.S)
    assert curl
    assert asked(served, curl[1]).argmax(1).tolist() == [0]
