"""The page as Chromium shows it."""

from __future__ import annotations

import base64
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from lorabench.bench.records import RunRecord
from lorabench.reports import page, quantities
from lorabench.reports.page import render_report
from lorabench.reports.runs import Run, arrange
from tests.sample_records import MODEL_CONFIG, sample_record

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
HOSTILE = "</script><script>window.ran=1</script><img src=x onerror='window.ran=1'><!--\u2028\u202e{a|b}&amp;\"'"
MIB = 2**20


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
        sample_record(rank=32, losses=[6.0, None, 5.0, 4.0]),
    ]


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
    measurement = msgspec.structs.replace(trained.measurement, memory=memory)
    return [
        msgspec.structs.replace(record, device=device, environment=environment, started_at=HOSTILE),
        msgspec.structs.replace(trained, recipe=recipe, measurement=measurement),
        sample_record(model="x" * 400),
    ]


def many() -> list[RunRecord]:
    """Two hundred recipes of one model."""
    return [sample_record(rank=rank, batch_size=size) for rank in range(1, 51) for size in (1, 2, 4, 8)]


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
}


class Browser:
    """Chromium with the pages of `PAGES`."""

    def __init__(self, folder: Path) -> None:
        names = ("chromium", "chromium-browser", "google-chrome")
        binary = next(filter(None, map(shutil.which, names)), None)
        driver = shutil.which("chromedriver")
        if not (binary and driver):
            pytest.fail("the report's tests need Chromium: apt-get install -y chromium chromium-driver", pytrace=False)
        options = webdriver.ChromeOptions()
        options.binary_location = binary
        for flag in [*FLAGS.split(), f"--user-data-dir={folder / 'profile'}"]:
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
        self.driver.execute_cdp_cmd(
            "Page.addScriptToEvaluateOnNewDocument",
            {
                "source": "window.violations = []; addEventListener('securitypolicyviolation',"
                " (event) => violations.push(`${event.effectiveDirective} ${event.blockedURI}`))"
            },
        )
        self.folder = folder
        for name, runs in PAGES.items():
            (folder / f"{name}.html").write_text(render_report(runs), encoding="utf-8")

    def show(self, name: str, *, width: int = 1200, scheme: str = "light", draw: bool = True) -> None:
        """Load a page, as high as it takes for all its charts to be drawn."""
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        self.resize(width, 900)
        for log in ("browser", "performance"):
            self.logged(log)
        self.driver.get((self.folder / f"{name}.html").as_uri())
        if draw:
            self.resize(width, self.run("return document.documentElement.scrollHeight"))
            self.wait("return [...document.querySelectorAll('.chart')].every((chart) => chart.querySelector('svg'))")

    def resize(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def logged(self, log: str) -> list[dict[str, str]]:
        """Return what the log took since it was last asked."""
        entries: list[dict[str, str]] = self.driver.get_log(log)  # type: ignore[no-untyped-call]
        return entries

    def wait(self, condition: str) -> None:
        deadline = time.monotonic() + 20
        while not self.run(condition):
            assert time.monotonic() < deadline, condition

    def find(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        found: list[str] = self.run(
            "return [...document.querySelectorAll(arguments[0])].map((it) => it.textContent)", selector
        )
        return found

    def table(self, selector: str) -> list[list[str]]:
        """Return the texts of a table's body."""
        rows: list[list[str]] = self.run(
            "return [...document.querySelector(arguments[0]).tBodies[0].rows]"
            ".map((row) => [...row.cells].map((cell) => cell.textContent.trim()))",
            selector,
        )
        return rows

    def complaints(self) -> list[str]:
        """Return what the console and the content security policy said, and every request but the page's own."""
        console = [entry["message"] for entry in self.logged("browser")]
        events = [json.loads(entry["message"])["message"] for entry in self.logged("performance")]
        urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
        foreign = [url for url in urls if url not in (self.driver.current_url, "data:,")]
        return [*console, *foreign, *self.run("return violations")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("pages"))
    yield browser
    browser.driver.quit()


@pytest.mark.parametrize("page", PAGES)
def test_a_page_draws_its_charts_and_asks_for_nothing(browser: Browser, page: str) -> None:
    browser.show(page)
    drawn = browser.run(
        "return [...document.querySelectorAll('.chart')].map((chart) => chart.querySelectorAll('svg path').length > 0)"
    )
    assert all(drawn)
    assert bool(drawn) == any(run.record.prediction or run.record.measurement for run in PAGES[page])
    assert browser.complaints() == []


def test_using_the_page_breaks_no_policy(browser: Browser) -> None:
    browser.show("suite")
    for chart in browser.find(".chart"):
        ActionChains(browser.driver).move_to_element(chart).perform()
        assert browser.texts("#tip caption"), "nothing was said beside the pointer"
    for button in browser.find("summary, .legend button, .sort"):
        browser.run("arguments[0].click()", button)
    assert browser.complaints() == []


@pytest.mark.parametrize(
    ("page", "width", "scheme"),
    [("suite", 360, "dark"), ("suite", 1200, "light"), ("suite", 2400, "dark"), ("hostile", 360, "light")],
)
def test_nothing_is_wider_than_the_window(browser: Browser, page: str, width: int, scheme: str) -> None:
    browser.show(page, width=width, scheme=scheme)
    assert browser.run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert (
        browser.run(
            "return [...document.querySelectorAll('.chart')].filter((chart) =>"
            " [...chart.querySelectorAll('text')].some((text) => text.getBoundingClientRect().right >"
            " chart.getBoundingClientRect().right + 1)).length"
        )
        == 0
    )
    paper = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")


def test_charts_follow_the_width_of_the_window(browser: Browser) -> None:
    browser.show("suite", width=1200)
    browser.resize(500, 3000)
    browser.wait(
        "return [...document.querySelectorAll('.chart')].every((chart) =>"
        " Number(chart.querySelector('svg').getAttribute('width')) === chart.clientWidth && chart.clientWidth < 500)"
    )


def test_what_records_hold_stays_text(browser: Browser) -> None:
    browser.show("hostile")
    for button in browser.find("summary"):
        browser.run("arguments[0].click()", button)
    browser.wait("return document.querySelector('.traceback pre').textContent")
    assert browser.run("return window.ran") is None
    assert browser.run("return document.querySelectorAll('img, main i, main script:not([type])').length") == 0
    assert HOSTILE in browser.texts("h3")
    assert browser.texts(".message p") == [HOSTILE]
    assert browser.texts(".traceback pre") == [HOSTILE]
    assert HOSTILE in browser.texts(".environments td")
    assert HOSTILE in browser.texts("#memory .data td")
    assert f"lora r16 · target_modules {HOSTILE},q_proj" in browser.texts("#records .open")


def peaks(run: Run) -> tuple[int | None, int | None]:
    prediction, measurement = run.record.prediction, run.record.measurement
    return (
        prediction.memory.peak_allocated_bytes if prediction else None,
        measurement.memory.peak_allocated_bytes if measurement else None,
    )


def test_the_tables_hold_the_records_numbers(browser: Browser) -> None:
    browser.show("suite")
    values = browser.run(
        "return ['#memory', '#records'].map((name) => [...document.querySelectorAll(`${name} tbody tr[data-run]`)]"
        ".map((row) => [...row.querySelectorAll('td.number')]"
        ".map((cell) => 'value' in cell.dataset ? Number(cell.dataset.value) : null)))"
    )
    for run, (estimated, measured, error), shown in zip(PAGES["suite"], *values, strict=True):
        expected = peaks(run)
        assert (estimated, measured) == tuple(shown[:2]) == expected
        measurement = run.record.measurement
        if measurement is None:
            assert (error, shown[2], shown[3]) == (None, None, None)
        else:
            assert expected[0] is not None
            assert expected[1] is not None
            assert error == pytest.approx(expected[0] / expected[1] - 1)
            median = sorted(measurement.step_seconds)[4:6]
            assert shown[2] == pytest.approx(measurement.tokens_per_step / (sum(median) / 2))
            assert shown[3] == measurement.losses[-1]


def test_the_tables_write_what_they_hold(browser: Browser) -> None:
    browser.show("suite", draw=False)
    for run, row in zip(PAGES["suite"], browser.table("#memory table.sortable"), strict=True):
        estimated, measured = (f"{peak / MIB:.2f} MiB" if peak else "–" for peak in peaks(run))
        assert [row[0], row[1]] == [run.name, run.model]
        assert row[2:4] == [estimated, measured]
        assert row[-1] == {"ok": "ok", "oom": "out of memory", "timeout": "timeout"}[run.record.outcome]


def test_charts_have_their_data_as_tables(browser: Browser) -> None:
    browser.show("suite")
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
            assert shown.get(component.replace("_", " "), "0 MiB") == quantities.format_bytes(count)
    trained = [
        run.record.measurement for run in PAGES["suite"] if run.model == "demo/llama-2m" and run.record.measurement
    ]
    losses = browser.table("#losses .data table")
    for step, (number, *cells) in enumerate(losses):
        assert number == str(step + 1)
        for cell, measurement in zip(cells, trained, strict=True):
            every = measurement.losses
            loss = every[step] if step < len(every) else ""
            assert cell == (loss if loss == "" else "not finite" if loss is None else f"{loss:.4f}")


def test_bars_are_as_long_as_what_they_show(browser: Browser) -> None:
    browser.show("suite")
    wide = browser.run(
        "return [...document.querySelectorAll('#throughput .chart')[0].querySelectorAll('path[fill^=\"var(--\"]')]"
        ".filter((path) => /full|lora/.test(path.getAttribute('fill'))).map((path) => path.getBBox().width)"
    )
    runs = [run for run in PAGES["suite"] if run.model == "demo/llama-2m" and run.tokens_per_second]
    scale = wide[0] / (runs[0].tokens_per_second or 0)
    assert wide == pytest.approx([scale * (run.tokens_per_second or 0) for run in runs], rel=1e-2)


def test_a_component_can_be_hidden_and_shown(browser: Browser) -> None:
    browser.show("suite")
    count = "return document.querySelectorAll('#memory .chart path[fill=\"var(--optimizer_states)\"]').length"
    [button] = browser.find("#memory .legend button[data-key=optimizer_states]")
    before = browser.run(count)
    assert before
    button.send_keys(Keys.SPACE)
    assert (browser.run(count), button.get_attribute("aria-pressed")) == (0, "false")
    button.send_keys(Keys.SPACE)
    assert (browser.run(count), button.get_attribute("aria-pressed")) == (before, "true")


def test_a_column_sorts_both_ways_with_missing_figures_last(browser: Browser) -> None:
    browser.show("suite", draw=False)
    titles = [text.strip() for text in browser.texts("#records thead th")]
    column = titles.index("Measured peak")
    button = browser.find("#records .sort")[column]
    measured = [peaks(run)[1] for run in PAGES["suite"]]
    present = sorted(peak for peak in measured if peak is not None)
    missing = [None] * measured.count(None)
    for direction, expected in (("ascending", present + missing), ("descending", present[::-1] + missing)):
        button.send_keys(Keys.ENTER)
        values = browser.run(
            "return [...document.querySelectorAll('#records tbody tr')].map((row) =>"
            " JSON.parse(row.cells[arguments[0]].dataset.value ?? 'null'))",
            column,
        )
        assert values == expected
        assert button.find_element(By.XPATH, "..").get_attribute("aria-sort") == direction


def test_settings_sort_as_numbers(browser: Browser) -> None:
    browser.show("suite", draw=False)
    column = [text.strip() for text in browser.texts("#records thead th")].index("rank")
    browser.find("#records .sort")[column].send_keys(Keys.ENTER)
    ranks = [row[column] for row in browser.table("#records table")]
    assert ranks == ["8"] * 4 + ["32", "64", "64", "128", "256", "–", "–"]


def test_a_row_opens_the_whole_record(browser: Browser) -> None:
    for page in ("suite", "hostile"):
        browser.show(page, draw=False)
        for run, button in zip(PAGES[page], browser.find("#records .open"), strict=True):
            button.send_keys(Keys.ENTER)
            [shown] = browser.texts("dialog[open] pre")
            assert json.loads(shown) == json.loads(msgspec.json.encode(run.record))
            browser.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
            assert browser.find("dialog[open]") == []


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


@pytest.mark.parametrize(
    ("script", "write"),
    [
        ("formatBytes", lambda value: quantities.format_bytes(int(value))),
        ("formatShare", quantities.format_share),
        ("formatNumber", quantities.format_number),
    ],
)
def test_charts_write_quantities_as_tables_do(browser: Browser, script: str, write: Any) -> None:
    browser.show("single", draw=False)
    values = [
        0,
        0.0123,
        -0.0871,
        0.4,
        1.234,
        9.87,
        56.78,
        1234.6,
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
    functions = (Path(page.__file__).parent / "js/quantities.js").read_text().replace("export ", "")
    assert browser.run(f"{functions}; return arguments[0].map({script})", values) == [write(value) for value in values]


def test_a_thousand_records_stay_small() -> None:
    losses = [6.93 - 0.0123456789 * step for step in range(40)]
    records = [
        sample_record(rank=rank, batch_size=size, losses=losses, step_seconds=losses[:30])
        for rank in range(1, 126)
        for size in range(1, 9)
    ]
    assert len(render_report(arrange({"results": records})).encode()) < 5 * 10**6
