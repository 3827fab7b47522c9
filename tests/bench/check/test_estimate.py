from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from lorabench.bench.check.estimate import compare_with_estimate
from lorabench.bench.check.findings import Finding
from lorabench.bench.check.thresholds import Thresholds
from lorabench.bench.records.record import RunRecord, read_records
from lorabench.estimator.closed_form.replay import replayed_memory
from lorabench.estimator.models.read_config import read_config
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from tests.bench.check.records import record
from tests.sample_records import MODEL_CONFIG

MEASURED = read_records(Path(__file__).parents[3] / "docs/examples/check/measured")
"""Real runs on a CPU, in which all is as estimated."""


def findings_of(*results: RunRecord, tolerance: float = 0.03) -> dict[str, Finding]:
    [recipe] = compare_with_estimate(results, Thresholds(estimate=tolerance)).recipes
    return {one.metric: one for one in recipe.findings}


def with_phase(one: RunRecord, phase: str, factor: float) -> RunRecord:
    assert one.measurement is not None
    memory = one.measurement.memory
    peaks = memory.phase_peaks_bytes | {phase: round(factor * memory.phase_peaks_bytes[phase])}
    return replace(one, measurement=replace(one.measurement, memory=replace(memory, phase_peaks_bytes=peaks)))


@pytest.mark.parametrize("one", MEASURED, ids=lambda one: one.recipe.method)
@pytest.mark.parametrize("phase", ["loaded", "adapted", "forward", "backward", "optimizer"])
def test_every_phase_is_held_to_the_estimate(one: RunRecord, phase: str) -> None:
    assert {found.verdict for found in findings_of(one).values()} == {"same"}
    for factor in (0.95, 1.05):
        found = findings_of(with_phase(one, phase, factor))
        assert {metric for metric, finding in found.items() if finding.verdict != "same"} == {"phase_peaks_bytes"}
        assert found["phase_peaks_bytes"].verdict == "regression"
        assert found["phase_peaks_bytes"].name == f"peak, {phase}"
        assert found["phase_peaks_bytes"].change == pytest.approx(factor - 1, abs=0.001)
    assert findings_of(with_phase(one, phase, 1.02))["phase_peaks_bytes"].verdict == "same"


@pytest.mark.parametrize("counted", ["total", "trainable", "quantized", "adapter"])
def test_parameters_must_be_equal(counted: str) -> None:
    [one] = [one for one in MEASURED if one.recipe.method == "qlora"]
    assert one.measurement is not None
    parameters = one.measurement.parameters
    one_more = replace(parameters, **{counted: getattr(parameters, counted) + 1})
    found = findings_of(replace(one, measurement=replace(one.measurement, parameters=one_more)))["parameters"]
    assert found.verdict == "regression"
    assert (found.reason or "").startswith(f"{counted}: {getattr(parameters, counted):,} estimated")


LLAMA = MODEL_CONFIG | {"model_type": "llama"}
LARGE = {"vocab_size": 32000, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80}
"""A Llama of 70 billion parameters takes more than the sample's GPU of 24 GB has."""


@pytest.mark.parametrize(
    ("metric", "counted"), [("peak_reserved_bytes", "reserved"), ("nvml_process_peak_bytes", "nvml")]
)
def test_reserved_is_held_to_the_replay_and_what_the_driver_counts_to_the_contexts_range(
    metric: str, counted: str
) -> None:
    one = record(model_config=LLAMA, backend="cuda")
    estimated = replayed_memory(
        ResolvedRecipe(read_config(LLAMA, one.recipe.model), one.recipe),
        compute_capability=one.device.compute_capability,
    )
    assert estimated.peak_reserved_bytes is not None
    assert estimated.device_total_range_bytes is not None
    ends = {
        "reserved": (estimated.peak_reserved_bytes, estimated.peak_reserved_bytes),
        "nvml": estimated.device_total_range_bytes,
    }
    least, most = ends[counted]
    for bytes_ in (0.96 * least, 0.98 * least, 1.02 * most, 1.04 * most):
        changes: dict[str, Any] = {counted: round(bytes_)}
        found = findings_of(record(model_config=LLAMA, backend="cuda", **changes))[metric]
        assert found.verdict == ("same" if 0.97 * least <= bytes_ <= 1.03 * most else "regression")


@pytest.mark.parametrize(
    ("config", "outcome", "out_of", "estimated", "verdict"),
    [
        (LLAMA, "oom", "device", "fits", "regression"),
        (LLAMA, "oom", "host", "fits", "insufficient"),
        (LLAMA, "error", None, "fits", "insufficient"),
        (LLAMA | LARGE, "oom", "device", "does not fit", "same"),
        (LLAMA | LARGE, "ok", None, "does not fit", "regression"),
    ],
)
def test_what_fits_is_held_to_the_estimate(
    config: dict[str, Any], outcome: Any, out_of: Any, estimated: str, verdict: str
) -> None:
    one = replace(record(model_config=config, backend="cuda", outcome=outcome), out_of=out_of)
    found = findings_of(one)["outcome"]
    assert (found.before, found.after, found.verdict) == (estimated, outcome, verdict)


def test_what_cannot_be_estimated_is_insufficient() -> None:
    """Learned positions end before the sequence does."""
    config = MODEL_CONFIG | {"model_type": "gpt2", "n_positions": 128, "n_embd": 128, "n_layer": 4, "n_head": 4}
    found = findings_of(record(model_config=config, target_modules="attention"))["outcome"]
    assert found.verdict == "insufficient"
    assert "learned positions for 128 tokens" in (found.reason or "")


def test_the_driver_may_count_paged_states_too() -> None:
    """It counts those that it keeps on the GPU: none of them, or all."""
    paged: dict[str, Any] = {"method": "full", "optim": "paged_adamw_32bit"}
    one = record(model_config=LLAMA, backend="cuda", **paged)
    estimated = replayed_memory(
        ResolvedRecipe(read_config(LLAMA, one.recipe.model), one.recipe),
        compute_capability=one.device.compute_capability,
    )
    assert estimated.device_total_range_bytes is not None
    assert estimated.paged_states_bytes > 0
    most = estimated.device_total_range_bytes[1] + estimated.paged_states_bytes
    for bytes_, verdict in ((most, "same"), (1.04 * most, "regression")):
        found = findings_of(record(model_config=LLAMA, backend="cuda", nvml=round(bytes_), **paged))
        assert found["nvml_process_peak_bytes"].verdict == verdict


def test_runs_with_other_settings_of_the_allocator_are_held_to_no_estimate() -> None:
    runs = [record(model_config=LLAMA, backend="cuda", repeat=repeat) for repeat in (0, 1)]
    expandable = replace(runs[1].environment, allocator="expandable_segments:True")
    found = findings_of(runs[0], replace(runs[1], environment=expandable))
    assert found["outcome"].verdict == "insufficient"
    assert "different settings of torch's allocator" in (found["outcome"].reason or "")
    assert findings_of(*(replace(one, environment=expandable) for one in runs))["outcome"].verdict == "same"
