"""What `plan` names fits, is what `estimate` says, and is the best of what was open."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from lorabench.estimator.answers.estimates import estimate_recipe
from lorabench.estimator.answers.plan import Plan, enough_gpus, make_plan
from lorabench.estimator.devices.device import device_names, find_device
from lorabench.estimator.errors import UserError
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe

LLAMA = find_model("meta-llama/Llama-3.1-8B")
GIB = 2**30


@pytest.fixture(scope="module")
def plans() -> dict[str, Plan]:
    gpus = ("rtx-3060", "rtx-4080", "rtx-4090", "l40s", "h100-sxm")
    return {gpu: make_plan(LLAMA, find_device(gpu), {}) for gpu in gpus}


@pytest.mark.parametrize("gpu", ["rtx-3060", "rtx-4090", "l40s", "h100-sxm"])
def test_what_a_plan_names_is_exactly_as_estimated(plans: dict[str, Plan], gpu: str) -> None:
    device = find_device(gpu)
    assert plans[gpu].choices
    for choice in plans[gpu].choices:
        estimate = estimate_recipe(ResolvedRecipe(LLAMA, choice.recipe), device, replay=True)
        assert estimate.fits
        assert estimate.margin_bytes == choice.margin_bytes
        assert estimate.memory.device_total_range_bytes is not None
        assert estimate.memory.device_total_range_bytes[1] == choice.device_total_most_bytes
        assert estimate.throughput == choice.throughput
    for limits in plans[gpu].methods:
        estimate = estimate_recipe(ResolvedRecipe(LLAMA, limits.leanest), device, replay=True)
        assert (estimate.fits, estimate.margin_bytes) == (limits.fits, limits.margin_bytes)
        assert estimate.largest_batch_size == limits.largest_batch_size
        assert estimate.changes == limits.changes


def test_each_choice_is_slower_than_the_one_before_and_buys_something(plans: dict[str, Plan]) -> None:
    for plan in plans.values():
        speeds = [choice.throughput.tokens_per_second for choice in plan.choices if choice.throughput]
        assert all(slower <= faster * 1.03 for faster, slower in pairwise(speeds))
        for index, choice in enumerate(plan.choices[1:], start=1):
            before = plan.choices[:index]
            saves = choice.device_total_most_bytes < min(one.device_total_most_bytes for one in before)
            assert saves or choice.recipe.method not in {one.recipe.method for one in before}


def test_more_memory_opens_more_methods(plans: dict[str, Plan]) -> None:
    fitting = {gpu: {one.method for one in plan.methods if one.fits} for gpu, plan in plans.items()}
    assert fitting == {
        "rtx-3060": {"qlora"},
        "rtx-4080": {"qlora"},
        "rtx-4090": {"qlora", "lora"},
        "l40s": {"qlora", "lora", "full"},
        "h100-sxm": {"qlora", "lora", "full"},
    }
    named = {choice.recipe.method for choice in plans["h100-sxm"].choices}
    assert named == {"qlora", "lora", "full"}


def test_nothing_that_was_tried_is_faster(plans: dict[str, Plan]) -> None:
    """A search by hand, on one GPU: no recipe that fits is much faster than the first choice."""
    device, best = find_device("rtx-4090"), plans["rtx-4090"].choices[0].throughput
    assert best is not None
    for method in ("lora", "qlora"):
        for checkpointing in (True, False):
            for batch_size in (1, 2, 4):
                recipe = make_recipe(
                    LLAMA.name, method=method, gradient_checkpointing=checkpointing, batch_size=batch_size
                )
                estimate = estimate_recipe(ResolvedRecipe(LLAMA, recipe), device, replay=True)
                if estimate.fits:
                    assert estimate.throughput is not None
                    assert estimate.throughput.tokens_per_second <= 1.02 * best.tokens_per_second


def test_what_is_fixed_stays_and_a_step_has_its_tokens() -> None:
    fixed: dict[str, Any] = {"method": "lora", "rank": 64, "seq_len": 4096, "optim": "sgd", "loss": "standard"}
    plan = make_plan(LLAMA, find_device("h100-sxm"), fixed, min_batch_tokens=100_000)
    assert plan.choices
    for choice in plan.choices:
        recipe = choice.recipe
        assert {name: getattr(recipe, name) for name in fixed} == fixed
        tokens = recipe.tokens * recipe.gradient_accumulation
        assert 100_000 <= tokens < 100_000 + recipe.tokens
    assert [limits.method for limits in plan.methods] == ["lora"]
    sized = make_plan(LLAMA, find_device("h100-sxm"), {"batch_size": 3, "method": "qlora"})
    assert {choice.recipe.batch_size for choice in sized.choices} == {3}


def test_seventy_billion_parameters_train_on_80_gib_in_4_bits_only_and_on_24_not_at_all() -> None:
    plan = make_plan(find_model("meta-llama/Llama-3.1-70B"), find_device("rtx-4090"), {"method": "qlora"})
    assert plan.choices == ()
    (limits,) = plan.methods
    assert not limits.fits
    assert limits.margin_bytes < 0
    seventy_on_80 = make_plan(find_model("meta-llama/Llama-3.1-70B"), find_device("h100-sxm"), {})
    assert {choice.recipe.method for choice in seventy_on_80.choices} == {"qlora"}


def test_of_a_size_alone_the_least_work_comes_first() -> None:
    plan = make_plan(LLAMA, find_device("24GB"), {})
    assert plan.choices
    assert all(choice.throughput is None for choice in plan.choices)


def test_older_gpus_get_what_they_have_units_for() -> None:
    plan = make_plan(find_model("Qwen/Qwen2.5-1.5B"), find_device("t4"), {})
    assert plan.choices
    for choice in plan.choices:
        assert choice.recipe.compute_dtype == "float16"
        assert choice.recipe.attn_implementation == "sdpa"


def test_attention_is_what_the_model_and_the_gpu_have() -> None:
    def attentions(model: str, gpu: str, **fixed: Any) -> set[str]:
        plan = make_plan(find_model(model), find_device(gpu), fixed)
        return {choice.recipe.attn_implementation for choice in plan.choices}

    assert attentions("google/gemma-2-2b", "l4", method="lora") == {"flash_attention_2"}
    assert attentions("google/gemma-2-2b", "t4", method="qlora") == {"eager"}
    # Mistral's window is 4096: until it is filled both run the same kernel, and sdpa is the plainer.
    assert attentions("mistralai/Mistral-7B-v0.1", "l40s", method="lora", loss="standard") == {"sdpa"}
    assert "flash_attention_2" in attentions("mistralai/Mistral-7B-v0.1", "l40s", method="lora", seq_len=8192)


def test_mixtures_have_adapters_beside_their_experts() -> None:
    plan = make_plan(find_model("mistralai/Mixtral-8x7B-v0.1"), find_device("h200"), {})
    assert {
        choice.recipe.settings().get("target_modules") for choice in plan.choices if choice.recipe.adapter is not None
    } == {"attention"}
    assert {limits.method for limits in plan.methods if limits.fits} >= {"lora"}
    assert [warning.partition(" ")[0] for warning in plan.warnings] == ["qlora"]


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(UserError, match="rank does not apply to method full"):
        make_plan(LLAMA, find_device("h100-sxm"), {"method": "full", "rank": 8})
    # With the method open, those that have no rank are passed over.
    plan = make_plan(LLAMA, find_device("h100-sxm"), {"rank": 8})
    assert {limits.method for limits in plan.methods} == {"lora", "qlora"}


def test_the_gpus_that_are_enough_are_those_that_an_estimate_says_fit() -> None:
    recipe = make_recipe(LLAMA.name, method="lora", seq_len=4096)
    found = [one.gpu for one in enough_gpus(ResolvedRecipe(LLAMA, recipe))]
    fitting = {
        name
        for name in device_names()
        if find_device(name).supports_bfloat16
        and estimate_recipe(ResolvedRecipe(LLAMA, recipe), find_device(name), replay=True).fits
    }
    assert set(found) == fitting
    sizes = [find_device(name).memory_bytes for name in found]
    assert sizes == sorted(sizes)
