"""The page as Chromium shows it."""

from __future__ import annotations

import base64
import csv
import json
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from lorabench.bench.records.record import RunRecord
from lorabench.reports import page as page_module
from lorabench.reports import quantities
from lorabench.reports.page import render_page, render_report
from lorabench.reports.runs import Run, arrange
from lorabench.reports.sections import SECTIONS
from lorabench.reports.subject import Subject
from tests.reports.chromium import DRAWN, Browser, open_browser
from tests.sample_records import LOSSES, MODEL_CONFIG, sample_record

HOSTILE = "</script><script>window.ran=1</script><img src=x onerror='window.ran=1'><!--\u2028\u202e{a|b}&amp;\"'"
MIB = 2**20
TIMELINE = tuple((float(event), (event * 37 % 50 + 1) * MIB) for event in range(200))


def suite() -> list[RunRecord]:
    """Two models, three methods, every outcome."""
    records = [
        sample_record(model=model, model_config={**MODEL_CONFIG, "name": model}, method=method, rank=rank, batch_size=4)
        for model in ("demo/llama-2m", "demo/other")
        for method, rank in (("full", None), ("lora", 8), ("lora", 64), ("qlora", 8))
    ]
    return [
        *records,
        sample_record(
            rank=128, outcome="oom", message="Tried to allocate 2 GiB", traceback="File 'step.py'\n  train()"
        ),
        sample_record(rank=256, outcome="timeout"),
        sample_record(rank=300, outcome="skipped"),
        measured(
            sample_record(rank=32, losses=[6.0, None, 5.0, 4.0]),
            timeline=TIMELINE,
            mfu=0.4321,
            held_out_loss_before=6.5,
            held_out_loss_after=4.25,
            unstable=("clocks changed",),
        ),
    ]


def measured(record: RunRecord, **changes: Any) -> RunRecord:
    """Return a record with changes of its measurement."""
    assert record.measurement is not None
    return msgspec.structs.replace(record, measurement=msgspec.structs.replace(record.measurement, **changes))


def hostile() -> list[RunRecord]:
    """Markup wherever a record holds text."""
    record = sample_record(model=HOSTILE, suite=HOSTILE, message=HOSTILE, traceback=HOSTILE, outcome="error")
    device = msgspec.structs.replace(record.device, name=HOSTILE)
    environment = msgspec.structs.replace(record.environment, packages={HOSTILE: HOSTILE, "__proto__": "1"})
    trained = sample_record(model="x" * 400, model_config={**MODEL_CONFIG, "k": HOSTILE})
    recipe = msgspec.structs.replace(trained.recipe, target_modules=f"q_proj,{HOSTILE}")
    assert trained.measurement is not None
    memory = msgspec.structs.replace(
        trained.measurement.memory, phase=HOSTILE, components={HOSTILE: 9 * MIB, "__proto__": MIB}
    )
    return [
        msgspec.structs.replace(record, device=device, environment=environment, started_at=HOSTILE),
        measured(msgspec.structs.replace(trained, recipe=recipe), memory=memory, unstable=(HOSTILE,)),
        sample_record(model="x" * 400),
        sample_record(model="=1+1", rank=3),
    ]


def many() -> list[RunRecord]:
    """More recipes of one model than a page derives the estimates of."""
    return [sample_record(rank=rank, batch_size=size) for rank in range(1, 52) for size in (1, 2, 4, 8)]


PAGES: dict[str, list[Run]] = {
    name: arrange({"results": records})
    for name, records in {
        "suite": suite(),
        "hostile": hostile(),
        "many": many(),
        "single": [sample_record()],
        "failed": [sample_record(outcome="oom"), sample_record(rank=1, outcome="error", traceback="boom")],
        "unpredicted": [msgspec.structs.replace(sample_record(step_seconds=[0.4], losses=[6.0]), prediction=None)],
    }.items()
} | {
    "folders": arrange(
        {
            "old": [sample_record(rank=rank, peak_allocated_bytes=100 * MIB) for rank in (1, 2)],
            f"new {HOSTILE}": [sample_record(rank=rank, peak_allocated_bytes=90 * MIB) for rank in (1, 2)],
        }
    )
}


