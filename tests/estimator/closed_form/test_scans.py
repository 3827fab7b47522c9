"""Models whose scans loop over the chunks of a sequence: any number of chunks, and a last one that is not whole."""

from __future__ import annotations

from typing import Any

import pytest

from lorabench.estimator.answers.estimates import estimate_recipe
from lorabench.estimator.closed_form import forms, scans
from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.closed_form.memory_grid import estimate_memory_grid
from lorabench.estimator.closed_form.replay import Training
from lorabench.estimator.errors import UserError
from lorabench.estimator.models.read_config import read_config
from lorabench.estimator.recipes.defaults import recipe_for
from lorabench.estimator.recipes.feasibility import refuse_impossible
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.speed import operations
from tests.small_models import recorded_config
from tests.traced_tensors import traced_tensors

pytestmark = pytest.mark.filterwarnings("ignore")

SCANNING = "Qwen/Qwen3.5-0.8B-Base"
CHUNK = 64


def _resolved(**options: Any) -> ResolvedRecipe:
    spec = read_config(recorded_config(SCANNING), "small")
    assert spec.scan_chunk == CHUNK
    return ResolvedRecipe(spec, make_recipe("small", **options))


@pytest.mark.parametrize("length", [40, CHUNK, CHUNK + 1, 4 * CHUNK, 6 * CHUNK - 5])
def test_the_closed_form_meets_the_trace_for_any_number_of_chunks(length: int) -> None:
    resolved = _resolved(method="lora", seq_len=length, gradient_checkpointing=length % 2 == 0)
    traced, estimated = traced_tensors(resolved), estimate_memory(resolved)
    workspaces = estimated.components["workspaces"]
    error = (estimated.peak_allocated_bytes - workspaces) / (traced.peak_allocated_bytes - workspaces) - 1
    assert abs(error) <= 0.001, error


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_many_chunks_follow_from_few_to_the_byte(
    method: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = _resolved(method=method, seq_len=11 * CHUNK + 7, gradient_checkpointing=checkpointing)
    from_few = estimate_memory(resolved)
    for module in (forms, scans):
        monkeypatch.setattr(module, "FEW_CHUNKS", 1000)
    assert estimate_memory(resolved) == from_few


def test_a_grid_has_scans_of_all_its_lengths() -> None:
    lengths = [1, 40, CHUNK, 5 * CHUNK, 5 * CHUNK + 1, 40 * CHUNK]
    one = [estimate_memory(_resolved(method="lora", seq_len=length)).peak_allocated_bytes for length in lengths]
    assert estimate_memory_grid(_resolved(method="lora", seq_len=CHUNK), [1], lengths).tolist() == one


def test_a_replay_has_the_peak_of_the_tensors() -> None:
    resolved = _resolved(method="lora", seq_len=5 * CHUNK)
    blocks, tensors = Training(resolved, "8.0").memory(), estimate_memory(resolved, "cuda", "8.0")
    assert blocks.peak_allocated_bytes == pytest.approx(tensors.peak_allocated_bytes, rel=0.01)


def test_adapters_of_a_mamba_leave_out_the_layers_that_peft_refuses() -> None:
    spec = read_config(recorded_config("state-spaces/mamba-130m-hf"), "small")
    resolved = recipe_for(spec, method="lora", seq_len=100)
    assert set(resolved.target_modules) == {"mixer.in_proj", "mixer.x_proj", "mixer.dt_proj"}
    assert any("peft adapts no out_proj of a mamba" in said for said in resolved.assumptions)
    with pytest.raises(UserError, match=r"peft adapts no out_proj of a mamba.*: use --target-modules dt_proj,in_proj"):
        refuse_impossible(recipe_for(spec, method="lora", target_modules="in_proj,out_proj", seq_len=100))


def test_a_scan_of_one_token_at_a_time_meets_its_trace() -> None:
    spec = read_config(recorded_config("state-spaces/mamba-130m-hf"), "small")
    resolved = recipe_for(spec, method="full", seq_len=70, gradient_checkpointing=False)
    traced, estimated = traced_tensors(resolved), estimate_memory(resolved)
    workspaces = estimated.components["workspaces"]
    error = (estimated.peak_allocated_bytes - workspaces) / (traced.peak_allocated_bytes - workspaces) - 1
    assert abs(error) <= 0.01, error


def test_the_answer_says_that_scans_are_not_replayed_and_which_kernels_take_less() -> None:
    spec = read_config(recorded_config(SCANNING), "small")
    answer = estimate_recipe(recipe_for(spec, method="lora", seq_len=100), replay=True)
    assert answer.memory.peak_reserved_range_bytes is not None
    assert any("the allocator is not replayed" in said for said in answer.warnings)
    assert any("with their kernels they take less memory" in said for said in answer.assumptions)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_operations_of_many_chunks_follow_from_few(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = _resolved(method=method, seq_len=9 * CHUNK)
    from_few = operations.micro_batch_operations(resolved)
    monkeypatch.setattr(operations, "chunks_beyond_few", lambda _: 0)
    operations._operations.cache_clear()
    one_by_one = operations.micro_batch_operations(resolved)
    assert dict(from_few.operations) == dict(one_by_one.operations)
    assert from_few.launches == one_by_one.launches
