"""The trace meets rehearsals of real models, of which these are quick to trace: one of each kind of step.

`benchmarks/rehearsal_errors.py` compares it with all of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from lorabench.bench.records.record import read_record
from lorabench.estimator.models.read_config import read_config
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.trace.trace import trace

pytestmark = pytest.mark.filterwarnings("ignore")

RECORDS = Path(__file__).parents[1] / "rehearsed"


@pytest.mark.parametrize(
    "file",
    [
        pytest.param("t4/e91f193803f2", id="full fine-tuning of learned positions, with sums of biases"),
        pytest.param("t4/a35f348bc08a", id="weights quantised one by one"),
        pytest.param("t4/cba7e9767285", id="the math kernel's attention"),
        pytest.param("a100-sxm-80gb/b4581bda850f", id="full fine-tuning with sums of norms"),
        pytest.param("h100-sxm/dd4811670eb8", id="dropout, and cuDNN's attention"),
    ],
)
def test_the_allocator_counts_in_a_trace_what_it_counts_in_a_rehearsal(file: str) -> None:
    record = read_record(RECORDS / f"{file}.record.json")
    assert record.rehearsal is not None
    device, counted = record.device.catalogued, record.rehearsal.memory
    assert device is not None
    memory = trace(
        ResolvedRecipe(read_config(record.model_config, record.recipe.model), record.recipe),
        compute_capability=device.compute_capability,
        multiprocessors=device.multiprocessors,
    ).memory
    assert memory.peak_requested_bytes == pytest.approx(record.rehearsal.requested_peak_bytes, rel=1e-5)
    assert memory.peak_allocated_bytes == pytest.approx(counted.peak_allocated_bytes, rel=1e-5)
    assert memory.peak_reserved_bytes == pytest.approx(counted.peak_reserved_bytes, rel=1e-3)
    assert memory.phase_peaks_bytes["adapted"] == counted.phase_peaks_bytes["adapted"]
