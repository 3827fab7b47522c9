"""Takes the README's picture of a report: its summary, and where the bytes go.

python -m benchmarks.report_screenshot demo-results docs/report.png
"""

from __future__ import annotations

import argparse
import base64
import tempfile
from pathlib import Path

from lorabench.reports.page import render_report
from lorabench.reports.runs import read_runs
from tests.reports.chromium import Browser, open_browser

SECTIONS = ("summary", "memory")
WIDTH = 1000


def main() -> None:
    """Make the page of the results, show some of its sections alone, and save what Chromium shows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="a folder that lorabench run wrote")
    parser.add_argument("picture", type=Path, help="the PNG to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, open_browser(Path(place)) as driver:
        browser = Browser(driver, Path(place), lambda _: render_report(read_runs([arguments.results])))
        browser.show("report", width=WIDTH)
        browser.run(
            "for (const section of document.querySelectorAll('section'))"
            " section.hidden = !arguments[0].includes(section.id);"
            "for (const part of document.querySelectorAll('.persistent, .detail, footer')) part.hidden = true",
            SECTIONS,
        )
        height = browser.run("return Math.ceil(document.querySelector('main').getBoundingClientRect().bottom)")
        browser.resize(WIDTH, browser.run("return document.documentElement.scrollHeight"))
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": height, "scale": 1}
        shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "clip": clip})
        arguments.picture.write_bytes(base64.b64decode(shot["data"]))


if __name__ == "__main__":
    main()
