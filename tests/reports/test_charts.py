"""What the charts of runs show, and say in words and tables."""

from __future__ import annotations

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from lorabench.reports import quantities
from tests.reports.chromium import Browser
from tests.reports.sample_pages import PAGES, TIMELINE
from tests.sample_records import LOSSES


@pytest.mark.parametrize(("section", "key"), [("memory", "optimizer_states"), ("accuracy", "qlora")])
def test_what_a_legend_names_can_be_hidden_and_shown(browser: Browser, section: str, key: str) -> None:
    browser.look("suite")
    count = f"document.querySelectorAll('#{section} .chart path[fill=\"var(--{key})\"]').length"
    [button] = browser.find(f"#{section} .legend button[data-key={key}]")
    before = browser.run(f"return {count}")
    assert before
    for shown, pressed in ((0, "false"), (before, "true")):
        button.send_keys(Keys.SPACE)
        browser.wait(f"return {count} === {shown}")
        assert button.get_attribute("aria-pressed") == pressed


def test_unstable_runs_are_named_where_it_matters(browser: Browser) -> None:
    browser.look("suite")
    assert any("1 of 9 runs" in text for text in browser.texts("#summary .warning"))
    assert any(text.endswith("unstable") for text in browser.texts("#speed .chart text"))


def test_charts_have_their_data_as_tables(browser: Browser) -> None:
    browser.look("suite")
    for details in browser.find("details.data > summary"):
        browser.run("arguments[0].click()", details)
    browser.wait("return [...document.querySelectorAll('details.data table')].every((table) => table.tBodies.length)")
    first = PAGES["suite"][0].record
    assert first.prediction is not None
    assert first.measurement is not None
    columns = browser.texts("#memory .data thead th")[:10]
    answers = browser.table("#memory .data table")[:2]
    for (name, *cells), memory in zip(answers, (first.prediction.memory, first.measurement.memory), strict=True):
        assert name.startswith("full")
        shown = dict(zip(columns[1:], cells, strict=False))
        for component, count in memory.components.items():
            assert shown.get(component.replace("_", " "), "0.0 MiB") == quantities.format_bytes(count)
    trained = [
        run.record.measurement for run in PAGES["suite"] if run.model == "demo/llama-2m" and run.record.measurement
    ]
    losses = browser.table("#learning .data table")
    for step, (number, *cells) in enumerate(losses):
        assert number == str(step + 1)
        for cell, measurement in zip(cells, trained, strict=True):
            every = measurement.losses
            loss = every[step] if step < len(every) else ""
            assert cell == (loss if loss == "" else "not finite" if loss is None else f"{loss:.4f}")


def test_bars_are_as_long_as_what_they_show(browser: Browser) -> None:
    browser.look("suite")
    wide = browser.run(
        "return [...document.querySelectorAll('#speed .chart')[0].querySelectorAll('path[fill^=\"var(--\"]')]"
        ".filter((path) => /full|lora/.test(path.getAttribute('fill'))).map((path) => path.getBBox().width)"
    )
    runs = [run for run in PAGES["suite"] if run.model == "demo/llama-2m" and run.tokens_per_second]
    scale = wide[0] / (runs[0].tokens_per_second or 0)
    assert wide == pytest.approx([scale * (run.tokens_per_second or 0) for run in runs], rel=1e-2)


def test_points_tell_their_run_and_numbers(browser: Browser) -> None:
    browser.look("single")
    run = PAGES["single"][0]
    [chart] = browser.find("#accuracy .chart[data-chart=scatter]")
    [point] = browser.run(
        "return [...document.querySelectorAll('#accuracy .chart[data-chart=scatter] path[fill=\"var(--lora)\"]')]"
        ".map((it) => it.getBoundingClientRect()).map((it) => [it.x + it.width / 2, it.y + it.height / 2])"
    )
    box = chart.rect
    where = ActionChains(browser.driver).move_to_element_with_offset(
        chart, int(point[0] - box["x"] - box["width"] / 2), int(point[1] - box["y"] - box["height"] / 2)
    )
    where.perform()
    assert browser.texts("#tip caption") == [run.name]
    shown = dict(browser.table("#tip table"))
    assert shown == {
        "measured peak": quantities.format_bytes(run.measured_peak_bytes),
        "estimated peak": quantities.format_bytes(run.estimated_peak_bytes),
    }


