"""Compare peak memory before and after."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median_low

from lorabench.bench.check.findings import Finding, Judgement, Metric
from lorabench.bench.check.thresholds import Thresholds
from lorabench.bench.records.rehearsal import Counted

SEGMENT_BYTES = 20 * 2**20
"""Size of one segment that the caching allocator requests for small tensors (kLargeBuffer in torch's
c10/core/AllocatorConfig.h). Reserved bytes, and all that depends on them, can differ by one segment by chance."""


def judge_memory(before: Sequence[Counted], after: Sequence[Counted], thresholds: Thresholds) -> list[Finding]:
    """Compare allocated and reserved bytes, and the driver's count for the process, if both sides have them.

    The runs of one side rarely differ. If they do, a rise is a regression only if every run after is worse than every
    run before. If only the worst run after is, the rise is suspicious.
    """
    allowed: dict[Metric, tuple[float | None, int]] = {
        "peak_allocated_bytes": (thresholds.memory, 0),
        "peak_reserved_bytes": (thresholds.reserved, SEGMENT_BYTES),
        "nvml_process_peak_bytes": (thresholds.nvml, SEGMENT_BYTES),
    }
    old, new = counted_peaks(before), counted_peaks(after)
    return [
        _judge(metric, old[metric], new[metric], tolerance, slack)
        for metric, (tolerance, slack) in allowed.items()
        if tolerance is not None and metric in old and metric in new
    ]


def counted_peaks(measurements: Sequence[Counted]) -> dict[Metric, list[int]]:
    """Return the peaks of the runs by metric, without metrics that no run counted."""
    peaks: dict[Metric, list[int | None]] = {
        "peak_allocated_bytes": [one.memory.peak_allocated_bytes for one in measurements],
        "peak_reserved_bytes": [one.memory.peak_reserved_bytes for one in measurements],
        "nvml_process_peak_bytes": [one.nvml_process_peak_bytes for one in measurements],
    }
    counted = {metric: [bytes_ for bytes_ in seen if bytes_ is not None] for metric, seen in peaks.items()}
    return {metric: seen for metric, seen in counted.items() if seen}


def _judge(metric: Metric, old: list[int], new: list[int], tolerance: float, slack: int) -> Finding:
    def above(these: int, those: int) -> bool:
        return these - those > max(tolerance * those, slack)

    verdict: Judgement = "same"
    reason = None
    if above(min(new), max(old)):
        verdict = "regression"
    elif above(min(old), max(new)):
        verdict = "improvement"
    elif above(max(new), max(old)) or above(max(old), max(new)):
        verdict = "suspicious"
        reason = f"{min(old):,} to {max(old):,} bytes before, {min(new):,} to {max(new):,} after"
    typical = median_low(old), median_low(new)
    return Finding(
        metric=metric,
        before=typical[0],
        after=typical[1],
        change=(typical[1] - typical[0]) / typical[0] if typical[0] else None,
        verdict=verdict,
        reason=reason,
    )
