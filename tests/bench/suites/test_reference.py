"""The reference suite covers what it is for; the estimator is compared with every record that was made of it."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import msgspec
import pytest

from lorabench.bench.records.record import RunRecord, read_records, write_record
from lorabench.bench.suites.suite_file import load_suite
from lorabench.estimator.answers.verdict import verdict_and_margin
from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.devices.device import Device, find_device
from lorabench.estimator.errors import UserError
from lorabench.estimator.memory.breakdown import Breakdown
from lorabench.estimator.models.read_config import read_config
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.speed.throughput import estimate_throughput
from tests.sample_records import sample_record

REFERENCE = Path(__file__).parents[3] / "bench" / "reference"
"""One folder of records for each GPU that was measured."""
MOST_MEDIAN_ERROR = 0.01
MOST_ERROR = 0.03

# The suite.


@cache
def recipes() -> tuple[ResolvedRecipe, ...]:
    return load_suite("reference").recipes


@cache
def estimates(gpu: str) -> list[tuple[ResolvedRecipe, Breakdown, str]]:
    """Return each recipe with its estimate and the verdict on ``gpu``."""
    device = find_device(gpu)
    memories = [estimate_memory(each, "cuda", device.compute_capability) for each in recipes()]
    verdicts = [verdict_and_margin(memory, device.memory_bytes)[0] for memory in memories]
    return list(zip(recipes(), memories, verdicts, strict=True))


def test_it_has_a_hundred_recipes_over_six_shapes_and_one_of_70b() -> None:
    shapes = {each.spec.name: each.spec.parameters for each in recipes()}
    assert len(recipes()) >= 100
    assert sum(0.45e9 <= size <= 15e9 for size in shapes.values()) >= 6
    assert min(shapes.values()) < 0.5e9
    assert any(14e9 <= size < 15e9 for size in shapes.values())
    [large] = [each.recipe for each in recipes() if each.spec.parameters > 65e9]
    assert large.method == "qlora"


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("method", {"full", "lora", "qlora"}),
        ("rank", {8, 16, 32, 64, 128, 256}),
        ("prepare_kbit", {True, False}),
        ("gradient_checkpointing", {True, False}),
        ("seq_len", {512, 1024, 2048, 4096, 8192}),
        ("batch_size", {1, 2, 4, 8, 16}),
        ("optim", {"adamw_torch_fused", "adamw_torch", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit"}),
        ("attn_implementation", {"sdpa", "eager"}),
        ("mixed_precision", {"no", "bf16", "fp16"}),
    ],
)
def test_it_covers_each_axis_with_recipes_that_fit(field: str, values: set[Any]) -> None:
    fitting = {each.recipe.settings().get(field) for each, _, verdict in estimates("h200") if verdict == "fits"}
    assert values <= fitting


@pytest.mark.parametrize("gpu", ["h100-sxm", "h200"])
def test_some_must_run_out_of_memory_and_a_hundred_must_not(gpu: str) -> None:
    verdicts = [verdict for _, _, verdict in estimates(gpu)]
    assert verdicts.count("does not fit") >= 4
    assert verdicts.count("fits") >= 100


STEPS_BESIDES = 6.5
LEAST_TIMED_SECONDS = 1.0


@pytest.mark.parametrize(("gpu", "minutes"), [("h100-sxm", 7), ("h200", 6)])
def test_its_steps_take_the_minutes_that_the_docs_say(gpu: str, minutes: int) -> None:
    """By the estimator's own step times.

    The phases, the counted step and the held-out losses are taken for six and a half steps more than the suite's.
    """
    device, suite = find_device(gpu), load_suite("reference")
    total = 0.0
    for each, _, verdict in estimates(gpu):
        speed = estimate_throughput(each, device)
        assert speed is not None
        step = speed.step_seconds
        timed = max(suite.steps * step, LEAST_TIMED_SECONDS) + (suite.warmup_steps + STEPS_BESIDES) * step
        # One that runs out of memory ends in its first step.
        total += step if verdict == "does not fit" else timed
    assert round(total / 60) == minutes
    # What the docs say is left of 20 minutes for all else, a recipe.
    assert 20 * 60 - total > 6.4 * len(suite.recipes)


# Its records.


class Held(NamedTuple):
    """What came of holding the estimator against the records of one GPU."""

    errors: dict[str, float]
    """Recipe → predicted / measured peak allocated − 1."""
    wrong_verdicts: list[str]
    """What ran though it was said not to fit, and what ran out of memory though it was said to fit."""

    def complaints(self) -> list[str]:
        """Return what is beyond the bounds, each in one line."""
        said = [f"{name}: {error:+.2%}" for name, error in self.errors.items() if abs(error) > MOST_ERROR]
        middle = median(map(abs, self.errors.values())) if self.errors else 0.0
        if middle > MOST_MEDIAN_ERROR:
            said.append(f"median over {len(self.errors)} recipes: {middle:.2%}")
        return said + self.wrong_verdicts


def hold_estimator_against(records: list[RunRecord]) -> Held:
    """Estimate each record's recipe anew, and hold that against what was measured."""
    errors, wrong = {}, []
    for record in records:
        name = f"{record.recipe.label()} {record.recipe.optim} {record.digest} on {record.device.name}"
        spec = read_config(record.model_config, record.recipe.model)
        memory = estimate_memory(ResolvedRecipe(spec, record.recipe), record.device.backend, _architecture(record))
        verdict = verdict_and_margin(memory, record.device.memory_bytes)[0] if record.device.backend == "cuda" else None
        if record.measurement is not None:
            measured = record.measurement.memory.peak_allocated_bytes
            errors[name] = memory.peak_allocated_bytes / measured - 1
            if verdict == "does not fit":
                wrong.append(f"{name}: ran, and was said not to fit")
        elif record.outcome == "oom" and record.out_of != "host" and verdict == "fits":
            wrong.append(f"{name}: ran out of memory, and was said to fit")
    return Held(errors, wrong)


