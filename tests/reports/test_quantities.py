from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lorabench.reports import page, quantities
from tests.reports.chromium import Browser


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "–"),
        (0, "0.0 MiB"),
        (5 * 2**20 // 2, "2.5 MiB"),
        (102 * 2**20, "102.0 MiB"),
        (300 * 2**20, "0.29 GiB"),
        (1536 * 2**30, "1,536.00 GiB"),
    ],
)
def test_bytes_are_written_in_gib_or_mib(count: int | None, text: str) -> None:
    assert quantities.format_bytes(count) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (None, "–"),
        (0.0123, "+1.23%"),
        (-0.0123, "−1.23%"),
        (-0.2, "−20%"),
        (12.0, "+1,200%"),
        (0, "0%"),
        (-4e-5, "under 0.01%"),
    ],
)
def test_shares_are_signed_percentages(share: float | None, text: str) -> None:
    assert quantities.format_share(share) == text


@pytest.mark.parametrize(("number", "text"), [(None, "–"), (12345.6, "12,346"), (12.34, "12.3"), (1.234, "1.23")])
def test_numbers_keep_three_digits(number: float | None, text: str) -> None:
    assert quantities.format_number(number) == text


@pytest.mark.parametrize(("seconds", "text"), [(None, "–"), (2.5, "2.50 s"), (0.0125, "12.5 ms")])
def test_seconds_below_one_are_written_in_milliseconds(seconds: float | None, text: str) -> None:
    assert quantities.format_seconds(seconds) == text


def test_a_time_that_is_none_is_shown_as_it_is() -> None:
    assert quantities.format_date("2026-03-14T09:26:53Z") == "2026-03-14 09:26"
    assert quantities.format_date("yesterday") == "yesterday"


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
        2.125 * 2**20,
        12.75 * 2**20,
        1.375 * 2**30,
        7 * 2**20,
        123 * 2**20,
        2**30,
        3 * 10**12,
    ]
    if script == "formatBytes":
        values = [int(value) for value in values if value >= 0]
    elif script == "formatNumber":
        values = [value for value in values if value >= 0]
    functions = (Path(page.__file__).parent / "js/quantities.js").read_text().replace("export ", "")
    assert browser.run(f"{functions}; return arguments[0].map({script})", values) == [write(value) for value in values]