def page_of(runs: list[Run], *, whole: bool) -> str:
    """Return the page of ``runs``, if not ``whole`` without estimates and derivations, which take seconds to make."""
    if whole:
        return render_report(runs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module("lorabench.reports.sections.records"), "DERIVED", 0)
        sections = [(section, data) for section in SECTIONS if (data := section.data(Subject(runs))) is not None]
    return render_page(runs[0].record.suite, "Tested", sections)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    folder = tmp_path_factory.mktemp("pages")
    for name, runs in PAGES.items():
        (folder / f"{name}.html").write_text(page_of(runs, whole=name == "suite"), encoding="utf-8")
    with open_browser(folder) as driver:
        yield Browser(driver, folder)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_draws_its_charts_and_asks_for_nothing(browser: Browser, page: str) -> None:
    browser.show(page)
    drawn = browser.run(
        "return [...document.querySelectorAll('.chart')].filter((chart) => chart.clientWidth)"
        ".map((chart) => chart.querySelectorAll('svg path').length > 0)"
    )
    assert all(drawn)
    assert bool(drawn) == any(run.record.prediction or run.record.measurement for run in PAGES[page])
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


@pytest.mark.parametrize(
    ("page", "width", "scheme"),
    [
        ("suite", 360, "dark"),
        ("suite", 1200, "light"),
        ("suite", 3840, "dark"),
        ("hostile", 360, "light"),
        ("folders", 360, "light"),
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


def test_what_records_hold_stays_text(browser: Browser) -> None:
    browser.show("hostile")
    for button in browser.find("summary"):
        browser.run("arguments[0].click()", button)
    browser.wait("return document.querySelector('.traceback pre').textContent")
    browser.wait("return document.querySelectorAll('#memory .data td').length")
    for run in range(len(PAGES["hostile"])):
        open_record(browser, run)
        close_record(browser)
    assert browser.run("return window.ran") is None
    assert browser.run("return document.querySelectorAll('img, main i, main script:not([type])').length") == 0
    assert HOSTILE in browser.texts("h3")
    assert browser.texts(".message p") == [HOSTILE]
    assert browser.texts(".traceback pre") == [HOSTILE]
    assert HOSTILE in browser.texts(".environments td")
    assert HOSTILE in browser.texts("#memory .data td")
    assert f"lora r16 · target_modules {HOSTILE},q_proj" in browser.texts("#records .open")
    assert browser.complaints() == []


def open_record(browser: Browser, run: int) -> None:
    browser.find("#records .open")[run].send_keys(Keys.ENTER)
    browser.wait("return document.querySelector('dialog').open")


def close_record(browser: Browser) -> None:
    browser.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    browser.wait("return !document.querySelector('dialog').open")


def peaks(run: Run) -> tuple[int | None, int | None]:
    prediction, measurement = run.record.prediction, run.record.measurement
    return (
        prediction.memory.peak_allocated_bytes if prediction else None,
        measurement.memory.peak_allocated_bytes if measurement else None,
    )


def table_of_runs(browser: Browser) -> list[dict[str, str]]:
    """Return the rows of the table of all runs, by the names of their columns."""
    names = browser.run("return [...document.querySelectorAll('#records thead th')].map((it) => it.dataset.key)")
    return [dict(zip(names, row, strict=True)) for row in browser.table("#records table")]


def test_the_table_of_runs_holds_the_records_numbers(browser: Browser) -> None:
    browser.look("suite")
    rows = table_of_runs(browser)
    assert len(rows) == len(PAGES["suite"])
    for run, row in zip(PAGES["suite"], rows, strict=True):
        estimated, measured_peak = peaks(run)
        measurement = run.record.measurement
        assert (row["recipe"], row["model"]) == (run.name, run.model)
        assert row["estimated_peak_bytes"] == quantities.format_bytes(estimated)
        assert row["measured_peak_bytes"] == quantities.format_bytes(measured_peak)
        names = {"ok": "ok", "oom": "out of memory", "timeout": "timeout", "skipped": "skipped"}
        assert row["outcome"] == names[run.record.outcome]
        if measurement is None:
            assert (row["peak_error"], row["tokens_per_second"], row["final_loss"]) == ("–", "–", "–")
            continue
        assert estimated is not None
        assert measured_peak is not None
        assert row["peak_error"] == quantities.format_share(estimated / measured_peak - 1)
        median = sum(sorted(measurement.step_seconds)[4:6]) / 2
        assert row["tokens_per_second"] == quantities.format_number(measurement.tokens_per_step / median)
        assert row["final_loss"] == quantities.format_loss(measurement.losses[-1])
        assert row["mfu"] == ("43.2%" if measurement.mfu else "–")


def test_a_component_can_be_hidden_and_shown(browser: Browser) -> None:
    browser.look("suite")
    count = "return document.querySelectorAll('#memory .chart path[fill=\"var(--optimizer_states)\"]').length"
    [button] = browser.find("#memory .legend button[data-key=optimizer_states]")
    before = browser.run(count)
    assert before
    button.send_keys(Keys.SPACE)
    assert (browser.run(count), button.get_attribute("aria-pressed")) == (0, "false")
    button.send_keys(Keys.SPACE)
    assert (browser.run(count), button.get_attribute("aria-pressed")) == (before, "true")


def test_a_method_can_be_hidden_and_shown(browser: Browser) -> None:
    browser.look("suite")
    count = "return document.querySelectorAll('#accuracy .chart path[fill=\"var(--qlora)\"]').length"
    [button] = browser.find("#accuracy .legend button[data-key=qlora]")
    before = browser.run(count)
    assert before
    button.send_keys(Keys.SPACE)
    browser.wait(f"return ({count.removeprefix('return ')}) === 0")
    button.send_keys(Keys.SPACE)
    browser.wait(f"return ({count.removeprefix('return ')}) === {before}")


def test_headlines_lead_to_their_sections(browser: Browser) -> None:
    browser.look("suite")
    targets = browser.run(
        "return [...document.querySelectorAll('.headlines a, .warning a, nav a')].map((it) => it.hash)"
    )
    assert {"#accuracy", "#memory", "#speed", "#failures"} <= set(targets)
    assert all(browser.run("return document.querySelector(arguments[0]) !== null", target) for target in targets)


def test_unstable_runs_are_named_where_it_matters(browser: Browser) -> None:
    browser.look("suite")
    assert any("1 run of 9" in text for text in browser.texts("#summary .warning"))
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


def test_a_row_opens_the_whole_record(browser: Browser) -> None:
    suite = {run.record.outcome: run for run in PAGES["suite"]}.values()
    for name, runs in (("suite", suite), ("hostile", PAGES["hostile"][:2])):
        browser.show(name, draw=False)
        for run in runs:
            open_record(browser, run.index)
            [shown] = browser.texts("dialog[open] pre")
            assert json.loads(shown) == json.loads(msgspec.json.encode(run.record))
            facts = dict(
                browser.run(
                    "return [...document.querySelectorAll('dialog .environment tbody tr')]"
                    ".map((row) => [row.cells[0].textContent, row.cells[1].textContent])"
                )
            )
            assert facts["device"] == run.record.device.name
            assert run.record.environment.packages.items() <= facts.items()
            close_record(browser)


def downloaded(browser: Browser, button: str, name: str) -> str:
    """Return what a button of the table gives to save."""
    folder = browser.folder / f"saved-{time.monotonic_ns()}"
    behaviour = {"behavior": "allow", "downloadPath": str(folder)}
    browser.driver.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
    browser.run("arguments[0].click()", browser.find(f"#records button.{button}")[0])
    deadline = time.monotonic() + 120
    while not (folder / name).is_file():
        assert time.monotonic() < deadline, "nothing was saved"
        time.sleep(0.02)
    return (folder / name).read_text(encoding="utf-8")


def test_downloads_hold_the_chosen_runs(browser: Browser) -> None:
    browser.show("suite", draw=False)
    browser.find("#records input.filter")[0].send_keys("other qlora")
    [expected] = [run for run in PAGES["suite"] if run.model == "demo/other" and run.method == "qlora"]
    [saved] = json.loads(downloaded(browser, "json", "runs.json"))
    assert saved == json.loads(msgspec.json.encode(expected.record))
    [row] = csv.DictReader(downloaded(browser, "csv", "runs.csv").splitlines())
    assert (int(row["estimated_peak_bytes"]), int(row["measured_peak_bytes"])) == peaks(expected)
    assert float(row["peak_error"]) == expected.peak_error
    assert browser.complaints() == []


def test_no_spreadsheet_takes_a_name_for_a_formula(browser: Browser) -> None:
    browser.show("hostile", draw=False)
    names = {row["model"] for row in csv.DictReader(downloaded(browser, "csv", "runs.csv").splitlines())}
    assert "'=1+1" in names
    assert "=1+1" not in names


def test_runs_are_filtered_by_words_and_choices(browser: Browser) -> None:
    browser.show("suite", draw=False)
    Select(browser.find("#records select[data-column=method]")[0]).select_by_visible_text("lora")
    assert {row["recipe"].split()[0] for row in table_of_runs(browser)} == {"lora"}
    Select(browser.find("#records select[data-column=outcome]")[0]).select_by_visible_text("out of memory")
    assert [row["rank"] for row in table_of_runs(browser)] == ["128"]
    field = browser.find("#records input.filter")[0]
    field.send_keys("no such run")
    assert browser.texts("#records .shown") == ["No run is like that."]
    assert browser.table("#records table") == []


def test_many_runs_are_shown_a_page_at_a_time(browser: Browser) -> None:
    browser.show("many", draw=False)
    shown = [row["recipe"] for row in table_of_runs(browser)]
    assert shown == [run.name for run in PAGES["many"][:50]]
    browser.find("#records button.next")[0].send_keys(Keys.ENTER)
    assert browser.texts("#records .shown") == ["51 to 100 of 204"]
    assert [row["recipe"] for row in table_of_runs(browser)] == [run.name for run in PAGES["many"][50:100]]


def test_a_page_of_many_runs_says_where_their_derivations_are(browser: Browser) -> None:
    browser.show("many", draw=False)
    assert "leaves to lorabench estimate --explain" in browser.texts("#records > p")[0]
    open_record(browser, 0)
    assert "lorabench estimate --explain prints it" in browser.texts("dialog .derived")[0]


def test_columns_can_be_hidden_and_added(browser: Browser) -> None:
    browser.show("suite", draw=False)
    for key in ("outcome", "peak_phase"):
        browser.run("arguments[0].click()", browser.find(f"#records .columns input[data-key={key}]")[0])
    rows = table_of_runs(browser)
    assert "outcome" not in rows[0]
    phases = [run.record.measurement.memory.phase if run.record.measurement else "–" for run in PAGES["suite"]]
    assert [row["peak_phase"] for row in rows] == phases


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


def test_one_run_is_shown_closely(browser: Browser) -> None:
    browser.show("suite")
    [choice] = browser.find(".closely select")
    with_timeline = next(run for run in PAGES["suite"] if run.record.recipe.rank == 32)
    assert Select(choice).first_selected_option.text == with_timeline.full_name
    most = max(count for _, count in TIMELINE)
    assert quantities.format_bytes(most) in browser.texts(".closely .timeline figcaption")[0]
    browser.run("arguments[0].click()", browser.find(".closely .timeline summary")[0])
    browser.wait("return document.querySelector('.closely .timeline table').tBodies.length")
    assert len(browser.table(".closely .timeline table")) == len(TIMELINE)
    other = PAGES["suite"][0]
    Select(choice).select_by_visible_text(other.full_name)
    browser.wait("return document.querySelector('.closely .timeline figcaption').textContent.startsWith('No timeline')")
    browser.run("arguments[0].click()", browser.find(".closely .phases summary")[0])
    browser.wait("return document.querySelector('.closely .phases table').tBodies.length")
    assert other.record.prediction is not None
    assert other.record.measurement is not None
    for phase, estimated, measured_peak in browser.table(".closely .phases table"):
        assert estimated == quantities.format_bytes(other.record.prediction.memory.phase_peaks_bytes[phase])
        assert measured_peak == quantities.format_bytes(other.record.measurement.memory.phase_peaks_bytes[phase])


def test_a_narrow_timeline_reaches_as_high_and_low_as_a_wide_one(browser: Browser) -> None:
    line = ".closely .timeline path[fill='none'][stroke='var(--measured)']"
    heights = []
    for width in (1200, 320):
        browser.show("suite", width=width)
        heights.append(browser.run("return document.querySelector(arguments[0]).getBBox().height", line))
    assert heights[1] == pytest.approx(heights[0], rel=0.02)


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


def test_folders_stand_side_by_side(browser: Browser) -> None:
    browser.show("folders")
    rows = [row for row in browser.table("#comparison table.changes") if row[1] == "peak memory"]
    assert {(*row[2:5], row[6]) for row in rows} == {("100.0 MiB", "90.0 MiB", "−10%", "improvement")}
    assert len(rows) == 2


def test_a_column_sorts_both_ways_with_missing_figures_last(browser: Browser) -> None:
    browser.show("suite", draw=False)
    found = [peaks(run)[1] for run in PAGES["suite"]]
    present = sorted(peak for peak in found if peak is not None)
    missing = ["–"] * found.count(None)
    for direction, expected in (("ascending", present), ("descending", present[::-1])):
        browser.find('#records th[data-key="measured_peak_bytes"] .sort')[0].send_keys(Keys.ENTER)
        shown = [row["measured_peak_bytes"] for row in table_of_runs(browser)]
        assert shown == [*map(quantities.format_bytes, expected), *missing]
        [header] = browser.find('#records th[data-key="measured_peak_bytes"]')
        assert header.get_attribute("aria-sort") == direction


def test_settings_sort_as_numbers(browser: Browser) -> None:
    browser.show("suite", draw=False)
    browser.find('#records th[data-key="rank"] .sort')[0].send_keys(Keys.ENTER)
    ranks = [row["rank"] for row in table_of_runs(browser)]
    assert ranks == ["8"] * 4 + ["32", "64", "64", "128", "256", "300", "–", "–"]


def test_a_record_opens_with_the_derivation_of_its_estimate(browser: Browser) -> None:
    browser.show("suite", draw=False)
    run = next(run for run in PAGES["suite"] if run.method == "lora" and run.record.prediction)
    open_record(browser, run.index)
    assert run.record.prediction is not None
    adapters = quantities.format_bytes(run.record.prediction.memory.components["adapters"])
    assert f"Adapters: {adapters}" in browser.texts("dialog .derived h3")


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


@pytest.mark.parametrize(
    ("script", "write"),
    [
        ("formatBytes", lambda value: quantities.format_bytes(int(value))),
        ("formatShare", quantities.format_share),
        ("formatNumber", quantities.format_number),
    ],
)
def test_charts_write_quantities_as_tables_do(browser: Browser, script: str, write: Any) -> None:
    browser.look("single")
    values = [
        0,
        0.0123,
        -0.0871,
        0.4,
        1.234,
        9.87,
        56.78,
        1234.6,
        -0.00002,
        600_000,
        2.125 * MIB,
        12.75 * MIB,
        1.375 * 2**30,
        7 * MIB,
        123 * MIB,
        2**30,
        3 * 10**12,
    ]
    if script == "formatBytes":
        values = [int(value) for value in values if value >= 0]
    elif script == "formatNumber":
        values = [value for value in values if value >= 0]
    functions = (Path(page_module.__file__).parent / "js/quantities.js").read_text().replace("export ", "")
    assert browser.run(f"{functions}; return arguments[0].map({script})", values) == [write(value) for value in values]


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
    assert len(page_of(runs, whole=False).encode()) < 4 * 10**6
