"""The page in headless Chromium with the network cut off."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_browser import CHROMIUM, DRIVER, browser
from report_studies import write_study

from sweep.ledger.study import open_study
from sweep.reporting.report.comparison import Compared, comparison
from sweep.reporting.report.contents import document_of
from sweep.reporting.report.facts import StudyFacts, facts_of
from sweep.reporting.report.html import to_html
from sweep.reporting.report.picture import to_png

pytestmark = [
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium or chromedriver here"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:selenium"),
]
N_TRIALS = 32


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> StudyFacts:
    folder = tmp_path_factory.mktemp("browser")
    config = write_study(folder, N_TRIALS, epochs=5, study="study <b>of</b> ours")
    ledger = open_study(config.storage, config.study_name)
    found = facts_of(ledger, config)
    ledger.close()
    return found


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as running:
        yield running


@pytest.fixture
def page(chromium: Any, facts: StudyFacts, tmp_path: Path) -> Any:
    """The browser, with the page open and drawn."""
    chromium.set_window_size(1200, 1000)
    file = tmp_path / "page.html"
    file.write_text(to_html(document_of(facts)), encoding="utf-8")
    chromium.get(file.as_uri())
    return chromium


def find(page: Any, selector: str) -> list[Any]:
    return list(page.find_elements("css selector", selector))


def rows(page: Any) -> list[str]:
    """Rows of the table of trials that are shown."""
    return [row.text for row in find(page, "#g-trials tbody tr") if row.is_displayed()]


def chosen(page: Any) -> str:
    return str(find(page, "#chosen")[0].text)


def test_all_charts_are_drawn_without_a_word_on_the_console(page: Any) -> None:
    """Lines and dots of the trials are there, names and all, and nothing is asked of a network."""
    assert page.get_log("browser") == []
    assert find(page, "h1")[0].text == "study <b>of</b> ours"
    for key in ("parallel", "history", "curves", "slices", "importance"):
        (svg,) = find(page, f"#c-{key} svg")
        assert svg.get_attribute("aria-label")
        assert len(find(page, f"#c-{key} svg path, #c-{key} svg rect")) > 3
    best = find(page, "#c-parallel .best")[0].get_attribute("d")
    assert best.count("L") == len(find(page, "#c-parallel .hit")) - 1
    assert page.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert chosen(page) == f"{N_TRIALS} trials"


def test_a_drag_along_an_axis_chooses_trials_everywhere(page: Any, facts: StudyFacts) -> None:
    """Charts, words and table show the trials of that range; a click lets go of it."""
    from selenium.webdriver import ActionChains

    (axis,) = find(page, '#c-parallel .hit[data-axis="lr"]')
    before = find(page, "#c-curves .off")[0].get_attribute("d")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", axis)
    half = axis.size["height"] / 2
    ActionChains(page, duration=50).move_to_element(axis).move_by_offset(0, 2).click_and_hold(
    ).move_by_offset(0, -int(half) + 1).release().perform()  # fmt: skip
    middle = 1e-4 * 3000**0.45  # of a strip from -0.13 to 1.03 of the axis
    top = [t for t in facts.trials if t.hyperparameters["lr"] > middle]
    assert 0 < len(top) < N_TRIALS
    n_chosen = int(chosen(page).split()[0])
    assert abs(n_chosen - len(top)) <= 1  # a pixel of the axis
    assert f"of {N_TRIALS} trials chosen; their best val_acc is" in chosen(page)
    assert len(rows(page)) == n_chosen
    assert find(page, "#c-curves .off")[0].get_attribute("d") != before
    assert find(page, "#c-slices .off")[0].get_attribute("d") != ""
    ActionChains(page, duration=50).move_to_element(axis).click().perform()
    assert chosen(page) == f"{N_TRIALS} trials"
    assert len(rows(page)) == N_TRIALS


def test_keys_choose_trials_too(page: Any) -> None:
    """An axis takes the focus; arrows move a range, Escape lets go."""
    from selenium.webdriver.common.keys import Keys

    (axis,) = find(page, '#c-parallel .hit[data-axis="lr"]')
    axis.send_keys(Keys.ARROW_UP)
    some = chosen(page)
    assert "trials chosen" in some
    axis.send_keys(Keys.ARROW_UP, Keys.ARROW_UP)
    assert chosen(page) != some
    axis.send_keys(Keys.ESCAPE)
    assert chosen(page) == f"{N_TRIALS} trials"


def test_the_table_is_sorted_by_a_heading(page: Any, facts: StudyFacts) -> None:
    """Up, then down; numbers as numbers. The buttons choose the best ten, and all again."""
    (head,) = [h for h in find(page, "#g-trials th") if h.text.startswith("lr")]
    button = head.find_element("css selector", "button")
    values = sorted(f"{t.hyperparameters['lr']:.4g}" for t in facts.trials)
    at = [h.text.split(" ")[0] for h in find(page, "#g-trials th")].index("lr") + 1
    page.execute_script("arguments[0].click()", button)
    shown = [float(c.text) for c in find(page, f"#g-trials tbody tr td:nth-child({at})") if c.text]
    assert head.get_attribute("aria-sort") == "ascending"
    assert shown == sorted(shown)
    assert len(shown) == len(values)
    page.execute_script("arguments[0].click()", button)
    shown = [float(c.text) for c in find(page, f"#g-trials tbody tr td:nth-child({at})") if c.text]
    assert shown == sorted(shown, reverse=True)
    page.execute_script("document.getElementById('choose-best').click()")
    assert len(rows(page)) == 10
    page.execute_script("document.getElementById('choose-all').click()")
    assert len(rows(page)) == N_TRIALS


@pytest.mark.parametrize("width", [400, 1200])
def test_the_page_fits_a_narrow_screen(page: Any, width: int) -> None:
    """Nothing but tables and code scrolls sideways."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page.refresh()
    whole = page.execute_script("return document.documentElement.scrollWidth")
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert whole <= width


def test_dark_and_light_differ(page: Any) -> None:
    """As the reader's system asks."""
    colours = []
    for scheme in ("light", "dark"):
        page.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
        )
        colours.append(page.execute_script("return getComputedStyle(document.body).color"))
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert len({*colours}) == 2


def test_a_comparison_draws_both(chromium: Any, facts: StudyFacts, tmp_path: Path) -> None:
    """A line for each, with its name in the legend."""
    trials = [
        Compared(f"ours:{n}", facts, next(t for t in facts.trials if t.number == n))
        for n in (0, 1)
    ]
    file = tmp_path / "both.html"
    file.write_text(to_html(comparison([*trials, Compared("ours", facts)])), encoding="utf-8")
    chromium.get(file.as_uri())
    assert chromium.get_log("browser") == []
    assert len(find(chromium, "#c-curve svg path")) == 3
    assert "ours:1" in find(chromium, "#c-curve .legend")[0].text


def test_a_picture_is_as_high_as_the_page(facts: StudyFacts) -> None:
    """A PNG of the whole page, from top to bottom."""
    picture = to_png(to_html(document_of(facts)))
    assert picture.startswith(b"\x89PNG")
    width, height = (int.from_bytes(picture[at : at + 4], "big") for at in (16, 20))
    assert width == 1160
    assert height > 3000
