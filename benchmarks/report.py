"""How large a report of many records is, and how soon a browser has it ready to be used.

    python -m benchmarks.report            # 1,000 and 10,000 records
    python -m benchmarks.report --runs 300

Records are made up (tests/sample_records.py). "Ready" is from the start of loading until all controls work and the
records of what is shown first are unpacked, as Chromium counts it; the best of three loads. "Sorted" and "filtered" are
from the choice until the table of all runs is painted again.

On two cores that other work kept busy (1.0 and 11.3 s of processor time went into making them):

       runs   made in      size  ready in  sorted in filtered in
      1,000     5.6 s    3.1 MB    1.01 s     0.09 s      0.11 s
     10,000    41.4 s   24.7 MB    3.90 s     0.08 s      0.22 s
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from itertools import islice, product
from pathlib import Path
from random import Random

from selenium import webdriver

from lorabench.bench.records.record import RunRecord
from lorabench.reports.page import render_report
from lorabench.reports.runs import arrange
from tests.reports.chromium import open_browser
from tests.sample_records import MODEL_CONFIG, sample_record

STEPS = 50
SORT = "document.querySelector('#records th[data-key=tokens_per_second] .sort').click()"
FILTER = (
    "const field = document.querySelector('#records input.filter');"
    " field.value = 'qlora r12'; field.dispatchEvent(new Event('input'))"
)
PATIENCE_SECONDS = 60


def many_records(number: int) -> list[RunRecord]:
    """Return records of six models, each with step times and losses of its own."""
    random = Random(0)  # noqa: S311
    choices = product(range(1, number), (1, 2, 4, 8), ("lora", "qlora"), range(6))
    records = []
    for rank, batch_size, method, model in islice(choices, number):
        name = f"demo/llama-{model + 1}m"
        losses = [6.9 * math.exp(-step / 40) + random.gauss(0, 0.05) for step in range(STEPS)]
        records.append(
            sample_record(
                model=name,
                model_config={**MODEL_CONFIG, "name": name},
                method=method,
                rank=rank,
                batch_size=batch_size,
                losses=losses,
                step_seconds=[0.4 * batch_size + abs(random.gauss(0, 0.01)) for _ in range(STEPS)],
            )
        )
    return records


def main() -> None:
    """Make a page of each number of runs, and print how it fares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[1000, 10_000])
    numbers = parser.parse_args().runs
    print(f"{'runs':>7} {'made in':>9} {'size':>9} {'ready in':>9} {'sorted in':>10} {'filtered in':>11}")
    with tempfile.TemporaryDirectory() as folder, open_browser(Path(folder)) as driver:
        for number in numbers:
            runs = arrange({"results": many_records(number)})
            started = time.perf_counter()
            page = render_report(runs)
            seconds = time.perf_counter() - started
            path = Path(folder) / f"{number}.html"
            path.write_text(page, encoding="utf-8")
            ready = min(_ready_seconds(driver, path) for _ in range(3))
            times = [_seconds_until_painted(driver, action) for action in (SORT, FILTER)]
            print(
                f"{number:7,} {seconds:7.1f} s {len(page.encode()) / 1e6:6.1f} MB {ready:7.2f} s"
                f" {times[0]:8.2f} s {times[1]:9.2f} s"
            )


def _ready_seconds(driver: webdriver.Chrome, path: Path) -> float:
    driver.get(path.as_uri())
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        ready = driver.execute_script("return document.documentElement.dataset.ready")
        if ready:
            return float(ready) / 1000
        time.sleep(0.02)
    return math.inf


def _seconds_until_painted(driver: webdriver.Chrome, action: str) -> float:
    painted = "requestAnimationFrame(() => setTimeout(() => arguments[0](performance.now() - started)))"
    milliseconds = driver.execute_async_script(f"const started = performance.now(); {action}; {painted}")
    return float(milliseconds) / 1000


if __name__ == "__main__":
    main()
