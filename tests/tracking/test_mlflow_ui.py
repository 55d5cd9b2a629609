"""A bare `mlflow ui` in the folder of a search shows everything: over REST, and in a browser."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tracking_records as records

from sweep.tracking import MlflowTracker
from sweep.tracking.uri import DEFAULT_URI

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`mlflow ui` with no flags, but for a free port, where a search has run."""
    folder = tmp_path_factory.mktemp("ui")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tracker = MlflowTracker(DEFAULT_URI)
        tracker.open(records.study_info())
        tracker.write(records.search(records.trained(folder / "work")))
        tracker.close()
    with records.mlflow_server(folder, ["ui"]) as running:
        yield running


def ask(address: str, path: str, **body: Any) -> Any:
    """One call of MLflow's REST API; with a body it is a POST."""
    url = f"{address}/api/2.0/mlflow/{path}"
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def experiment_id(address: str) -> str:
    found = ask(address, "experiments/get-by-name?experiment_name=toy-study")
    return str(found["experiment"]["experiment_id"])


def test_rest_shows_runs_states_curves_and_models(address: str) -> None:
    """One parent, four children of the right states, one point an epoch, a model for each
    completed trial."""
    experiment = experiment_id(address)
    runs = ask(address, "runs/search", experiment_ids=[experiment])["runs"]
    tags = {run["info"]["run_id"]: _pairs(run["data"]["tags"]) for run in runs}
    (parent,) = (run_id for run_id, tag in tags.items() if tag["sweep.role"] == "study")
    children = [run for run in runs if run["info"]["run_id"] != parent]
    assert all(tags[r["info"]["run_id"]]["mlflow.parentRunId"] == parent for r in children)
    assert sorted(run["info"]["status"] for run in children) == [
        "FAILED",
        "FINISHED",
        "FINISHED",
        "FINISHED",
    ]
    for run in children:
        query = f"metrics/get-history?run_id={run['info']['run_id']}&metric_key=val_acc"
        assert [point["step"] for point in ask(address, query)["metrics"]] == [1, 2, 3]
    models = ask(address, "logged-models/search", experiment_ids=[experiment])["models"]
    assert {model["info"]["source_run_id"] for model in models} == {
        run["info"]["run_id"]
        for run in children
        if tags[run["info"]["run_id"]]["sweep.state"] == "COMPLETE"
    }
    assert {model["info"]["status"] for model in models} == {"LOGGED_MODEL_READY"}


def _pairs(entries: list[dict[str, str]]) -> dict[str, str]:
    return {entry["key"]: entry["value"] for entry in entries}


@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium or chromedriver not installed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:selenium")
def test_the_experiment_page_shows_the_runs(address: str, tmp_path: Path) -> None:
    """In headless Chromium the page of the experiment names the parent and its trials."""
    from selenium import webdriver
    from selenium.webdriver.support.ui import WebDriverWait

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update",
        "--disable-dev-shm-usage", "--window-size=1600,1000",
        f"--user-data-dir={tmp_path / 'profile'}",
    ):  # fmt: skip
        options.add_argument(flag)
    service = webdriver.ChromeService(executable_path=DRIVER)
    browser = webdriver.Chrome(options=options, service=service)
    try:
        browser.get(f"{address}/#/experiments/{experiment_id(address)}/runs")
        # The page folds children under their parent until it is told otherwise.
        unfold = "[role=row] button[data-component-id*=runnamecell]"
        WebDriverWait(browser, 60).until(lambda page: page.find_elements("css selector", unfold))[
            0
        ].click()
        names = ["toy-study", *(records.started(number).name for number in range(4))]
        WebDriverWait(browser, 60).until(
            lambda page: all(name in page.find_element("tag name", "body").text for name in names)
        )
    finally:
        browser.save_screenshot(str(tmp_path / "experiment.png"))
        browser.quit()
    assert (tmp_path / "experiment.png").stat().st_size > 10_000
