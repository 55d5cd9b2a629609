"""`sweep report` and `sweep compare` as commands, and `sweep.report`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from searches import Call

import sweep


@pytest.mark.usefixtures("six")
def test_a_page_for_the_only_study(call: Call) -> None:
    """Its name is the study's; -o, --format and `-` say otherwise."""
    assert call("report", "--no-samples") == (0, "six-report.html\n", [])
    page = Path("six-report.html").read_text(encoding="utf-8")
    assert "<title>six</title>" in page
    assert "What came out" in page
    code, out, _ = call("report", "six", "--no-samples", "-o", "deep/page.md")
    assert (code, out) == (0, "deep/page.md\n")
    text = Path("deep/page.md").read_text(encoding="utf-8")
    assert text.startswith("# six\n")
    assert call("report", "six", "--format", "md", "-o", "-", "--no-samples") == (0, text, [])


@pytest.mark.usefixtures("six")
def test_the_same_page_from_python() -> None:
    """`sweep.report` returns the file."""
    path = sweep.report("six", "page.html", samples=False)
    assert path == Path("page.html")
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.usefixtures("six")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["report", "sixx"], "study must be one of six"),
        (["report", "six", "-o", "/dev/null"], "-o must name a file"),
        (["report", "six", "--format", "png", "-o", "-"], "a picture needs a file"),
        (["compare", "six"], "compare needs two or more"),
        (["compare", "six:0", "six:99"], "study 'six' has no trial 99"),
        (["compare", "six", "six:0", "-o", "x.html"], "-o is for --format html"),
        (["best", "six", "--output", "x"], "--output is for --ensemble"),
        (["best", "six", "--ensemble", "--format", "json"], "--format is for a configuration"),
        (["best", "six", "--ensemble", "3", "--trial", "1"], "--trial is for a configuration"),
    ],
)
def test_a_wrong_request_is_one_line(call: Call, arguments: list[str], said: str) -> None:
    """With what is wrong and exit code 2; an earlier page stays."""
    Path("six-report.html").write_text("earlier")
    code, out, err = call(*arguments)
    assert (code, out, len(err)) == (2, "", 1)
    assert said in err[0]
    assert Path("six-report.html").read_text() == "earlier"
    assert Path("/dev/null").is_char_device()


@pytest.mark.usefixtures("six")
def test_a_picture_without_a_browser_says_what_to_install(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No browser on the path: exit code 2, and html as the way out."""
    monkeypatch.setenv("PATH", "/nowhere")
    code, _, err = call("report", "six", "--format", "png", "--no-samples")
    assert code == 2
    assert "apt install chromium" in err[0]
    assert not Path("six-report.png").exists()


@pytest.mark.usefixtures("six")
def test_trials_side_by_side(call: Call) -> None:
    """What differs in them has a row; what does not has none; a page on request."""
    code, out, _ = call("compare", "six:0", "six:1")
    assert code == 0
    assert out.startswith("Best val_acc: ")
    assert "Each was trained once" in out
    code, out, _ = call("compare", "six:0", "six:1", "--format", "json")
    rows = {row["what"]: row for row in json.loads(out)}
    assert rows["best"]["six:0"] != rows["best"]["six:1"]
    assert rows["value lr"]["six:0"] == "0.01"
    assert "setting epochs" not in rows
    assert "baseline" not in rows
    code, out, _ = call("compare", "six", "six:1", "--format", "html")
    assert (code, out) == (0, "comparison.html\n")
    assert "Best score so far" in Path("comparison.html").read_text(encoding="utf-8")
