"""Chromium without a window, and what tests ask of a page in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
DRAWN = "return [...document.querySelectorAll('.chart')].every((it) => !it.clientWidth || it.querySelector('svg'))"
"""Every chart that is not hidden."""
PATIENCE_SECONDS = 20
WAIT = """
const [seconds, done] = arguments;
const holds = () => {
  CONDITION;
};
const until = performance.now() + 1000 * seconds;
const look = () => {
  if (holds()) done(true);
  else if (performance.now() > until) done(false);
  else setTimeout(look, 10);
};
look();"""


@contextmanager
def open_browser(folder: Path) -> Iterator[webdriver.Chrome]:
    """Yield a driver of Chromium, which keeps its profile in ``folder`` and logs console and network."""
    names = ("chromium", "chromium-browser", "google-chrome")
    binary = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which("chromedriver")
    if not (binary and driver):
        install = "apt-get install -y chromium chromium-driver"
        pytest.fail(f"it needs Chromium: {install}; --no-browser skips such tests", pytrace=False)
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in [*FLAGS.split(), f"--user-data-dir={folder / 'profile'}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    try:
        browser.set_script_timeout(2 * PATIENCE_SECONDS)
        yield browser
    finally:
        browser.quit()


class Browser:
    """Chromium and the pages that ``make`` makes by name, kept in a folder."""

    def __init__(self, driver: webdriver.Chrome, folder: Path, make: Callable[[str], str]) -> None:
        self.driver = driver
        self.driver.execute_cdp_cmd(
            "Page.addScriptToEvaluateOnNewDocument",
            {
                "source": "window.violations = []; addEventListener('securitypolicyviolation',"
                " (event) => violations.push(`${event.effectiveDirective} ${event.blockedURI}`))"
            },
        )
        self.folder = folder
        self.make = make
        self.looked_at: str | None = None

    def show(self, name: str, *, width: int = 1200, scheme: str = "light", draw: bool = True) -> None:
        """Load a page and wait until it can be used; if `draw`, as high as it takes for all its charts to be drawn."""
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        self.resize(width, 900)
        for log in ("browser", "performance"):
            self.logged(log)
        path = self.folder / f"{name}.html"
        if not path.exists():
            path.write_text(self.make(name), encoding="utf-8")
        self.driver.get("about:blank")
        self.driver.get(path.as_uri())
        self.wait("return document.documentElement.dataset.ready")
        if draw:
            self.resize(width, self.run("return document.documentElement.scrollHeight"), pixels=0.25)
            self.wait(DRAWN)
        self.looked_at = None

    def look(self, name: str) -> None:
        """Show a page as `show` does, for tests that leave it as it is: they share it."""
        if self.looked_at != name:
            self.show(name)
            self.looked_at = name

    def resize(self, width: int, height: int, pixels: float = 1) -> None:
        """Make the window of this size, with so many pixels of the device for each of the page's: few are quick."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": pixels, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def logged(self, log: str) -> list[dict[str, str]]:
        """Return what the log took since it was last asked."""
        entries: list[dict[str, str]] = self.driver.get_log(log)  # type: ignore[no-untyped-call]
        return entries

    def wait(self, condition: str) -> None:
        """Wait until the body of a function, evaluated in the page, returns something true."""
        script = WAIT.replace("CONDITION", condition)
        assert self.driver.execute_async_script(script, PATIENCE_SECONDS), condition

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

    def open_record(self, run: int) -> None:
        """Open the record of the row ``run`` of all runs, by keyboard."""
        self.find("#records .open")[run].send_keys(Keys.ENTER)
        self.wait("return document.querySelector('dialog').open")

    def close_record(self) -> None:
        self.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
        self.wait("return !document.querySelector('dialog').open")

    def complaints(self) -> list[str]:
        """Return what the console and the content security policy said, and every request but the page's own."""
        console = [entry["message"] for entry in self.logged("browser")]
        events = [json.loads(entry["message"])["message"] for entry in self.logged("performance")]
        urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
        foreign = [url for url in urls if url not in (self.driver.current_url, "about:blank", "data:,")]
        return [*console, *foreign, *self.run("return violations")]
