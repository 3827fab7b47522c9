"""The table of all runs, and the records that it opens and gives to save."""

from __future__ import annotations

import csv
import json
import time

import msgspec
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from lorabench.reports import quantities
from lorabench.reports.runs import Run
from tests.reports.chromium import Browser
from tests.reports.sample_pages import PAGES


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


def test_browsers_without_scripts_list_the_runs_all_the_same(browser: Browser) -> None:
    browser.show("suite", draw=False)
    expected = [" ".join(row) for row in browser.table("#records > .scroll table")]
    browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    browser.driver.refresh()
    listed = [row.text for row in browser.find("#records noscript tbody tr")]
    empty = [it.is_displayed() for it in browser.find("#what_if, #records > .scroll, .chart")]
    browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert listed == expected
    assert not any(empty)


def test_runs_are_filtered_by_words_and_choices(browser: Browser) -> None:
    browser.show("suite", draw=False)
    Select(browser.find("#records select[data-column=method]")[0]).select_by_visible_text("lora")
    assert {row["recipe"].split()[0] for row in table_of_runs(browser)} == {"lora"}
    Select(browser.find("#records select[data-column=outcome]")[0]).select_by_visible_text("out of memory")
    assert [row["rank"] for row in table_of_runs(browser)] == ["128"]
    field = browser.find("#records input.filter")[0]
    field.send_keys("no such run")
    assert browser.texts("#records .shown") == ["No run matches."]
    assert browser.table("#records table") == []


def test_many_runs_are_shown_a_page_at_a_time(browser: Browser) -> None:
    browser.show("many", draw=False)
    shown = [row["recipe"] for row in table_of_runs(browser)]
    assert shown == [run.name for run in PAGES["many"][:50]]
    browser.find("#records button.next")[0].send_keys(Keys.ENTER)
    assert browser.texts("#records .shown") == ["51 to 100 of 204"]
    assert [row["recipe"] for row in table_of_runs(browser)] == [run.name for run in PAGES["many"][50:100]]


def test_columns_can_be_hidden_and_added(browser: Browser) -> None:
    browser.show("suite", draw=False)
    for key in ("outcome", "peak_phase"):
        browser.run("arguments[0].click()", browser.find(f"#records .columns input[data-key={key}]")[0])
    rows = table_of_runs(browser)
    assert "outcome" not in rows[0]
    phases = [run.record.measurement.memory.phase if run.record.measurement else "–" for run in PAGES["suite"]]
    assert [row["peak_phase"] for row in rows] == phases


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


def test_a_row_opens_the_whole_record(browser: Browser) -> None:
    suite = {run.record.outcome: run for run in PAGES["suite"]}.values()
    for name, runs in (("suite", suite), ("hostile", PAGES["hostile"][:2])):
        browser.show(name, draw=False)
        for run in runs:
            browser.open_record(run.index)
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
            browser.close_record()


def test_a_record_opens_with_the_derivation_of_its_estimate(browser: Browser) -> None:
    browser.show("suite", draw=False)
    run = next(run for run in PAGES["suite"] if run.method == "lora" and run.record.prediction)
    browser.open_record(run.index)
    assert run.record.prediction is not None
    adapters = quantities.format_bytes(run.record.prediction.memory.components["adapters"])
    assert f"Adapters: {adapters}" in browser.texts("dialog .derived h3")


def test_a_page_of_many_runs_says_where_their_derivations_are(browser: Browser) -> None:
    browser.show("many", draw=False)
    assert "use lorabench estimate --explain" in browser.texts("#records > p")[0]
    browser.open_record(0)
    assert "use lorabench estimate --explain" in browser.texts("dialog .derived")[0]


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