def test_one_run_is_shown_in_detail(browser: Browser) -> None:
    browser.show("suite")
    [choice] = browser.find(".detail select")
    with_timeline = next(run for run in PAGES["suite"] if run.record.recipe.rank == 32)
    assert Select(choice).first_selected_option.text == with_timeline.full_name
    most = max(count for _, count in TIMELINE)
    assert quantities.format_bytes(most) in browser.texts(".detail .timeline figcaption")[0]
    browser.run("arguments[0].click()", browser.find(".detail .timeline summary")[0])
    browser.wait("return document.querySelector('.detail .timeline table').tBodies.length")
    assert len(browser.table(".detail .timeline table")) == len(TIMELINE)
    other = PAGES["suite"][0]
    Select(choice).select_by_visible_text(other.full_name)
    browser.wait(
        "return document.querySelector('.detail .timeline figcaption').textContent.endsWith('has no timeline.')"
    )
    browser.run("arguments[0].click()", browser.find(".detail .phases summary")[0])
    browser.wait("return document.querySelector('.detail .phases table').tBodies.length")
    assert other.record.prediction is not None
    assert other.record.measurement is not None
    for phase, estimated, measured_peak in browser.table(".detail .phases table"):
        assert estimated == quantities.format_bytes(other.record.prediction.memory.phase_peaks_bytes[phase])
        assert measured_peak == quantities.format_bytes(other.record.measurement.memory.phase_peaks_bytes[phase])


def test_a_narrow_timeline_reaches_as_high_and_low_as_a_wide_one(browser: Browser) -> None:
    line = ".detail .timeline path[fill='none'][stroke='var(--measured)']"
    height = f'return document.querySelector("{line}").getBBox().height'
    browser.show("suite", width=1200)
    wide = browser.run(height)
    browser.resize(320, 3000)
    browser.wait("return document.querySelector('.detail .timeline svg').clientWidth < 320")
    assert browser.run(height) == pytest.approx(wide, rel=0.02)


def test_smoothing_draws_a_curve_over_each_raw_one(browser: Browser) -> None:
    browser.show("suite")
    count = "return document.querySelectorAll('#learning .chart[data-chart=learning] path[fill=none]').length"
    before = browser.run(count)
    Select(browser.find("#smoothing")[0]).select_by_value("0.9")
    browser.wait(f"{count} > {before}")
    [chart] = browser.find("#learning figure:first-of-type .chart[data-chart=learning]")[:1]
    ActionChains(browser.driver).move_to_element(chart).perform()
    step = int(browser.texts("#tip caption")[0].removeprefix("step "))
    smooth, weight = 0.0, 0.0
    for loss in LOSSES[:step]:
        smooth, weight = 0.9 * smooth + 0.1 * loss, 0.9 * weight + 0.1
    assert browser.table("#tip table")[0][2] == quantities.format_loss(smooth / weight)


def test_rehearsed_peaks_stand_beside_measured_ones_in_the_memory_charts(browser: Browser) -> None:
    browser.look("rehearsed")
    browser.wait("return document.querySelectorAll('#memory .chart[data-chart=memory] text').length > 0")
    bars = browser.texts("#memory .chart[data-chart=memory] text")
    assert {"rehearsed 99.0 MiB", "rehearsed 98.0 MiB", "out of memory"} <= set(bars)
    for details in browser.find("#memory details.data > summary")[:1]:
        browser.run("arguments[0].click()", details)
    browser.wait("return document.querySelector('#memory .data table').tBodies.length")
    rows = {name: cells for name, *cells in browser.table("#memory .data table")}
    columns = browser.texts("#memory .data thead th")
    reserved = columns.index("reserved") - 1
    assert rows["lora r1, measured"][reserved] == "100.0 MiB"
    assert rows["lora r1, rehearsed"][reserved] == "100.0 MiB"  # 99 MiB in segments of 2 MiB
    assert rows["lora r2, rehearsed"][reserved] == "98.0 MiB"
