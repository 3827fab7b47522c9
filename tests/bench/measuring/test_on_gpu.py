"""What only a GPU can show: `pytest -m gpu` on a machine that has one (24 GB or more, nothing else running on it).

Elsewhere all of it is skipped.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import pytest

from lorabench.bench.machine.doctor import diagnose
from lorabench.bench.records.measurement import Measurement
from lorabench.bench.records.record import RunRecord
from lorabench.bench.records.run_settings import Settings
from lorabench.bench.running.jobs import Job, JobResult
from lorabench.bench.running.runner import run_suite
from lorabench.bench.running.workers import Workers
from lorabench.bench.suites.suite_file import load_suite
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from tests.bench.running.test_workers import SPEC

pytestmark = pytest.mark.gpu
MODEL = "Qwen/Qwen2.5-0.5B"
RECIPES: list[dict[str, Any]] = [
    {"method": "full"},
    {"method": "full", "optim": "adamw_torch", "gradient_checkpointing": False},
    {"method": "full", "optim": "adamw_bnb_8bit", "dtype": "bfloat16", "mixed_precision": "no"},
    {"method": "lora", "gradient_checkpointing": False},
    {"method": "lora", "attn_implementation": "eager"},
    {"method": "lora", "optim": "paged_adamw_8bit", "rank": 64},
    {"method": "lora", "mixed_precision": "fp16", "gradient_accumulation": 2},
    {"method": "qlora"},
    {"method": "qlora", "prepare_kbit": False, "gradient_checkpointing": False},
]


def run(
    folder: Path, *recipes: dict[str, Any], device: Any = "cuda", model: str = MODEL, **settings: Any
) -> list[RunRecord]:
    """Run recipes as `lorabench run` does, each in a process of its own."""
    suite = {"name": "gpu", "include": [{"model": model, "seq_len": 1024, "batch_size": 4, **each} for each in recipes]}
    path = folder / "gpu.yaml"
    path.write_bytes(msgspec.yaml.encode(suite))
    asked = Settings(**{"backend": "cpu", "steps": 20, "warmup_steps": 3, **settings})
    return list(run_suite(load_suite(str(path)), folder / asked.engine, settings=asked, device=device).records)


def measured(record: RunRecord) -> Measurement:
    assert record.outcome == "ok", f"{record.recipe.label()}: {record.message}\n{record.traceback}"
    assert record.measurement is not None
    return record.measurement


def test_workers_are_forked_since_no_import_starts_cuda(tmp_path: Path) -> None:
    settings = Settings(backend="cuda", steps=3, warmup_steps=1)
    recipe = make_recipe("test/llama", seq_len=16, dtype="float32")
    job = Job(resolved=ResolvedRecipe(SPEC, recipe), settings=settings)
    with Workers(tmp_path) as workers:
        number = workers.start(job, {})
        answers: dict[int, JobResult] = {}
        while number not in answers:
            answers |= workers.wait(10)
        assert workers.forks is True
    assert (answers[number].outcome, answers[number].message) == ("ok", None)


def test_the_doctor_finds_the_gpu_and_quantises_on_it() -> None:
    import torch

    told = diagnose("cuda")
    assert told.can_train == ("full", "lora", "qlora", "ia3"), told.checks
    assert told.gpus[0].name == torch.cuda.get_device_properties(0).name
    assert told.gpus[0].memory_bytes == torch.cuda.get_device_properties(0).total_memory
    assert told.driver is not None


def test_peaks_are_within_a_percent_of_the_estimate(tmp_path: Path) -> None:
    errors = {}
    for record in run(tmp_path, *RECIPES, steps=3, warmup_steps=2):
        assert record.prediction is not None
        predicted = record.prediction.memory.peak_allocated_bytes
        errors[f"{record.recipe.label()} {record.recipe.optim}"] = (
            predicted / measured(record).memory.peak_allocated_bytes - 1
        )
    assert {name: error for name, error in errors.items() if abs(error) > 0.01} == {}


def test_what_is_measured_is_consistent(tmp_path: Path) -> None:
    [record] = run(tmp_path, {"method": "lora"})
    told = measured(record)
    memory = told.memory
    assert sum(memory.components.values()) == memory.peak_allocated_bytes
    assert memory.peak_reserved_bytes is not None
    assert memory.peak_allocated_bytes <= (told.active_peak_bytes or 0) <= memory.peak_reserved_bytes
    assert {"loaded", "adapted", "forward", "backward", "optimizer"} <= memory.phase_peaks_bytes.keys()
    assert memory.phase_peaks_bytes["loaded"] < memory.phase_peaks_bytes["adapted"] < memory.peak_allocated_bytes
    assert memory.phase_peaks_bytes["loaded"] <= (told.loading_peak_bytes or 0)
    # By the driver: at least what the allocator reserved, where it tells of this process at all.
    assert (told.nvml_process_peak_bytes or 2**60) > memory.peak_reserved_bytes
    assert (told.nvml_device_peak_bytes or 0) > memory.peak_reserved_bytes
    # A pass of its own times the phases; it waits between them, so it is no faster.
    assert sum(map(median, told.phase_seconds.values())) > 0.95 * told.median_step_seconds
    assert told.energy_joules is not None
    assert 20 < told.energy_joules / sum(told.step_seconds) < 1500  # watts of any board
    assert told.mfu is None or 0.01 < told.mfu <= (told.hfu or 0) < 1
    assert told.base_loss == pytest.approx(told.adapted_loss, rel=1e-3)


def test_a_recipe_too_large_for_the_gpu_is_out_of_its_memory(tmp_path: Path) -> None:
    [record] = run(tmp_path, {"method": "full", "batch_size": 512, "seq_len": 8192, "gradient_checkpointing": False})
    assert (record.outcome, record.out_of) == ("oom", "device")


def test_trainer_gives_the_same_losses_peaks_and_speed(tmp_path: Path) -> None:
    recipes: list[dict[str, Any]] = [{"method": "full"}, {"method": "lora"}, {"method": "qlora"}]
    recipes += [{"method": "lora", "gradient_accumulation": 2, "gradient_checkpointing": False}]
    own = run(tmp_path, *recipes, least_seconds=5.0)
    trainers = run(tmp_path, *recipes, least_seconds=5.0, engine="trainer")
    for one, other in zip(map(measured, own), map(measured, trainers), strict=True):
        # Kernels that add in no fixed order, in bfloat16.
        assert other.losses == pytest.approx(one.losses, rel=5e-3)
        assert other.losses[0] == pytest.approx(one.losses[0], rel=1e-4)
        assert other.memory.peak_allocated_bytes == pytest.approx(one.memory.peak_allocated_bytes, rel=0.01)
        assert other.tokens_per_second == pytest.approx(one.tokens_per_second, rel=0.03)
