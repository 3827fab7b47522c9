"""How the page fits windows of any width, and paper."""

from __future__ import annotations

import base64

import pytest

from tests.reports.chromium import Browser


@pytest.mark.parametrize(
    ("page", "width", "scheme"),
    [
        ("suite", 360, "dark"),
        ("suite", 1200, "light"),
        ("suite", 3840, "dark"),
        ("hostile", 360, "light"),
        ("folders", 360, "light"),
        ("planning", 360, "light"),
        ("planning", 800, "dark"),
        ("planning", 2400, "light"),
    ],
)
def test_nothing_is_wider_than_the_window(browser: Browser, page: str, width: int, scheme: str) -> None:
    browser.show(page, width=width, scheme=scheme)
    assert browser.run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert (
        browser.run(
            "return [...document.querySelectorAll('.chart')].filter((chart) =>"
            " [...chart.querySelectorAll('text')].some((text) => text.getBoundingClientRect().right >"
            " chart.getBoundingClientRect().right + 1)).map((chart) => chart.dataset.chart)"
        )
        == []
    )
    paper = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")


@pytest.mark.parametrize("page", ["suite", "folders"])
def test_on_a_phone_tables_of_words_are_read_without_scrolling_them(browser: Browser, page: str) -> None:
    browser.show(page, width=360, draw=False)
    reach = browser.run(
        "return [...document.querySelectorAll('.scroll:has(> .wordy)')].map((it) =>"
        " [it.scrollWidth - it.clientWidth, it.scrollHeight - it.clientHeight])"
    )
    assert reach == [[0, 0]] * 6


def test_charts_follow_the_width_of_the_window(browser: Browser) -> None:
    browser.show("suite", width=1200)
    browser.resize(500, 3000)
    browser.wait(
        "return [...document.querySelectorAll('.chart')].every((chart) => !chart.clientWidth ||"
        " Number(chart.querySelector('svg').getAttribute('width')) === chart.clientWidth && chart.clientWidth < 500)"
    )


def test_paper_holds_whole_charts_in_light_colours(browser: Browser) -> None:
    browser.show("suite", scheme="dark", draw=False)
    browser.run(
        "addEventListener('beforeprint', () => window.printed = [...document.querySelectorAll('.chart svg')]"
        ".map((svg) => svg.getAttribute('viewBox')))"
    )
    pdf = base64.b64decode(browser.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
    assert pdf.startswith(b"%PDF")
    printed = browser.run("return printed")
    assert len(printed) == len(browser.find(".chart"))
    assert all(printed)
    browser.wait("return document.querySelectorAll('.chart svg[viewBox]').length === 0")
    assert browser.complaints() == []
