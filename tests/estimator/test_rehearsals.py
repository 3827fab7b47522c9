"""The estimate agrees with rehearsals of real models: with torch's own counters when the recipe runs on a null GPU.

The records are rehearsed by `benchmarks/rehearsal_errors.py` on null GPUs of five kinds.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from statistics import median
from typing import NamedTuple

from lorabench.bench.records.record import read_record
from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.closed_form.replay import Training
from lorabench.estimator.models.read_config import read_config
from lorabench.estimator.recipes.resolved import ResolvedRecipe

RECORDS = sorted((Path(__file__).parent / "rehearsed").rglob("*.record.json"))


class Errors(NamedTuple):
    """How far the estimate is off, relative to the rehearsal."""

    requested: float
    allocated: float
    reserved: float


@cache
def errors() -> dict[str, Errors]:
    found = {}
    for path in RECORDS:
        record = read_record(path)
        if record.rehearsal is None:
            continue  # it ran out of memory
        resolved = ResolvedRecipe(read_config(record.model_config, record.recipe.model), record.recipe)
        capability = record.device.compute_capability
        requested = estimate_memory(resolved, compute_capability=capability).peak_allocated_bytes
        assert record.device.catalogued is not None
        training = Training(resolved, capability, record.device.catalogued.multiprocessors)
        replayed, memory = training.replay(), record.rehearsal.memory
        assert record.rehearsal.requested_peak_bytes is not None
        assert memory.peak_reserved_bytes is not None
        found[f"{path.parent.name} {record.recipe.describe()}"] = Errors(
            requested / record.rehearsal.requested_peak_bytes - 1,
            replayed.allocated / memory.peak_allocated_bytes - 1,
            replayed.reserved / memory.peak_reserved_bytes - 1,
        )
    return found


def test_what_tensors_ask_for_is_exact() -> None:
    assert errors()
    worst = max(errors().items(), key=lambda item: abs(item[1].requested))
    assert abs(worst[1].requested) <= 0.0001, worst


def test_allocated_is_what_torch_counts() -> None:
    assert median(abs(one.allocated) for one in errors().values()) <= 0.00001
    worst = max(errors().items(), key=lambda item: abs(item[1].allocated))
    assert abs(worst[1].allocated) <= 0.00002, worst


def test_reserved_is_what_torch_takes_from_the_device() -> None:
    sizes = sorted(abs(one.reserved) for one in errors().values())
    assert median(sizes) == 0.0
    assert sizes[int(0.95 * (len(sizes) - 1))] <= 0.00015
    worst = max(errors().items(), key=lambda item: abs(item[1].reserved))
    assert abs(worst[1].reserved) <= 0.0013, worst
