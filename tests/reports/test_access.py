"""The page by keyboard, by screen reader and with any eyesight."""

from __future__ import annotations

import pytest
from selenium.webdriver.common.keys import Keys

from tests.reports.chromium import Browser

NAMED = {"button", "columnheader", "combobox", "image", "link", "rowheader", "searchbox", "spinbutton"}
"""Roles that say nothing without a name."""
CONTRAST = """
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const luminance = (name) => {
  const probe = document.body.appendChild(document.createElement("i"));
  probe.style.color = `var(--${name})`;
  canvas.fillStyle = getComputedStyle(probe).color;
  canvas.fillRect(0, 0, 1, 1);
  probe.remove();
  const [red, green, blue] = [...canvas.getImageData(0, 0, 1, 1).data].map((part) =>
    part <= 10 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
};
const [dark, light] = [...arguments].map(luminance).sort((a, b) => a - b);
return (light + 0.05) / (dark + 0.05);"""


def test_everything_has_a_name_for_those_who_do_not_see_it(browser: Browser) -> None:
    browser.show("suite")
    browser.run("for (const summary of document.querySelectorAll('summary')) summary.click()")
    browser.wait("return [...document.querySelectorAll('.data table')].every((table) => table.rows.length)")
    nodes = browser.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    shown = [(node["role"]["value"], node["name"]["value"].strip()) for node in nodes if not node["ignored"]]
    assert {role for role, _ in shown} >= NAMED
    assert [role for role, name in shown if role in NAMED and not name] == []
    levels = browser.run(
        "return [...document.querySelectorAll('main :is(h2, h3, h4)')].map((it) => Number(it.tagName[1]))"
    )
    assert all(below <= above + 1 for above, below in zip([1, *levels], levels, strict=False))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_marks_stand_out_from_what_they_are_on(browser: Browser, scheme: str) -> None:
    browser.show("single", scheme=scheme, draw=False)
    for text in ("text", "muted", "link", "warn"):
        for ground in ("paper", "tint", "raised", "warn-tint"):
            assert browser.run(CONTRAST, text, ground) >= 4.5, (text, ground)
    for ground in ("fits", "tight", "too-much"):
        assert browser.run(CONTRAST, "text", ground) >= 4.5, ground
    for mark in ("full", "lora", "qlora", "estimated", "traced", "measured"):
        assert browser.run(CONTRAST, mark, "paper") >= 3, mark


def test_what_has_the_focus_is_not_hidden_behind_the_sections(browser: Browser) -> None:
    browser.show("suite", width=1000, draw=False)
    browser.run("document.documentElement.style.scrollBehavior = 'auto'")
    browser.run("document.querySelector('#records .filter').focus()")
    for _ in range(12):
        browser.driver.switch_to.active_element.send_keys(Keys.SHIFT + Keys.TAB)
        assert browser.run(
            "const [box, nav] = [document.activeElement, document.querySelector('nav')]"
            ".map((it) => it.getBoundingClientRect()); return box.height > innerHeight || box.top >= nav.bottom"
        )
