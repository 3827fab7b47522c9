"""Many recipes are answered as each by itself."""

from __future__ import annotations

import importlib.util
from itertools import product
from typing import Any

import pytest
from msgspec.structs import replace

from lorabench.estimator.answers.many import MANY, outline_of, outlines
from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.devices.device import find_device
from lorabench.estimator.errors import UserError
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.recipes.defaults import recipe_for
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.speed.throughput import likely_step_time
from tests.estimator.speed.test_calibrations import made_up

LLAMA, MISTRAL = find_model("llama-3.2-1b"), find_model("mistral-7b-v0.1")
SIZES: list[dict[str, Any]] = [
    {"batch_size": batch_size, "seq_len": seq_len, "gradient_accumulation": accumulation}
    for batch_size, seq_len, accumulation in product((1, 3), (100, 4096), (1, 3))
]
KINDS: list[dict[str, Any]] = [
    *({"method": "lora", "rank": rank, "lora_dropout": dropout} for rank in (4, 64) for dropout in (0.0, 0.05, 0.1)),
    {"method": "full", "optim": "adamw_8bit"},
    {"method": "full", "optim": "paged_adamw_32bit"},
    {"method": "qlora", "modules_to_save": "lm_head", "gradient_checkpointing": False},
    {"method": "ia3", "batch_size": 2**31 - 1, "seq_len": 2**31 - 1},
]
RECIPES = [recipe_for(LLAMA, **(sizes | kind)) for kind in KINDS for sizes in SIZES]
RECIPES += [recipe_for(MISTRAL, **(sizes | kind)) for kind in KINDS[:6] for sizes in SIZES]


def alone(recipe: ResolvedRecipe, gpu: str) -> object:
    device = find_device(gpu)
    time = likely_step_time(recipe, device)
    memory = estimate_memory(recipe, compute_capability=device.compute_capability)
    return (*outline_of(memory)[:3], None if time is None else pytest.approx(time.total, rel=1e-12))


@pytest.mark.parametrize("gpu", ["h100-sxm", "rtx-4090", "24GB"])
def test_each_is_answered_as_by_itself(gpu: str) -> None:
    assert len(RECIPES) > MANY
    assert outlines(RECIPES, "cuda", find_device(gpu)) == [alone(recipe, gpu) for recipe in RECIPES]


def test_they_are_answered_without_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    device = find_device("rtx-4090")
    by_arrays = outlines(RECIPES, "cuda", device)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    one_by_one = outlines(RECIPES, "cuda", device)
    assert [one.allocated_bytes for one in one_by_one if not isinstance(one, UserError)] == [
        one.allocated_bytes for one in by_arrays if not isinstance(one, UserError)
    ]


def test_a_cpu_has_no_device_total_and_a_calibration_without_4_bits_no_speed_for_them() -> None:
    device, calibration = find_device("24GB"), made_up(backend="cpu", dequantisation=None)
    for recipe, found in zip(RECIPES, outlines(RECIPES, "cpu", device, calibration), strict=True):
        assert not isinstance(found, UserError)
        assert found[:3] == (estimate_memory(recipe, "cpu").peak_allocated_bytes, None, None)
        assert (found.step_seconds is None) == (recipe.recipe.method == "qlora")


def test_recipes_without_a_closed_form_have_the_reason() -> None:
    longest = 256
    sparse = replace(LLAMA, longest_closed_form=longest)
    recipes = [recipe_for(sparse, seq_len=longest + extra, rank=rank) for rank in range(1, MANY) for extra in (0, 1)]
    found = outlines(recipes, "cuda", find_device("80GB"))
    assert [isinstance(one, UserError) for one in found] == [recipe.recipe.seq_len > longest for recipe in recipes]
    assert f"holds for at most {longest} tokens" in str(found[1])


def test_progress_counts_up_to_the_last_recipe() -> None:
    done: list[int] = []
    outlines(RECIPES, "cuda", find_device("24GB"), on_progress=done.append)
    assert done[0] == 0
    assert done == sorted(set(done))
    assert done[-1] < len(RECIPES)