def _architecture(record: RunRecord) -> str | None:
    try:
        device: Device = find_device(record.device.name)
    except UserError:
        return None
    return device.compute_capability


def measured_gpus(reference: Path) -> list[Path]:
    return sorted(folder for folder in reference.iterdir() if folder.is_dir()) if reference.is_dir() else []


def test_the_estimator_meets_every_reference_record() -> None:
    folders = measured_gpus(REFERENCE)
    if not folders:
        pytest.skip("no GPU was measured yet: bench/reference holds no records")
    for folder in folders:
        records = read_records(folder)
        assert {record.device.backend for record in records} == {"cuda"}
        assert not [record.file_name for record in records if record.outcome not in ("ok", "oom")]
        assert hold_estimator_against(records).complaints() == []


def test_no_reference_record_names_a_folder_or_a_user() -> None:
    for folder in measured_gpus(REFERENCE):
        for path in folder.iterdir():
            assert not re.search(r"/(home|root|Users|tmp)/", path.read_text()), path


# The check itself: folders made up for it.


def reference_of(tmp_path: Path, errors: list[float], **options: Any) -> list[RunRecord]:
    """Write records whose measured peaks differ from the estimate by ``errors``, and return them as read."""
    config = sample_record().model_config
    for number, error in enumerate(errors):
        bare = sample_record(backend="cuda", rank=2 + number, **options)
        predicted = estimate_memory(ResolvedRecipe(read_config(config, "m"), bare.recipe), "cuda").peak_allocated_bytes
        assert bare.measurement is not None
        memory = msgspec.structs.replace(bare.measurement.memory, peak_allocated_bytes=round(predicted / (1 + error)))
        write_record(
            tmp_path,
            msgspec.structs.replace(bare, measurement=msgspec.structs.replace(bare.measurement, memory=memory)),
        )
    return read_records(tmp_path)


def test_estimates_within_the_bounds_pass(tmp_path: Path) -> None:
    held = hold_estimator_against(reference_of(tmp_path, [0.0, 0.009, -0.009, 0.029]))
    assert sorted(held.errors.values()) == pytest.approx([-0.009, 0.0, 0.009, 0.029], abs=1e-6)
    assert held.complaints() == []


@pytest.mark.parametrize(
    ("errors", "complaint"),
    [([0.0, 0.0, 0.0, 0.031], r"\+3\.10%"), ([0.0, 0.0, -0.031], r"-3\.10%"), ([0.0, 0.011, -0.012], "median over 3")],
)
def test_an_estimate_beyond_the_bounds_is_named(tmp_path: Path, errors: list[float], complaint: str) -> None:
    [said] = hold_estimator_against(reference_of(tmp_path, errors)).complaints()
    assert re.search(complaint, said)


def test_a_wrong_verdict_is_named(tmp_path: Path) -> None:
    small, large = 2**28, 80 * 2**30
    [record] = reference_of(tmp_path, [0.0])
    ran = msgspec.structs.replace(record, device=msgspec.structs.replace(record.device, memory_bytes=small))
    assert "ran, and was said not to fit" in hold_estimator_against([ran]).complaints()[0]
    oom = msgspec.structs.replace(
        record,
        outcome="oom",
        out_of="device",
        measurement=None,
        device=msgspec.structs.replace(record.device, memory_bytes=large),
    )
    assert "ran out of memory, and was said to fit" in hold_estimator_against([oom]).complaints()[0]
    assert hold_estimator_against([msgspec.structs.replace(oom, out_of="host")]).complaints() == []


def test_folders_of_gpus_are_found(tmp_path: Path) -> None:
    assert measured_gpus(tmp_path / "none") == []
    (tmp_path / "h200").mkdir()
    (tmp_path / "README.md").touch()
    assert measured_gpus(tmp_path) == [tmp_path / "h200"]
