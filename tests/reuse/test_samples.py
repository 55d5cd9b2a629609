"""What the winner gets wrong: counted from its checkpoint, kept; left out where it cannot be."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from searches import SWEEP, environment

import sweep
from sweep.config.settings import RunConfig
from sweep.data.tensors import load_search_data
from sweep.reuse.best import find_trial, opened
from sweep.reuse.samples import FILE, png_bytes, samples_of


def looked_at(number: int) -> dict[str, Any] | None:
    """The samples of a trial of the study in the current folder."""
    with opened("six", RunConfig()) as (ledger, config):
        trial = ledger.trial(number)
    return samples_of(config, trial, lambda n: find_trial("six", n, RunConfig()))


def test_the_matrix_is_that_of_the_predictions(six: Path) -> None:
    """Rows true, columns said; mistakes by confidence, with a picture each; the score agrees."""
    best = sweep.best("six")
    found = looked_at(best.trial)
    assert found is not None
    split = load_search_data("digits", None, 0).judged
    said = best.predict(split.x)
    expected = np.zeros((10, 10), int)
    np.add.at(expected, (split.y.numpy(), said), 1)
    assert (np.array(found["confusion"]) == expected).all()
    assert found["n_wrong"] == round((1 - best.score) * len(split))
    sure = [worst["sure"] for worst in found["worst"]]
    assert sure == sorted(sure, reverse=True)
    assert all(worst["true"] != worst["said"] for worst in found["worst"])
    assert all(worst["image"].startswith("data:image/png;base64,") for worst in found["worst"])


def test_it_is_kept_and_then_needs_no_torch(six: Path) -> None:
    """The second page has it from the study's folder; another trial's is looked at anew."""
    best = sweep.best("six")
    first = looked_at(best.trial)
    kept = six / "mlruns" / ".sweep" / "six" / FILE
    body = json.loads(kept.read_text())
    assert body["samples"] == first
    body["samples"]["n_wrong"] = 77
    kept.write_text(json.dumps(body))
    program = SWEEP[2] + "; "
    code = program.replace("main(); ", "") + (
        "import sys\nsys.argv = ['sweep', 'report', 'six', '-o', 'six.html']\n"
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=six, env=environment(), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["six.html", "False"], done.stderr
    assert "gets 77 wrong" in (six / "six.html").read_text()
    body["key"][0] = 99
    kept.write_text(json.dumps(body))
    again = looked_at(best.trial)
    assert again is not None
    assert again["n_wrong"] != 77


@pytest.mark.parametrize("lost", ["gone", "broken"])
def test_without_a_checkpoint_there_is_none(six: Path, lost: str) -> None:
    """It is gone, or no checkpoint: the page does without."""
    number = sweep.best("six").trial
    (checkpoint,) = (six / "mlruns" / ".sweep" / "six").glob(f"trials/{number:05d}/best.ckpt")
    if lost == "gone":
        checkpoint.unlink()
    else:
        checkpoint.write_bytes(b"no checkpoint")
    assert looked_at(number) is None


def test_a_picture_is_a_png() -> None:
    """Its rows come back from the file."""
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6, 1)
    file = png_bytes(pixels)
    assert file.startswith(b"\x89PNG\r\n\x1a\n")
    at = file.index(b"IDAT")
    size = int.from_bytes(file[at - 4 : at], "big")
    raw = zlib.decompress(file[at + 4 : at + 4 + size])
    assert raw == b"".join(b"\0" + pixels[row].tobytes() for row in range(4))
    assert base64.b64encode(file)
