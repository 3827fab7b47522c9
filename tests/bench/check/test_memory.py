from __future__ import annotations

from typing import Any

import pytest

from lorabench.bench.check.baseline import compare
from lorabench.bench.check.findings import Finding
from lorabench.bench.records.record import RunRecord
from tests.bench.check.records import record

MIB = 2**20


def judged(metric: str, before: list[RunRecord], after: list[RunRecord]) -> Finding:
    comparison = compare(after, before)
    [finding] = [one for one in comparison.recipes[0].findings if one.metric == metric]
    return finding


def peaks(*bytes_: int) -> list[RunRecord]:
    return [record(repeat=repeat, peak_allocated_bytes=peak) for repeat, peak in enumerate(bytes_)]


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (100_000_000, 100_500_000, "same"),
        (100_000_000, 100_500_001, "regression"),
        (100_500_000, 100_000_000, "same"),
        (100_500_001, 100_000_000, "improvement"),
    ],
)
def test_the_allocated_peak_changes_beyond_half_a_percent(before: int, after: int, verdict: str) -> None:
    finding = judged("peak_allocated_bytes", peaks(before), peaks(after))
    assert (finding.before, finding.after, finding.verdict) == (before, after, verdict)
    assert finding.change == pytest.approx(after / before - 1)


@pytest.mark.parametrize("field", ["reserved", "nvml"])
@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (1000 * MIB, 1100 * MIB, "same"),
        (1000 * MIB, 1101 * MIB, "regression"),
        (1101 * MIB, 1000 * MIB, "improvement"),
        (30 * MIB, 50 * MIB, "same"),  # one segment of the allocator
        (30 * MIB, 51 * MIB, "regression"),
    ],
)
def test_what_the_device_gave_is_judged_widely(field: str, before: int, after: int, verdict: str) -> None:
    metric = {"reserved": "peak_reserved_bytes", "nvml": "nvml_process_peak_bytes"}[field]

    def side(bytes_: int) -> list[RunRecord]:
        changes: dict[str, Any] = {field: bytes_}
        return [record(backend="cuda", **changes)]

    assert judged(metric, side(before), side(after)).verdict == verdict


def test_what_a_side_does_not_have_is_not_judged() -> None:
    comparison = compare([record(nvml=5 * MIB)], [record()])
    assert {one.metric for one in comparison.recipes[0].findings} == {
        "peak_allocated_bytes",
        "step_seconds",
        "final_loss",
    }


def test_runs_that_differ_among_themselves_must_all_be_worse() -> None:
    assert (
        judged(
            "peak_allocated_bytes", peaks(10_000_000, 11_000_000, 12_000_000), peaks(12_100_000, 13_000_000, 14_000_000)
        ).verdict
        == "regression"
    )
    finding = judged(
        "peak_allocated_bytes", peaks(10_000_000, 11_000_000, 12_000_000), peaks(11_000_000, 11_500_000, 14_000_000)
    )
    assert finding.verdict == "suspicious"
    assert finding.reason == "10,000,000 to 12,000,000 bytes before, 11,000,000 to 14,000,000 after"
