"""How far a study is, as those see it who did not start its search."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from rich.console import Console
from searches import ScriptedStudy, Search

from sweep.errors import ConfigError
from sweep.ledger.locks import owned_study
from sweep.ledger.orders import LiveSearch
from sweep.ledger.study import Ledger, open_study
from sweep.reporting.lines import parse_line
from sweep.reporting.status import Watcher
from sweep.reporting.watching import StatusLines, StatusTable
from sweep.search.study import stored_config
from sweep.testing import DATASET
from sweep.trial import EpochReport, TrialResult, WorkerReady, now_ms


@pytest.fixture
def search(tmp_path: Path) -> Iterator[Search]:
    """Of four trials 0 is done, 1 and 2 run for ten seconds, a third of their epochs each."""
    study = ScriptedStudy(tmp_path)
    study.run(trials=1)
    config = study.config(trials=4)
    began_ms = now_ms()
    found = study.prepare(config)
    found.ledger.describe(stored_config(config), study.space.text)
    found.driver.exchange([WorkerReady(DATASET, "cpu", 2, began_ms)], 2)
    reports = [EpochReport(n, 1, {"val_acc": 0.1 + n / 8}, now_ms()) for n in (1, 2)]
    found.driver.exchange(reports, 0)
    found.driver.settle()
    found.ledger.enqueue({"lr": 0.01})
    word = LiveSearch(began_ms, began_ms, began_ms + 10_000, found.driver.live())
    found.ledger.orders.tell(word)
    yield found
    found.leave()


def opened(search: Search) -> closing[Ledger]:
    """The study as another process opens it."""
    return closing(open_study(search.config.storage, search.config.study_name))


def test_a_search_is_seen_as_it_shows_itself(search: Search) -> None:
    """Running trials with epochs and values, the leading one first; time left; who runs it. A
    trial that ended since the last look is counted, its neighbour runs."""
    config = search.config
    with owned_study(Path(config.work_dir), "scripted", config.storage), opened(search) as ledger:
        watcher = Watcher(ledger, config)
        seen = watcher.look()
        screen = io.StringIO()
        console = Console(file=screen, force_terminal=True, width=90, height=24, _environ={})
        table = StatusTable(console)
        assert table.show(seen, is_last=True)
        table.close()
        search.driver.exchange([TrialResult(2, "failed", 1)], 0)
        search.driver.settle()
        ledger.orders.tell(LiveSearch(now_ms(), now_ms(), now_ms(), search.driver.live()))
        later = watcher.look()
    fields = seen.fields()
    assert (fields["state"], fields["finished"], fields["of"]) == ("running", 1, 4)
    assert [(row["number"], row["epochs"], row["best"]) for row in fields["running"]] == [
        (2, 1, 0.35), (1, 1, 0.225),
    ]  # fmt: skip
    # two thirds of a trial in ten seconds; two and a third are left
    assert seen.eta_s == pytest.approx(35, abs=5)
    for part in ("scripted: process ", "; 1 queued", "1/4 trials", "2 running", "▸ t002"):
        assert part in screen.getvalue()
    assert (later.n_by_state["FAIL"], [*later.progress.running]) == (1, [1])
    head, *rows = [parse_line(line) for line in later.lines()]
    assert (head["state"], head["trials"], head["running"]) == ("running", "2/4", "1")
    assert [(row["trial"], row["val_acc"]) for row in rows] == [("1", "0.225")]


def test_a_search_that_was_killed_is_idle(search: Search) -> None:
    """Its trials are interrupted, whatever its driver said last; a pipe gets one line."""
    with opened(search) as ledger:
        seen = Watcher(ledger, search.config).look()
    assert (seen.is_running, seen.eta_s, seen.fields()["interrupted"]) == (False, None, [1, 2])
    assert seen.headline == (
        "scripted: nobody runs it: `sweep run --study scripted` goes on; 1 queued"
    )
    pipe = io.StringIO()
    lines = StatusLines(pipe)
    assert lines.show(seen, is_last=True)
    assert lines.show(seen, is_last=True)
    (line,) = pipe.getvalue().splitlines()
    assert parse_line(line)["trials"] == "1/4"


def test_a_new_search_is_not_taken_for_the_last_one(search: Search) -> None:
    """What the last driver said of its trials is not repeated until the new one speaks."""
    with opened(search) as ledger:
        ledger.orders.tell(LiveSearch(5, 5, 6, search.driver.live()))
        config = search.config
        with owned_study(Path(config.work_dir), "scripted", config.storage):
            seen = Watcher(ledger, config).look()
    assert seen.is_running
    assert [row["epochs"] for row in seen.fields()["running"]] == [0, 0]


def test_another_programs_study_is_one_line(tmp_path: Path) -> None:
    """Its total and metric are not known."""
    url = f"sqlite:///{tmp_path}/optuna.db"
    optuna.create_study(study_name="other", storage=url)
    with closing(open_study(url, "other")) as ledger, pytest.raises(ConfigError, match="another"):
        Watcher(ledger, ScriptedStudy(tmp_path).config())
