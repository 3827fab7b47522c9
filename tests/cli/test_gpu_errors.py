"""The table that closes a probed suite, by hand from made-up records."""

from __future__ import annotations

from msgspec.structs import replace

from lorabench.cli.gpu_errors import errors_on_gpu
from tests.sample_records import as_rehearsed, sample_record

GIB = 2**30


def test_the_worst_estimate_comes_first_and_failures_last() -> None:
    near = sample_record(backend="cuda", peak_allocated_bytes=10 * GIB, predicted_peak_bytes=10 * GIB)
    far = sample_record(backend="cuda", peak_allocated_bytes=8 * GIB, predicted_peak_bytes=10 * GIB, method="full")
    assert far.measurement is not None
    reserved = far.measurement.memory.peak_reserved_bytes
    assert reserved is not None
    far = replace(
        far,
        seconds=12.5,
        measurement=replace(
            far.measurement,
            requested_peak_bytes=5 * GIB,
            nvml_process_peak_bytes=reserved + GIB // 2,
            stage_seconds={"model": 4.0, "steps": 6.0},
        ),
    )
    failed = sample_record(backend="cuda", outcome="oom", message="CUDA out of memory", method="qlora")
    labels = {near.digest: "near", far.digest: "far", failed.digest: "failed"}
    title, first, second, last = errors_on_gpu([near, failed, far], labels).splitlines()
    assert title.split() == ["recipe", "requested", "allocated", "reserved", "context", "start"]
    assert first.split()[:3] == ["far", "+100.000%", "+25.000%"]
    assert first.endswith("0.50 GiB 2.5 s")
    assert second.split()[:2] == ["near", "+0.000%"]
    assert last == "failed: oom CUDA out of memory"


def test_a_rehearsal_has_errors_of_memory_and_neither_context_nor_start() -> None:
    ran = sample_record(backend="cuda", peak_allocated_bytes=8 * GIB, predicted_peak_bytes=10 * GIB)
    failed = sample_record(backend="cuda", outcome="oom", message="CUDA out of memory", method="qlora")
    title, row, last = errors_on_gpu(
        [as_rehearsed(ran), as_rehearsed(failed)], {ran.digest: "ran", failed.digest: "failed"}
    ).splitlines()
    assert title.split() == ["recipe", "allocated", "reserved"]
    assert row.split()[:2] == ["ran", "+25.000%"]
    assert last == "failed: oom CUDA out of memory"
