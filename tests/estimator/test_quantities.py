from __future__ import annotations

import pytest

from lorabench.estimator.quantities import GIB, MIB, in_gib, range_in_gib


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0.0 MiB"), (34 * MIB + MIB // 2, "34.5 MiB"), (GIB // 8, "0.12 GiB"), (-3 * GIB // 2, "-1.50 GiB")],
)
def test_bytes_are_written_in_gib_or_where_they_are_few_in_mib(count: int, text: str) -> None:
    assert in_gib(count) == text


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (13 * GIB, 16 * GIB + GIB // 4, "13.00 to 16.25 GiB"),
        (64 * MIB, GIB // 2, "0.06 to 0.50 GiB"),
        (0, 10 * MIB, "0.0 to 10.0 MiB"),
    ],
)
def test_a_range_of_bytes_is_written_in_one_unit(low: int, high: int, text: str) -> None:
    assert range_in_gib(low, high) == text
