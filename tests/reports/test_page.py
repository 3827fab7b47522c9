"""The page as Chromium shows it: whole, safe and small."""

from __future__ import annotations

import re
from random import Random

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from lorabench.reports.runs import arrange
from tests.reports.chromium import DRAWN, Browser
from tests.reports.sample_pages import HOSTILE, PAGES, page_of
from tests.sample_records import sample_record


@pytest.mark.parametrize("page", PAGES)
def test_a_page_draws_its_charts_and_asks_for_nothing(browser: Browser, page: str) -> None:
    browser.show(page)
    drawn = browser.run(
        "return [...document.querySelectorAll('.chart')].filter((chart) => chart.clientWidth)"
        ".map((chart) => chart.querySelectorAll('svg path').length > 0)"
    )
    assert all(drawn)
    assert bool(drawn) == any(run.record.prediction or run.record.measurement for run in PAGES[page])
    assert (
        re.findall(r"NaN|Infinity|undefined|\[object", browser.run("return document.querySelector('main').innerText"))
        == []
    )
    assert browser.complaints() == []


def test_using_the_page_breaks_no_policy(browser: Browser) -> None:
    browser.show("suite")
    for chart in browser.find("#memory .chart, #speed .chart[data-chart=speed], #learning .chart[data-chart=learning]"):
        if chart.is_displayed():
            ActionChains(browser.driver).move_to_element(chart).perform()
            assert browser.texts("#tip caption"), "nothing was said beside the pointer"
    browser.run("for (const it of document.querySelectorAll('summary, .legend button, .sort')) it.click()")
    browser.run(
        "for (const choice of document.querySelectorAll('select'))"
        " for (const option of [choice.options[choice.options.length - 1], choice.options[0]]) {"
        " choice.value = option.value; choice.dispatchEvent(new Event('change', { bubbles: true })); }"
    )
    assert browser.complaints() == []


def test_what_records_hold_stays_text(browser: Browser) -> None:
    browser.show("hostile")
    for button in browser.find("summary"):
        browser.run("arguments[0].click()", button)
    browser.wait("return document.querySelector('.traceback pre').textContent")
    browser.wait("return document.querySelectorAll('#memory .data td').length")
    for run in range(len(PAGES["hostile"])):
        browser.open_record(run)
        browser.close_record()
    assert browser.run("return window.ran") is None
    assert browser.run("return document.querySelectorAll('img, main i, main script:not([type])').length") == 0
    assert HOSTILE in browser.texts("h3")
    assert browser.texts(".message p") == [HOSTILE]
    assert browser.texts(".traceback pre") == [HOSTILE]
    assert HOSTILE in browser.texts(".environments td")
    assert HOSTILE in browser.texts("#memory .data td")
    assert f"lora r16 · target_modules q_proj,{HOSTILE}" in browser.texts("#records .open")
    assert browser.complaints() == []


def test_headlines_lead_to_their_sections(browser: Browser) -> None:
    browser.look("suite")
    targets = browser.run(
        "return [...document.querySelectorAll('.headlines a, .warning a, nav a')].map((it) => it.hash)"
    )
    assert {"#accuracy", "#memory", "#speed", "#failures"} <= set(targets)
    assert all(browser.run("return document.querySelector(arguments[0]) !== null", target) for target in targets)


def test_folders_stand_side_by_side(browser: Browser) -> None:
    browser.show("folders")
    rows = [row for row in browser.table("#comparison table.changes") if row[1] == "peak memory"]
    assert {(*row[2:5], row[6]) for row in rows} == {("100.0 MiB", "90.0 MiB", "−10%", "improvement")}
    assert len(rows) == 2


def test_figures_beyond_a_few_are_chosen_from_a_list(browser: Browser) -> None:
    browser.show("many")
    shown = "return [...document.querySelectorAll('#memory .gallery > figure')].findIndex((it) => !it.hidden)"
    [choice] = browser.find("#memory select.figure")
    assert len(Select(choice).options) == 21
    Select(choice).select_by_index(5)
    assert browser.run(shown) == 5
    browser.wait(DRAWN)
    previous, following = browser.find("#memory .steps button")
    previous.send_keys(Keys.ENTER)
    assert browser.run(shown) == 4
    following.send_keys(Keys.ENTER)
    assert browser.run(shown) == 5
    first = PAGES["many"][5 * 10]
    assert first.name in browser.run("return document.querySelectorAll('#memory .gallery > figure')[5].textContent")


def test_a_thousand_records_stay_small() -> None:
    random = Random(0)
    losses = [random.uniform(4, 7) for _ in range(40)]
    runs = arrange(
        {
            "results": [
                sample_record(rank=rank, batch_size=size, losses=losses, step_seconds=losses[:30])
                for rank in range(1, 126)
                for size in range(1, 9)
            ]
        }
    )
    assert len(page_of(runs).encode()) < 4 * 10**6
