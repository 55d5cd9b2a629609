"""A bare `mlflow ui` in the folder of a search shows everything: over REST, and in a browser."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import tracking_records as records

from sweep.tracking import MlflowTracker
from sweep.tracking.pages import page_of
from sweep.tracking.uri import DEFAULT_URI
from sweep.trial import Ranked

SPACE = """parameters:
  optimizer: {choices: [Adam]}
  lr: {float: [1e-4, 0.1]}
"""
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:selenium")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`mlflow ui` with no flags, but for a free port, where a search has run."""
    folder = tmp_path_factory.mktemp("ui")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tracker = MlflowTracker(DEFAULT_URI)
        tracker.open(records.study_info(space_text=SPACE))
        *trials, _ = records.search(records.trained(folder / "work"))
        ranking = [Ranked(n, records.started(n).name, 0.8 - n / 100) for n in (0, 3)]
        tracker.write([*trials, records.study_finished(ranking=ranking)])
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


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium with a new profile."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("chromium or chromedriver not installed")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update",
        "--disable-dev-shm-usage", "--window-size=2400,1000",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(flag)
    service = webdriver.ChromeService(executable_path=DRIVER)
    opened = webdriver.Chrome(options=options, service=service)
    yield opened
    opened.quit()


def wait_for_text(browser: Any, *texts: str) -> str:
    """Wait until the page shows all `texts`; returns all that it shows."""
    from selenium.webdriver.support.ui import WebDriverWait

    def shown(page: Any) -> str:
        text = str(page.find_element("tag name", "body").text)
        return text if all(part in text for part in texts) else ""

    return str(WebDriverWait(browser, 60).until(shown))


def test_the_experiment_page_shows_the_runs(address: str, browser: Any) -> None:
    """In headless Chromium the page of the experiment names the parent and its trials."""
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(f"{address}/#/experiments/{experiment_id(address)}/runs")
    # The page folds children under their parent until it is told otherwise.
    unfold = "[role=row] button[data-component-id*=runnamecell]"
    WebDriverWait(browser, 60).until(lambda page: page.find_elements("css selector", unfold))[
        0
    ].click()
    wait_for_text(browser, "toy-study", *(records.started(n).name for n in range(4)))


def test_the_page_of_a_study_shows_its_trials_best_first(address: str, browser: Any) -> None:
    """In the mode for model training, with the columns of the view and none of MLflow's; the
    line above says the verdict, and a link of the whole description leads to the same page."""
    browser.get("about:blank")  # else only the part behind # would change
    browser.get(f"{address}/{page_of(experiment_id(address))}")
    names = [records.started(number).name for number in range(4)]
    columns = ("best_val_acc", "lr", "optimizer", "sweep.rank", "sweep.state", "sweep.failure")
    text = wait_for_text(browser, *names, *columns, "Highest val_acc", "Sort: best_val_acc")
    assert [name for name in ("Source", "toy-train", "hidden") if name in text] == []
    assert "Judges" not in text, "that is the GenAI mode's"
    links = browser.find_elements("css selector", f"a[href='{page_of(experiment_id(address))}']")
    assert [link.get_attribute("textContent") for link in links] == ["All trials, best first"]
